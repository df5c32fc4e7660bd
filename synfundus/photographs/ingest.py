"""Decide about every photograph: inputs, duplicates, splits, shards.

All functions are pure. Before anything is decoded, table and folder give the inputs and their random keys; after every
photograph has been read once, duplicates are dropped, patients are assigned to splits, and shards are planned. All
other inputs become rejects with a reason.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from synfundus.photographs.label_mapping import PICTURE_SUFFIXES
from synfundus.photographs.label_table import LabelTable
from synfundus.seeding import derive_key
from synfundus.storage.manifest import SPLITS, apportion, shard_name

_OTHER_PICTURES = re.compile(r"\.(gif|hei[cf]|avif|jp2|j2k|jp[fx]|jxl|p[bn]m|psd|svg|cr[23]|nef|arw|dng)$")
"""Names of pictures that cannot be decoded."""


@dataclass(frozen=True)
class Reject:
    """An input that is not in the set.

    Attributes:
        source: Name of the photograph (or the row), for the crosswalk; never written into the set.
        patient: Patient, or empty.
        stage: ``table``, ``files``, ``decode``, ``crop`` or ``work``.
        reason: Reason of the rejection.
        detail: Values, for the crosswalk.
    """

    source: str
    patient: str
    stage: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Photograph:
    """An input whose file exists.

    Attributes:
        source: File name relative to the source folder.
        patient: Patient as given by the table, or empty.
        labels: Values by label name.
        size_bytes: Size of the file.
        also_patients: Other patients in dropped rows of the same photograph.
    """

    source: str
    patient: str
    labels: Mapping[str, int | None]
    size_bytes: int
    also_patients: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlannedSample:
    """A photograph with its key."""

    key: str
    source: str
    patient: str
    labels: Mapping[str, int | None]
    size_bytes: int

    @property
    def patient_group(self) -> str:
        """The unit that stays in one split: the patient, or the photograph if no patient is known."""
        return f"patient:{self.patient}" if self.patient else f"photograph:{self.source}"


@dataclass(frozen=True)
class PlannedShard:
    """A shard and its samples."""

    name: str
    split: str
    samples: tuple[PlannedSample, ...]


def safe_name(name: str) -> str | None:
    """Return a file name of the table in canonical form, or None if it leaves the source folder."""
    text = name.replace("\\", "/").removeprefix("./")
    parts = text.split("/")
    if not text or text.startswith("/") or "\0" in text or (len(text) > 1 and text[1] == ":"):
        return None
    if any(part in ("", ".", "..") for part in parts) or "://" in text:
        return None
    return text


def is_picture_name(name: str) -> bool:
    """Whether a file in the source folder counts as an input."""
    return name.lower().endswith(PICTURE_SUFFIXES) and not any(part.startswith(".") for part in name.split("/"))


def looks_like_picture(name: str) -> bool:
    """Whether a file without a row is counted: also pictures that cannot be decoded, or are packed."""
    plain = name.lower().removesuffix(".gz")
    return is_picture_name(_OTHER_PICTURES.sub(".png", plain))


def match_files(table: LabelTable, files: Mapping[str, int]) -> tuple[list[Photograph], list[Reject]]:
    """Match the rows of a table with the files of a folder.

    Args:
        table: The label table.
        files: Size in bytes of every file in the source folder, by name; below 0 for a link to nothing.

    Returns:
        Photographs in table order, and a reject for each row without a usable file and each picture without a
        row. Rows + pictures without a row = photographs + rejects. Further patients of a photograph are in
        `Photograph.also_patients`.
    """
    by_form = {_normal_form(name): name for name in sorted(files)}
    photographs: list[Photograph] = []
    rejects = [
        Reject(row.file or f"line {row.line}", row.patient, "table", row.reason, f"line {row.line}: {row.detail}")
        for row in table.rejected
    ]
    broken: set[str] = set()
    line_of: dict[str, int] = {}
    at: dict[str, int] = {}
    for row in table.rows:
        safe = safe_name(row.file)
        if safe is None:
            rejects.append(Reject(row.file, row.patient, "table", "unsafe_name", f"line {row.line}"))
            continue
        name = by_form.get(_normal_form(safe))
        if name is None:
            rejects.append(Reject(row.file, row.patient, "files", "missing_file", f"line {row.line}"))
        elif files[name] < 0:
            rejects.append(Reject(row.file, row.patient, "files", "broken_link", f"line {row.line}"))
            broken.add(name)
        elif name in line_of:
            first = photographs[at[name]]
            detail = f"first in line {line_of[name]}"
            detail += "" if dict(row.labels) == dict(first.labels) else "; other labels"
            if row.patient and row.patient != first.patient:
                detail += "; other patient" if first.patient else ""
                photographs[at[name]] = replace(first, also_patients=(*first.also_patients, row.patient))
            rejects.append(Reject(f"{name} (line {row.line})", row.patient, "table", "duplicate_row", detail))
        else:
            line_of[name], at[name] = row.line, len(photographs)
            photographs.append(Photograph(name, row.patient, row.labels, files[name]))
    mentioned = (
        set(line_of) | broken | {by_form.get(_normal_form(safe_name(row.file) or row.file)) for row in table.rejected}
    )
    rejects += [
        Reject(name, "", "files", "not_in_table" if files[name] >= 0 else "broken_link")
        for name in sorted(files)
        if name not in mentioned and looks_like_picture(name)
    ]
    return photographs, rejects


def _normal_form(name: str) -> str:
    """Return a name in the form used for comparison: tables and file systems encode accents differently."""
    return unicodedata.normalize("NFC", name)


def plan_samples(photographs: Iterable[Photograph], secret: bytes) -> list[PlannedSample]:
    """Assign each photograph its key.

    Args:
        photographs: In table order.
        secret: Secret for `sample_key`.
    """
    # saves memory: millions of rows, few label patterns
    shared: dict[tuple[tuple[str, int | None], ...], Mapping[str, int | None]] = {}
    return [
        PlannedSample(
            sample_key(secret, one.source),
            one.source,
            one.patient,
            shared.setdefault(tuple(one.labels.items()), one.labels),
            one.size_bytes,
        )
        for one in photographs
    ]


def drop_duplicates(
    samples: Sequence[PlannedSample], contents: Mapping[str, tuple[str, str]]
) -> tuple[list[PlannedSample], list[Reject], list[tuple[PlannedSample, PlannedSample]]]:
    """Drop photographs whose file, or encoded image, equals an earlier one byte for byte.

    Args:
        samples: In the order that decides which one is kept.
        contents: Hash of the file and hash of the image, by key.

    Returns:
        Kept samples, a reject for each dropped one, and the pairs (kept, dropped), whose patients share a split.
    """
    first: dict[str, PlannedSample] = {}
    kept, rejects, pairs = [], [], []
    for sample in samples:
        file, image = (f"{kind}:{value}" for kind, value in zip(("file", "image"), contents[sample.key], strict=True))
        known = next((first[name] for name in (file, image) if name in first), None)
        if known is None:
            kept.append(sample)
            first[file] = first[image] = sample
            continue
        same = "file" if file in first else "pixels"
        first.setdefault(file, known)
        labels = "" if dict(known.labels) == dict(sample.labels) else "; other labels"
        patient = "; other patient" if known.patient and sample.patient and known.patient != sample.patient else ""
        detail = f"same {same} as {known.source}{labels}{patient}"
        rejects.append(Reject(sample.source, sample.patient, "files", "duplicate_of", detail))
        pairs.append((known, sample))
    return kept, rejects, pairs


def split_patients(
    groups: Iterable[str], fractions: tuple[float, float, float], seed: int, *, given: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Assign each patient to train, val or test.

    Patients are ordered by a keyed hash and divided by exact fractions; every split with a positive fraction gets at
    least one patient if there are enough.

    Args:
        groups: Patients, in any order, repetitions allowed.
        fractions: Fractions of train, val and test; their sum is 1.
        seed: Another seed gives another split.
        given: Predefined splits of some patients; the others are assigned to reach the fractions as far as possible.
    """
    known = dict(given or {})
    ordered = sorted(set(groups), key=lambda group: (derive_key(seed, "split", group), group))
    counts = _patients_per_split(len(ordered), fractions)
    free = [group for group in ordered if group not in known]
    if known:
        taken = Counter(known[group] for group in ordered if group in known)
        missing = [max(count - taken[split], 0) for split, count in zip(SPLITS, counts, strict=True)]
        counts = _patients_per_split(
            len(free), [count / sum(missing) for count in missing] if sum(missing) else fractions
        )
    names = [split for split, count in zip(SPLITS, counts, strict=True) for _ in range(count)]
    return {**known, **dict(zip(free, names, strict=True))}


