"""Find the file for a name in a table, which may lack extension and folders, differ in case, or be like 1.0."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import replace
from functools import cached_property
from itertools import takewhile

from synfundus.photographs.ingest import is_picture_name, safe_name
from synfundus.photographs.label_mapping import PICTURE_SUFFIXES
from synfundus.photographs.label_table import LabelTable, RejectedRow, TableRow

_FLOAT = re.compile(r"(?P<number>(?:.*/)?\d+)\.0(?P<suffix>\.[a-z]+)?", re.IGNORECASE)
"""A number as pandas writes it if a cell of its column is empty, perhaps with the extension of a mapping."""

_MANY_IN_ONE = 10
"""A folder of fewer files is not named: it may be called after a patient."""


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
        named = named or _in_folders(self._by_stem.get(picture_stem(base), ()), folders)
        number = None if named else _FLOAT.fullmatch(name)
        return self.find(f"{number['number']}{number['suffix'] or ''}") if number else named

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


def complete_names(table: LabelTable, files: Collection[str]) -> LabelTable:
    """Complete the file names of a user's table: another folder, another case, a number like 1.0.

    A file that another row names exactly is not taken, nor one with another extension or a further one, nor one that
    lacks a folder of the name, unless all rows have that folder. A name that fits several files, and names that fit one
    file, become the reject ``ambiguous_file``. Names of rejected rows count too, and are completed: what becomes of a
    photograph without a row does not depend on the labels. A warning says how many were completed, and in which way.
    """
    names = [*(row.file for row in table.rows), *(refused.file for refused in table.rejected)]
    fits = _fits({_canonical(name) for name in names if name}, files)
    claims = Counter(file for found in fits.values() for file in found)
    rows, rejected = list[TableRow](), list[RejectedRow]()
    for refused in table.rejected:
        found = fits.get(_canonical(refused.file), [])
        rejected.append(replace(refused, file=found[0]) if len(found) == 1 else refused)
    ways, folders = Counter[str](), set[str]()
    for row in table.rows:
        safe = _canonical(row.file)
        found = fits[safe]
        if not found:
            rows.append(row)
            continue
        if len(found) > 1 or claims[found[0]] > 1:
            others = "" if len(found) > 1 else ", and so can another row"
            detail = f"{safe} can be {', '.join(found)}{others}"
            file = row.file if len(found) > 1 else found[0]
            rejected.append(RejectedRow(row.line, file, row.patient, "ambiguous_file", detail))
            continue
        rows.append(replace(row, file=found[0]))
        (above, base), (cell_above, cell_base) = _split(_folded(found[0])), _split(_folded(safe))
        way = "number" if base != cell_base else "case" if above == cell_above else "folder"
        ways[way] += 1
        folders |= {found[0].rpartition("/")[0]} if way == "folder" else set()
    one = ways["folder"] >= _MANY_IN_ONE and len(folders) == 1 and min(folders)
    said = {
        "folder": f"lie below {one}/" if one else "lie in other folders than the table says",
        "case": "differ in upper and lower case",
        "number": "are numbers like 1.0",
    }
    parts = ", ".join(f"{ways[way]} {text}" for way, text in said.items() if ways[way])
    note = f"{ways.total()} of {len(table.rows)} file names were completed: {parts}"
    return replace(
        table, rows=tuple(rows), rejected=tuple(rejected), warnings=(*table.warnings, *([note] if parts else []))
    )


def _canonical(name: str) -> str:
    """Return the one form of a name of a table; an unsafe name stays as it is."""
    return _nfc(safe_name(name) or name)


def _fits(names: Collection[str], files: Collection[str]) -> dict[str, list[str]]:
    """Return the files that each name of a table may mean, in its canonical form; none where it is exact or unsafe."""
    index, named = FileIndex(files), set(names) & {_nfc(file) for file in files}
    above_all = _common_folders([safe_name(name) or "" for name in names])
    return {
        name: [
            file
            for file in (() if name in named else index.find(name))
            if picture_suffix(file).lower() == picture_suffix(name).lower()
            and _nfc(file) not in named
            and _is_below(file, name, above_all)
        ]
        for name in names
    }


def _common_folders(names: Sequence[str]) -> tuple[str, ...]:
    """Return the folders that all names begin with."""
    levels = zip(*(_split(_folded(name))[0] for name in names), strict=False)
    return tuple(level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels))


def _is_below(file: str, cell: str, above_all: tuple[str, ...]) -> bool:
    """Whether a file lacks no folder of the cell but those of all rows: train/7.png is not 7.png of another folder."""
    lacking = len(_split(cell)[0]) - len(_split(file)[0])
    return lacking <= len(above_all)


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


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
    return _nfc(name).casefold()


def _split(name: str) -> tuple[tuple[str, ...], str]:
    *folders, base = name.split("/")
    return tuple(folders), base


def _in_folders(names: Sequence[str], folders: tuple[str, ...]) -> tuple[str, ...]:
    """Keep names whose folders end with the given ones, or vice versa."""
    return tuple(name for name in names if _ends_alike(_split(_folded(name))[0], folders))


def _ends_alike(left: tuple[str, ...], right: tuple[str, ...]) -> bool:
    shared = min(len(left), len(right))
    return left[len(left) - shared :] == right[len(right) - shared :]
