"""The sets of `prepare --importer`."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from synfundus.errors import ConfigError, DataError
from synfundus.labels.csv_table import TableRecords, encoding_of, near_misses
from synfundus.labels.schema import LabelSchema
from synfundus.photographs.importers.finding_sets import AIROGS, BRSET, MBRSET, RFMID, SYNFUNDUS_1M
from synfundus.photographs.importers.grading_sets import APTOS2019, DDR, EYEPACS, EYEPACS_NAME_SIDES, IDRID, MESSIDOR2
from synfundus.photographs.importers.importer import Importer, Source, csv_records, read_photographs
from synfundus.photographs.importers.named_sets import PALM, REFUGE
from synfundus.photographs.importers.odir import ODIR5K
from synfundus.photographs.label_mapping import shown_columns
from synfundus.photographs.label_table import LabelTable

IMPORTERS: Mapping[str, Importer] = {
    "airogs": AIROGS,
    "aptos2019": APTOS2019,
    "brset": BRSET,
    "ddr": DDR,
    "eyepacs": EYEPACS,
    "idrid": IDRID,
    "mbrset": MBRSET,
    "messidor2": MESSIDOR2,
    "odir5k": ODIR5K,
    "palm": PALM,
    "refuge": REFUGE,
    "rfmid": RFMID,
    "synfundus1m": SYNFUNDUS_1M,
}
"""Importer by the name of the option."""
_NAME_SIDES = {"eyepacs": EYEPACS_NAME_SIDES}
"""Those that take the eye side from file names, if they are asked to."""

_FIRST_BYTES = 2**16


def read_with_importer(
    name: str,
    data: bytes | None,
    schema: LabelSchema,
    *,
    files: Collection[str],
    where: str,
    name_sides: bool = False,
) -> LabelTable:
    """Read the table of a known set, or its file names if it has no table.

    Args:
        name: Key of `IMPORTERS`.
        data: Bytes of the table; None if the set has none.
        schema: The label schema. Other labels of the set are left out with a warning.
        files: File names in the source folder, used to complete names without extension or folder.
        where: Location of the table (or the folder, without a table), for messages.
        name_sides: Take the eye side from the file name where that is doubtful.

    Returns:
        A row or a reject for every photograph of every record. Missing files are rejected later, by `match_files`.

    Raises:
        ConfigError: No such importer, a table for a set without one, or no table for a set with one.
        DataError: Not the table of this set.
    """
    importer = IMPORTERS.get(name)
    if importer is None:
        raise ConfigError(f"unknown importer {name!r}", where=where, hint=f"known: {', '.join(IMPORTERS)}")
    importer = _NAME_SIDES.get(name, importer) if name_sides else importer
    if importer.has_table and data is None:
        raise ConfigError(f"{importer.collection} has a label table, but none is given", where=where)
    if not importer.has_table and data is not None:
        raise ConfigError(
            f"{importer.collection} has no label table: the class is in the file names",
            where=where,
            hint="leave the table out",
        )
    source = Source(data or b"", files, where)
    table = importer.records(source)
    if importer.has_table:
        _check_header(name, importer, table, source)
    result = read_photographs(importer, table, schema, files, where=where)
    if not importer.has_table and not result.rows:
        raise DataError(
            f"no file name is like those of {importer.collection}", where=where, hint=f"expected: {importer.expected}"
        )
    return result


def recognise(data: bytes, *, where: str) -> str | None:
    """Return the importer that fits a table with the most columns, or None."""
    start = data[:_FIRST_BYTES].decode(encoding_of(data), "ignore")
    source = Source((start[: start.rfind("\n") + 1] or start).encode(), (), where)
    found: dict[str, int] = {}
    for name, importer in IMPORTERS.items():
        if not importer.has_table:
            continue
        try:
            table = importer.records(source)
        except DataError:  # not a table of this set
            continue
        if not importer.missing(table.header) and importer.fits_names(table):
            found[name] = len(importer.locate(table.header))
    return max(found, key=lambda name: found[name], default=None)


def _check_header(name: str, importer: Importer, table: TableRecords, source: Source) -> None:
    """Refuse a table of another set, including one with all columns of this set and more."""
    missing = importer.missing(table.header)
    richer = _richer(importer, table.header) if not missing and importer.records is csv_records else None
    fits = importer.fits_names(table)
    if not missing and richer is None and fits:
        return
    likely = richer or recognise(source.data, where=source.where)
    hint = f"it looks like {IMPORTERS[likely].collection}: --importer {likely}" if likely not in (None, name) else ""
    expected = importer.expected or f"columns {', '.join(c for c in importer.columns if c not in importer.optional)}"
    lacks = "it also has the columns of another set" if fits else "its file names have an extension"
    lacks = f"it lacks {', '.join(missing)}" if missing else lacks
    meant = [f"rename {column!r} to {wanted!r}" for column, wanted in near_misses(table.header, missing).items()]
    raise DataError(
        f"this is not the table of {importer.collection}: {lacks}; expected {expected}, "
        f"found columns {shown_columns(table.header)}",
        where=source.where,
        hint=hint or ", ".join(meant) or "check the importer, or describe the table with a mapping (--mapping)",
    )


def _richer(importer: Importer, header: tuple[str, ...]) -> str | None:
    """Return another set that fits the header and has more columns than the importer."""
    found = set(importer.locate(header).values())
    for name, other in IMPORTERS.items():
        plain = other.has_table and other.records is csv_records
        if plain and not other.missing(header) and found < set(other.locate(header).values()):
            return name
    return None