def _patients_per_split(total: int, fractions: Sequence[float]) -> list[int]:
    """Divide patients by fractions, then one each for the empty splits, train paying last."""
    counts = apportion(total, fractions)
    for i, fraction in enumerate(fractions):
        largest = max(range(len(counts)), key=lambda j: (counts[j], -j))
        if fraction > 0 and counts[i] == 0 and counts[largest] > 1:
            counts[i] += 1
            counts[largest] -= 1
    return counts


def sample_key(secret: bytes, source: str) -> str:
    """Return the key of a photograph: unpredictable without the secret, the same for the same secret.

    26 characters of lower-case base32, 130 bits of HMAC-SHA256.
    """
    mac = hmac.new(secret, source.encode("utf-8", "surrogateescape"), hashlib.sha256).digest()
    return base64.b32encode(mac).decode("ascii").lower()[:26]


def plan_shards(samples: Iterable[PlannedSample], splits: Mapping[str, str], *, max_samples: int) -> list[PlannedShard]:
    """Assign samples to shards of nearly equal size.

    Samples of a split are ordered by their random keys, so their order reveals nothing about the source.

    Args:
        samples: All samples of the set.
        splits: Split of each sample by key.
        max_samples: Maximum samples per shard.
    """
    by_split: dict[str, list[PlannedSample]] = {split: [] for split in SPLITS}
    for sample in samples:
        by_split[splits[sample.key]].append(sample)
    shards = []
    for split, members in by_split.items():
        members.sort(key=lambda sample: sample.key)
        number = -(-len(members) // max_samples)
        for at in range(number):
            start, end = at * len(members) // number, (at + 1) * len(members) // number
            shards.append(PlannedShard(shard_name(split, at), split, tuple(members[start:end])))
    return shards
