"""What `torch.compile` needs besides torch; checked without importing torch, for `doctor`."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping
from typing import Literal

CPP_COMPILERS = ("g++", "clang++")


def missing_for_compilation(
    device: Literal["cpu", "cuda"],
    environment: Mapping[str, str],
    *,
    which: Callable[[str], str | None] = shutil.which,
    has_package: Callable[[str], bool] = lambda name: importlib.util.find_spec(name) is not None,
) -> str | None:
    """Return what `torch.compile` lacks on a device, or None.

    Args:
        device: Device to compute on.
        environment: Environment, in which ``CXX`` may name a compiler.
        which: Finds a program; an argument for tests.
        has_package: Finds a package; an argument for tests.
    """
    if device == "cuda" and not has_package("triton"):
        return "the package triton"
    named = environment.get("CXX")
    candidates = (named,) if named else CPP_COMPILERS
    if not any(which(name) for name in candidates):
        return f"a C++ compiler ({' or '.join(candidates)})"
    return None
