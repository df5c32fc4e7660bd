"""Which code this is: kept with a job when it is submitted, and compared when the job starts."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from synfundus import __version__

PACKAGES = ("torch", "deepspeed", "diffusers")
_PACKAGE = Path(__file__).resolve().parent.parent
_GIT_PATIENCE_S = 20.0

_NAMES = {
    "synfundus": "synfundus",
    "source_sha256": "the source",
    "commit": "the commit",
    "dirty": "uncommitted changes",
    "python": "Python",
}


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def source_hash(package: Path) -> str:
    """Return the SHA-256 over all Python and YAML files of a package, with their names."""
    digest = hashlib.sha256()
    for path in sorted(path for path in package.rglob("*") if path.suffix in (".py", ".yaml") and path.is_file()):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()} {len(data)}\n".encode() + data)
    return digest.hexdigest()


def _git(checkout: Path, *arguments: str) -> str | None:
    """Return what git answers; None where there is no git, or it does not want to."""
    try:
        done = subprocess.run(
            ["git", "-C", str(checkout), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_GIT_PATIENCE_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def code_version(package: Path = _PACKAGE) -> dict[str, Any]:
    """Say which code this process runs, without importing any of what it names.

    Args:
        package: Folder of the package.

    Returns:
        ``synfundus`` (version), ``source_sha256``, ``python``, ``packages`` (versions, None where one is not
        installed), and in a checkout ``commit`` and ``dirty`` (both None elsewhere, or without git).
    """
    commit = changes = None
    if (package.parent / ".git").exists():
        commit = _git(package.parent, "rev-parse", "HEAD")
        changes = _git(package.parent, "status", "--porcelain", "--untracked-files=no")
    return {
        "synfundus": __version__,
        "source_sha256": source_hash(package),
        "commit": commit,
        "dirty": None if changes is None else bool(changes),
        "python": platform.python_version(),
        "packages": {name: _installed(name) for name in PACKAGES},
    }


def code_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say how the code differs, one clause for each; what either side does not know is no difference."""
    pairs = [(text, then.get(key), now.get(key)) for key, text in _NAMES.items()]
    packages = then.get("packages")
    if isinstance(packages, Mapping):
        pairs += [(name, version, now["packages"].get(name)) for name, version in packages.items()]
    return [
        f"{text} was {str(before)[:12]}, is {str(after)[:12]}"
        for text, before, after in pairs
        if before is not None and after is not None and before != after
    ]
