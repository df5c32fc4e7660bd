"""What `synfundus prepare` says about the rows of a table that it cannot use, and about the commonest reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from synfundus.errors import DataError
from synfundus.photographs.importers import IMPORTERS, recognise
from synfundus.photographs.importers.file_names import FileIndex, picture_suffix
from synfundus.photographs.ingest import Reject, is_picture_name, looks_like_picture
from synfundus.photographs.label_table import LabelTable
from synfundus.storage.safe_files import BROKEN, is_hidden

MANY_REJECTS = 0.1
"""Fraction of rejected inputs above which there is a warning."""

_SHOWN_REASONS, _SHOWN_DETAIL = 3, 80
_QUOTED = ("malformed_row", "missing_file_name", "missing_file")
"""Reasons whose details hold neither a file name nor a cell: both can name a patient."""

_HINTS = {
    "ambiguous_file": "give the folder of this table as --source, or write folders into the table",
    "unsafe_name": "leave drive and folders above --source out of the names: sub/a.jpg is a file of its folder sub",
    "broken_link": "mount or copy what the links in --source lead to",
    "missing_file": 'check --source; a mapping with file_pattern (for example "IMG_{file}.jpeg") changes the names',
}
_FORK = "._"
"""Begins the name of a file in which macOS keeps what belongs to another one."""


def reject_warning(counts: Mapping[str, int], num_inputs: int) -> str:
    """Return a warning with the commonest reasons; empty if few of the inputs are rejected."""
    total = sum(counts.values())
    if total <= MANY_REJECTS * num_inputs:
        return ""
    common = Counter(counts).most_common(_SHOWN_REASONS)
    reasons = ", ".join(f"{number} {reason}" for reason, number in common)
    more = f" and {len(counts) - len(common)} more reasons" if len(counts) > len(common) else ""
    return f"{total} of {num_inputs} inputs are rejected ({total / num_inputs:.0%}): {reasons}{more}"


def early_warnings(table: LabelTable, rejects: Sequence[Reject], num_inputs: int, files: Collection[str]) -> list[str]:
    """Return warnings about rejects that are known before a photograph is read."""
    many = reject_warning(Counter(reject.reason for reject in rejects), num_inputs)
    note, hint = _other_extension(rejects, files)
    example, meaning = _example(table, rejects) if many else ("", "")
    if example not in {reject.reason for reject in rejects}:  # a reason without a detail says no more
        many += f"; {example}" if many else ""
        many += f": {meaning}" if meaning else ""
    return [*([many] if many else []), *([f"{note}: {hint}"] if note else [])]


def passed_over(listed: Mapping[str, int]) -> list[str]:
    """Say how much of a source folder is not read, and why.

    Args:
        listed: Size of everything in it, by name, from `filesystem.list_files`.
    """
    broken = sum(size == BROKEN and not is_hidden(name) for name, size in listed.items())
    names = [name.rpartition("/")[2] for name in listed if is_hidden(name)]
    hidden = sum(looks_like_picture(name.lstrip(".")) for name in names if not name.startswith(_FORK))
    counts = {
        "broken links: files or folders of photographs that they should lead to are not read": broken,
        "hidden pictures: their names, or those of their folders, begin with a dot; they are no inputs": hidden,
    }
    return [f"{number:,} {what}" for what, number in counts.items() if number]


def is_misread(table: LabelTable) -> bool:
    """Whether more than half of the rows of a table have a cell without a meaning for the same label."""
    return 2 * table.most_refused()[1] > len(table.rows) + len(table.rejected)


def no_input(
    table: LabelTable,
    rejects: Sequence[Reject],
    files: Collection[str],
    *,
    usable: int,
    importer: str | None,
    where: str,
) -> DataError:
    """Return the error that no row of a table is a photograph, or few are, with the commonest reason and what to do."""
    of_rows = [reject for reject in rejects if reject.reason != "not_in_table"]
    counts = Counter(reject.reason for reject in of_rows)
    reason = max(counts, key=lambda name: counts[name], default="")
    hint = _HINTS.get(reason, "correct the table")
    if reason == "missing_file":
        note, extension = _other_extension(rejects, files)
        pictures = sum(map(is_picture_name, files))
        message = (
            f"none of the {len(table.rows)} usable rows of the table names one of the {pictures} pictures in --source"
        )
        message, hint = f"{message}; {note}" if note else message, extension or hint
    else:
        total = len(table.rows) + len(table.rejected)
        example, meaning = _example(table, of_rows) if of_rows else ("", "")
        said = f"{counts[reason]} {example}" if of_rows else "it has none"
        message = f"{usable or 'none'} of the {total} rows of the table {'are' if usable > 1 else 'is'} usable: {said}"
        hint = meaning or hint
    hint = f"check --source and --importer {importer}" if importer and reason != "unsafe_name" else hint
    return DataError(message, where=where, hint=hint)


def _example(table: LabelTable, rejects: Sequence[Reject]) -> tuple[str, str]:
    """Return the commonest reason with the detail of its first reject, without the name of a file, and what to do.

    What to do is empty unless it is about the cells of the table.
    """
    reason = Counter(reject.reason for reject in rejects).most_common(1)[0][0]
    detail = next(reject.detail for reject in rejects if reject.reason == reason)
    shown = detail[:_SHOWN_DETAIL] if reason in _QUOTED else detail.partition(":")[0]
    if reason == "unknown_label_value":
        name = table.most_refused()[0]
        if name in table.refused:
            one = table.refused[name]
            cell = repr(one.cell) if one.cell else "the cell"
            said = f"line {one.line}: {name}: {cell} in column {one.column} is not one of {one.spec.choices}"
            mapping = table.mapping.to_yaml({label: cells.values for label, cells in table.refused.items()})
            hint = f"say what these cells mean (null = unknown) in a --mapping, for example: {mapping}"
            return f"{reason}, for example {said}", hint
        shown = detail.partition(" = ")[0]  # line and column; the cell may be a sentence about a patient
    return f"{reason}, for example {shown}" if shown else reason, _HINTS[reason] if reason == "unsafe_name" else ""


def _other_extension(rejects: Sequence[Reject], files: Collection[str]) -> tuple[str, str]:
    """Say how many missing files are there under another extension, and what to do."""
    index, pairs = FileIndex(files), Counter[tuple[str, str]]()
    for reject in rejects:
        if reject.reason == "missing_file":
            pairs.update(
                (picture_suffix(reject.source), picture_suffix(name)) for name in index.find(reject.source)[:1]
            )
    if not pairs:
        return "", ""
    (wanted, there), _ = pairs.most_common(1)[0]
    note = f"{pairs.total()} of the missing files are there with the extension {there}"
    if wanted:
        return f"{note}, not {wanted}", "write the extension of the files into the table"
    return note, f'add the extension in a --mapping: file_pattern: "{{file}}{there}"'


def looks_like(data: bytes, *, where: str) -> str:
    """Return a hint that a table is that of a known set; empty if it is not."""
    try:
        name = recognise(data, where=where)
    except DataError:
        return ""
    return f"it looks like {IMPORTERS[name].collection}: --importer {name}" if name else ""
