"""Finding the shell scripts, DeepSpeed files and starting weights that belong to synfundus.

They lie beside the package in a checkout and inside it in an installed wheel.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Literal

from synfundus.errors import ConfigError

AssetKind = Literal["launchers", "ds_configs", "slurm", "starting_weights"]

_PACKAGE = Path(__file__).resolve().parent.parent


def asset_folders(kind: AssetKind) -> tuple[Path, Path]:
    """Return the folders of a kind of asset: in the wheel, and beside the package in a checkout."""
    return _PACKAGE / "_assets" / kind, _PACKAGE.parent / kind


def list_assets(kind: AssetKind) -> list[str]:
    """Return the names of the shipped assets of a kind."""
    return sorted({path.name for folder in asset_folders(kind) if folder.is_dir() for path in folder.iterdir()})


def find_asset(kind: AssetKind, name: str) -> Path:
    """Find a file by the path a user gave, or by the name of a shipped asset.

    Args:
        kind: Folder of the asset.
        name: A path (used as given when the file exists), or the name of a shipped file.

    Raises:
        ConfigError: Neither exists.
    """
    given = Path(name)
    with contextlib.suppress(RuntimeError):  # ~ where there is no home folder
        given = given.expanduser() if name.startswith("~") else given  # ./~name is a file of this folder
    if given.is_file():
        return given.resolve()
    if given.name == name:
        for folder in asset_folders(kind):
            if (folder / name).is_file():
                return folder / name
    raise ConfigError(
        f"there is no file {name!r} and no shipped one of that name",
        where=kind,
        hint=f"shipped: {', '.join(list_assets(kind)) or 'none'}",
    )


def _without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Make an object; json itself keeps the last of two values of one key.

    Raises:
        ValueError: A key stands twice.
    """
    names = [name for name, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"the key {', '.join(map(repr, twice))} stands twice")
    return dict(pairs)


def read_ds_file(name: str | None, *, device: Literal["cpu", "cuda"]) -> tuple[Path, object]:
    """Read a DeepSpeed file, the given one or the default for a device; its content is checked by `ds_config`.

    Args:
        name: A path or the name of a shipped file; None takes ``zero2.json``, on a CPU ``zero2_cpu.json``.
        device: What the run computes on.

    Raises:
        ConfigError: No such file, or not JSON.
    """
    path = find_asset("ds_configs", name or ("zero2_cpu.json" if device == "cpu" else "zero2.json"))
    try:
        return path, json.loads(path.read_bytes(), object_pairs_hook=_without_doubles)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"the DeepSpeed file is not valid JSON: {error}", where=str(path)) from error
