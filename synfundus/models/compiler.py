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


def missing_for_compilation(
    device: Literal["cpu", "cuda"],
    environment: Mapping[str, str],
    *,
    which: Callable[[str], str | None] = shutil.which,
    has_package: Callable[[str], bool] = lambda name: importlib.util.find_spec(name) is not None,
    headers: str | None = None,
) -> str | None:
    """Return what `torch.compile`, and on a GPU Triton, lacks on a device, or None.

    Args:
        device: Device to compute on.
        environment: Environment, in which ``CXX`` and ``CC`` may name compilers.
        which: Finds a program; an argument for tests.
        has_package: Finds a package; an argument for tests.
        headers: Folder of Python's headers; None = this Python's.
    """
    if device == "cuda" and not has_package("triton"):
        return "the package triton"
    wanted = [("CXX", "a C++ compiler", CPP_COMPILERS)]
    if device == "cuda":
        wanted.append(("CC", "a C compiler", C_COMPILERS))
    for variable, what, usual in wanted:
        candidates = (environment[variable],) if environment.get(variable) else usual
        if not any(which(name) for name in candidates):
            return f"{what} ({' or '.join(candidates)})"
    if device == "cuda" and not (Path(headers or str(sysconfig.get_config_var("INCLUDEPY"))) / "Python.h").is_file():
        return "Python's headers (Python.h)"
    return None
