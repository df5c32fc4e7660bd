"""Available host memory: of the machine, and within the limits of this process's control groups."""

from __future__ import annotations

import os
import re
from pathlib import Path


def available_memory_bytes(root: Path = Path("/")) -> int:
    """Return the available memory of the machine, or what a control group has left if that is less.

    Args:
        root: Folder of ``proc`` and ``sys``; an argument for tests.
    """
    text = _read(root / "proc" / "meminfo")
    match = re.search(r"MemAvailable:\s+(\d+) kB", text)
    machine = int(match[1]) * 1024 if match else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_control_groups(root)])


def _control_groups(root: Path) -> list[int]:
    """Return what each control group with a limit has left, its parents included; inactive file pages count as free."""
    groups = root / "sys" / "fs" / "cgroup"
    left: list[int] = []
    for line in _read(root / "proc" / "self" / "cgroup").splitlines() or ["0::/"]:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        # version 2 has one tree, version 1 one for each controller
        top, limit, used, pages = (
            (groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if controllers
            else (groups, "memory.max", "memory.current", "inactive_file")
        )
        folder = top / path.lstrip("/")
        for group in [folder, *(above for above in folder.parents if above.is_relative_to(top))]:
            most, now = _read(group / limit).strip(), _read(group / used).strip()
            if most.isdigit() and now.isdigit():
                match = re.search(rf"^{pages} (\d+)$", _read(group / "memory.stat"), re.MULTILINE)
                left.append(max(0, int(most) - int(now) + (int(match[1]) if match else 0)))
    return left


def _read(path: Path) -> str:
    """Return the content of a kernel file, an empty string if it cannot be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
