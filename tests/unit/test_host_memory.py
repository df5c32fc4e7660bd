"""What is left of a host's memory, as the kernel's files say it: machine, control groups of both versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from synfundus.training.memory.host_memory import available_memory_bytes

MIB = 2**20


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    return root


MACHINE = {"proc/meminfo": "MemTotal:  9000000 kB\nMemAvailable:    4096000 kB\n"}


def test_without_a_limit_it_is_what_the_machine_has_left(tmp_path: Path) -> None:
    group = {"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/memory.max": "max\n"}
    group["sys/fs/cgroup/job/memory.current"] = "1000\n"
    assert available_memory_bytes(write(tmp_path, MACHINE | group)) == 4096000 * 1024


def test_a_control_group_with_less_decides_and_its_file_pages_give_way(tmp_path: Path) -> None:
    group = {
        "proc/self/cgroup": "0::/job/step\n",
        "sys/fs/cgroup/job/step/memory.max": f"{100 * MIB}\n",
        "sys/fs/cgroup/job/step/memory.current": f"{70 * MIB}\n",
        "sys/fs/cgroup/job/step/memory.stat": f"anon 5\ninactive_file {20 * MIB}\nactive_file 7\n",
    }
    assert available_memory_bytes(write(tmp_path, MACHINE | group)) == 50 * MIB


def test_a_limit_further_up_counts_also_where_the_own_group_is_not_to_be_seen(tmp_path: Path) -> None:
    group = {
        "proc/self/cgroup": "0::/job/step/task\n",
        "sys/fs/cgroup/memory.max": f"{64 * MIB}\n",
        "sys/fs/cgroup/memory.current": f"{4 * MIB}\n",
    }
    assert available_memory_bytes(write(tmp_path, MACHINE | group)) == 60 * MIB


def test_version_1_and_a_group_that_is_over_its_limit(tmp_path: Path) -> None:
    group = {
        "proc/self/cgroup": "5:devices:/x\n4:memory:/job\n0::/\n",
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{8 * MIB}\n",
        "sys/fs/cgroup/memory/job/memory.usage_in_bytes": f"{9 * MIB}\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1\n",
    }
    assert available_memory_bytes(write(tmp_path, MACHINE | group)) == 0


def test_a_machine_that_says_nothing_is_taken_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}.__getitem__)
    assert available_memory_bytes(tmp_path) == 4096000


def test_of_this_machine_it_is_a_plausible_number() -> None:
    assert 2**26 < available_memory_bytes() < 2**50
