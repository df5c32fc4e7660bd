"""The version of the running code: stored when a job is submitted, compared when the job starts."""

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
    """Return the SHA-256 of all Python and YAML files of a package and their names."""
    digest = hashlib.sha256()
    for path in sorted(path for path in package.rglob("*") if path.suffix in (".py", ".yaml") and path.is_file()):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()} {len(data)}\n".encode() + data)
    return digest.hexdigest()


def _git(checkout: Path, *arguments: str) -> str | None:
    """Return the output of git; None without git, or if it fails."""
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
    """Return the versions of the code this process runs, without importing the packages.

    Args:
        package: Folder of the package.

    Returns:
        ``synfundus`` (version), ``source_sha256``, ``python``, ``packages`` (versions, None if not installed), and
        ``commit`` and ``dirty`` (None outside a git checkout).
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
    """Describe the differences, one clause each; a value that one side does not have is no difference."""
    pairs = [(text, then.get(key), now.get(key)) for key, text in _NAMES.items()]
    packages = then.get("packages")
    if isinstance(packages, Mapping):
        pairs += [(name, version, now["packages"].get(name)) for name, version in packages.items()]
    return [
        f"{text} was {str(before)[:12]}, is {str(after)[:12]}"
        for text, before, after in pairs
        if before is not None and after is not None and before != after
    ]
