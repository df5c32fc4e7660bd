"""Sets without a table, whose file names start with the class: REFUGE and PALM.

Their photographs are JPEG; masks and other drawings are BMP or PNG. These are not rows, so `prepare` rejects them as
not in the table.
"""

from __future__ import annotations

import re
from collections import defaultdict

from synfundus.labels.csv_table import RecordFault, TableRecord, TableRecords
from synfundus.photographs.importers.file_names import picture_stem, picture_suffix
from synfundus.photographs.importers.importer import Column, Importer, Source
from synfundus.photographs.ingest import is_picture_name

_NAME = re.compile(r"(?P<prefix>[A-Za-z]+)\d+")


def records_of_names(source: Source) -> TableRecords:
    """Return a record for each JPEG file: its name, and the letters before the number.

    Annotated copies in REFUGE have the names of the photographs, so files with the same name in two folders are both
    rejected.
    """
    names = sorted(name for name in source.files if is_picture_name(name))
    names = [name for name in names if picture_suffix(name).lower() in (".jpg", ".jpeg")]
    same: dict[str, list[str]] = defaultdict(list)
    for name in names:
        same[_stem(name)].append(name)
    records = []
    for line, name in enumerate(names, start=1):
        others = [other for other in same[_stem(name)] if other != name]
        if others:
            fault = RecordFault("ambiguous_file", f"the same name as {', '.join(others)}", name)
            records.append(TableRecord(line, (), fault))
        else:
            match = _NAME.fullmatch(_stem(name))
            records.append(TableRecord(line, (name, match["prefix"] if match else _stem(name))))
    return TableRecords(("file", "prefix"), tuple(records))


def _stem(name: str) -> str:
    return picture_stem(name.split("/")[-1])


REFUGE = Importer(
    collection="REFUGE",
    file="file",
    labels={"is_gc": (Column("prefix", {"g": 1, "n": 0, "V": None, "T": None}),)},
    has_table=False,
    expected="JPEG files named like g0001.jpg, n0001.jpg, V0001.jpg or T0001.jpg",
    records=records_of_names,
)
"""REFUGE: ``g0001.jpg`` has glaucoma, ``n0001.jpg`` has not; with ``V`` and ``T`` (validation, test) it is unknown.

Other diseases were not searched for. Letters are case-sensitive: ``N`` is a class of PALM. ``--source`` must be the
folder of the photographs (``Training400``); the annotation folder has drawings with the same names.
"""

PALM = Importer(
    collection="PALM",
    file="file",
    labels={"is_pm": (Column("prefix", {"P": 1, "H": 0, "N": 0, "V": None, "T": None}),)},
    has_table=False,
    expected="JPEG files named like H0001.jpg, N0001.jpg, P0001.jpg, V0001.jpg or T0001.jpg",
    records=records_of_names,
)
"""PALM: ``P0001.jpg`` is pathologic myopia; ``H`` is high myopia that is not pathologic, ``N`` is neither.

With ``V`` and ``T`` (validation, test) it is unknown. Degenerative myopia is not a class of the set: unknown.
"""
