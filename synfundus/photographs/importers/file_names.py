"""Find the file for a name in a table, which may lack extension and folders, or differ in case."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence, Set
from functools import cached_property

from synfundus.photographs.ingest import is_picture_name, safe_name
from synfundus.photographs.label_mapping import PICTURE_SUFFIXES


class FileIndex:
    """The files of the source folder, found by name, ignoring case, or without extension.

    Args:
        files: Names relative to the source folder, with ``/`` between folders.
    """

    def __init__(self, files: Collection[str]) -> None:
        self._files: Collection[str] = files if isinstance(files, Set | Mapping) else frozenset(files)

    def find(self, cell: str) -> tuple[str, ...]:
        """Return the files that match a cell: none if the file is missing, several if the cell is ambiguous.

        A cell with folders only matches files in these folders: ``train/7.png`` is not ``test/7.png``. A cell that
        leaves the source folder matches nothing.
        """
        name = safe_name(cell)
        if name is None:
            return ()
        if name in self._files:
            return (name,)
        folders, base = _split(_folded(name))
        named = _in_folders(self._by_base.get(base, ()), folders)
        return named or _in_folders(self._by_stem.get(picture_stem(base), ()), folders)

    @cached_property
    def _by_base(self) -> Mapping[str, Sequence[str]]:
        index: dict[str, list[str]] = {}
        for name in sorted(self._files):
            index.setdefault(_split(_folded(name))[1], []).append(name)
        return index

    @cached_property
    def _by_stem(self) -> Mapping[str, Sequence[str]]:
        index: dict[str, list[str]] = {}
        for name in sorted(self._files):
            if is_picture_name(name):
                index.setdefault(picture_stem(_split(_folded(name))[1]), []).append(name)
        return index


def picture_stem(name: str) -> str:
    """Return a file name without its picture extension; other dots are part of the name."""
    suffix = picture_suffix(name)
    return name[: len(name) - len(suffix)]


def picture_suffix(name: str) -> str:
    """Return the picture extension of a file name, case kept, or an empty string."""
    lower = name.lower()
    suffix = next((suffix for suffix in PICTURE_SUFFIXES if lower.endswith(suffix)), "")
    return name[len(name) - len(suffix) :]


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _split(name: str) -> tuple[tuple[str, ...], str]:
    *folders, base = name.split("/")
    return tuple(folders), base


def _in_folders(names: Sequence[str], folders: tuple[str, ...]) -> tuple[str, ...]:
    """Keep names whose folders end with the given ones, or vice versa."""
    return tuple(name for name in names if _ends_alike(_split(_folded(name))[0], folders))


def _ends_alike(left: tuple[str, ...], right: tuple[str, ...]) -> bool:
    shared = min(len(left), len(right))
    return left[len(left) - shared :] == right[len(right) - shared :]
