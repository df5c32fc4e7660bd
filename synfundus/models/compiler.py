"""What `torch.compile` and Triton need besides torch; checked without importing torch, for `doctor`."""

from __future__ import annotations

import importlib.util
import shutil
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

CPP_COMPILERS = ("g++", "clang++")
C_COMPILERS = ("gcc", "clang")
_INCLUDE_PATHS = ("CPATH", "C_INCLUDE_PATH")


def missing_for_compilation(
    device: Literal["cpu", "cuda"],
    environment: Mapping[str, str],
    *,
    which: Callable[[str], str | None] = shutil.which,
    has_package: Callable[[str], bool] = lambda name: importlib.util.find_spec(name) is not None,
    headers: str | None = None,
) -> str | None:
    """Return what `torch.compile` lacks on a device, or None; on a GPU it writes kernels for Triton.

    Args:
        device: Device to compute on.
        environment: Environment, in which ``CXX`` and ``CC`` may name compilers.
        which: Finds a program; an argument for tests.
        has_package: Finds a package; an argument for tests.
        headers: As for `missing_for_triton`.
    """
    missing = _missing("a C++ compiler", environment.get("CXX"), CPP_COMPILERS, which)
    if device == "cuda":
        return missing_for_triton(environment, which=which, has_package=has_package, headers=headers) or missing
    return missing


def missing_for_triton(
    environment: Mapping[str, str],
    *,
    which: Callable[[str], str | None] = shutil.which,
    has_package: Callable[[str], bool] = lambda name: importlib.util.find_spec(name) is not None,
    headers: str | None = None,
) -> str | None:
    """Return what Triton's kernels lack, or None: Triton compiles the code that starts them.

    Args:
        environment: Environment, in which ``CC`` may name a compiler, and ``CPATH`` folders of headers.
        which: Finds a program; an argument for tests.
        has_package: Finds a package; an argument for tests.
        headers: Folder of Python's headers; None = where Triton looks for them.
    """
    if not has_package("triton"):
        return "the package triton"
    if missing := _missing("a C compiler", environment.get("CC"), C_COMPILERS, which):
        return missing
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # as Triton does on Debian
    folder = headers or sysconfig.get_path("include", scheme)
    searched = ":".join([folder, *(environment.get(name, "") for name in _INCLUDE_PATHS)])
    found = any((Path(one) / "Python.h").is_file() for one in searched.split(":") if one)
    return None if found else f"the headers of this Python ({folder}/Python.h)"


def _missing(what: str, named: str | None, usual: tuple[str, ...], which: Callable[[str], str | None]) -> str | None:
    candidates = (named,) if named else usual
    return None if any(which(name) for name in candidates) else f"{what} ({' or '.join(candidates)})"
