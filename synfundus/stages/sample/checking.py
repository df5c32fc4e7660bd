"""`sample --check`: every image is looked at, what fails is drawn again from other noise, and each has a line.

The lines of a part are beside the set until it is complete, in ``checks/FIRST-LAST.jsonl``, written before the part.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synfundus.errors import ConfigError, DataError
from synfundus.evaluation.examination.ledger import LEDGER_NAME, Check, summarise
from synfundus.evaluation.examination.verdict import SMALLEST_SIZE_PX, Examination, Fault, examine
from synfundus.evaluation.judge import Judge
from synfundus.evaluation.judge_file import JUDGE_NAME, Doubts, contradicted, unpack_judge
from synfundus.labels.plan import LabelRow
from synfundus.labels.schema import LabelSchema
from synfundus.storage import filesystem

CHECKS_DIR = "checks"
_NAME = re.compile(r"\d{8,}-\d{8,}\.jsonl")
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Inspector:
    """What images are looked at with.

    Attributes:
        schema: The labels.
        most_redraws: How often an image is drawn again at most.
        judge: Reads the labels; None if nothing does.
        doubts: What it can tell, and how sure it has to be.
    """

    schema: LabelSchema
    most_redraws: int
    judge: Judge | None = None
    doubts: Doubts | None = None

    def look(self, pixels: Pixels, rows: Sequence[LabelRow]) -> list[Examination]:
        """Look at images ``[n, h, w, 3]`` that were drawn for rows of labels."""
        seen = [examine(image, row, self.schema) for image, row in zip(pixels, rows, strict=True)]
        if self.judge is None:
            return seen
        doubted = contradicted(self.judge, self.doubts or {}, pixels, rows)
        return [
            replace(one, faults=(*one.faults, Fault.CONTRADICTED), contradicted=names) if names else one
            for one, names in zip(seen, doubted, strict=True)
        ]


def open_inspector(
    schema: LabelSchema, image_size_px: int, *, most_redraws: int, judge: str | None
) -> tuple[Inspector, bytes]:
    """Return an inspector, and the file of its judge; empty without one.

    Args:
        schema: The labels of the model.
        image_size_px: Width and height of its images.
        most_redraws: How often an image is drawn again at most.
        judge: Folder written by `judge`.

    Raises:
        ConfigError: Images too small to look at.
        DataError: There is no judge, or it is for other labels.
    """
    if image_size_px < SMALLEST_SIZE_PX:
        raise ConfigError(
            f"images of {image_size_px} px are too small to look at; {SMALLEST_SIZE_PX} px are needed",
            where="sample.check",
            hint="leave --check out",
        )
    if judge is None:
        return Inspector(schema, most_redraws), b""
    url = filesystem.join(judge, JUDGE_NAME)
    if not filesystem.exists(url):
        raise DataError(
            f"there is no {JUDGE_NAME}", where=judge, hint="give the --out of a `synfundus judge` that has ended"
        )
    data = filesystem.read_bytes(url)
    network, doubts = unpack_judge(data, where=url)
    foreign = [name for name in doubts if name not in schema.names]
    if foreign:
        raise DataError(
            f"the judge reads labels that the model does not have: {', '.join(foreign)}",
            where=url,
            hint="give a judge that learned from photographs of the model's labels",
        )
    return Inspector(schema, most_redraws, network, doubts), data


def marks_of(check: Check) -> dict[str, str]:
    """Return what the text chunks of an image say of its check; nothing if it passed at once."""
    marks = {"attempt": str(check.attempt)} if check.attempt else {}
    faults = ", ".join(check.examination.faults)
    return marks | ({"check": f"failed: {faults}"} if faults else {})


def write_checks(out: str, checks: Sequence[Check]) -> None:
    """Write the lines of a part."""
    url = _url(out, range(checks[0].image, checks[-1].image + 1))
    filesystem.write_bytes(url, b"".join(check.to_line() for check in checks))


def publish_checks(out: str, parts: Sequence[range]) -> dict[str, Any]:
    """Join the lines of all parts to a ledger; those of parts that an earlier request drew are in the ledger there is.

    Returns:
        Counts of images, redraws and faults.

    Raises:
        DataError: Images without a line.
    """
    ledger = filesystem.join(out, LEDGER_NAME)
    earlier = filesystem.read_bytes(ledger).splitlines(keepends=True) if filesystem.exists(ledger) else []
    there = set(filesystem.list_names(filesystem.join(out, CHECKS_DIR)))

    def lines(images: range) -> list[bytes]:
        if _name(images) in there:
            return filesystem.read_bytes(_url(out, images)).splitlines(keepends=True)
        return earlier[images[0] : images[-1] + 1]

    def checks() -> Iterator[Check]:
        with filesystem.atomic_write(ledger) as stream:
            for number, line in enumerate(chain.from_iterable(map(lines, parts))):
                stream.write(line)
                check = Check.from_line(line, where=ledger)
                if check.image != number:
                    break
                yield check

    counts = summarise(checks())
    if counts["num_images"] != parts[-1][-1] + 1:
        raise DataError(
            f"the check of image {counts['num_images']} is missing",
            where=ledger,
            hint="give another --out: the images of this one are kept as they are",
        )
    for name in filter(_NAME.fullmatch, there):
        filesystem.remove(filesystem.join(out, CHECKS_DIR, name))
    if not filesystem.list_names(filesystem.join(out, CHECKS_DIR)):
        filesystem.remove(filesystem.join(out, CHECKS_DIR), recursive=True)
    return counts


def told(counts: Mapping[str, Any]) -> str:
    """Say in one line what the checks found."""
    left = ", ".join(f"{name} {number:,}" for name, number in counts["faults_left"].items())
    rest = f"{counts['num_failed']:,} still fail ({left}), named in {LEDGER_NAME}" if left else "none fails now"
    passed, number = counts["num_passed_at_once"], counts["num_images"]
    return f"looked at {number:,} images: {passed:,} passed at once, {counts['num_redraws']:,} redraws, {rest}"


def _name(images: range) -> str:
    return f"{images[0]:08d}-{images[-1]:08d}.jsonl"


def _url(out: str, images: range) -> str:
    return filesystem.join(out, CHECKS_DIR, _name(images))
