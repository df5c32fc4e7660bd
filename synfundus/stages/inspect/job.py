"""`synfundus inspect`: what a set or a folder of samples holds, as tables, JSON, a picture; `--verify` reads it all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, cast

import numpy as np

from synfundus.config.photographs import InspectConfig
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import World
from synfundus.errors import ConfigError, CorruptShard, DataError, StorageError
from synfundus.labels.counts import LabelCounts, count_labels
from synfundus.labels.schema import label_caption
from synfundus.labels.seen import LABEL_ROWS
from synfundus.pictures.inspection import co_occurrence_map, compose_sheet, label_bars, moments_picture
from synfundus.pictures.sheets import Pixels, contact_sheet, encode_png, patients_note
from synfundus.seeding import keyed_generator
from synfundus.shards.members import META, decode_json
from synfundus.shards.set_survey import SetSurvey, sample_decoder
from synfundus.stages import Summary
from synfundus.stages.inspect.png_folder import (
    chosen_png_files,
    is_png_folder,
    open_png_folder,
    show_png_folder,
    survey_png_folder,
)
from synfundus.stages.verb import few_patients
from synfundus.storage import documents, filesystem
from synfundus.storage.manifest import SPLITS, ShardEntry, ShardSet, open_set
from synfundus.storage.tarshard import TarShardReader
from synfundus.telemetry.console import Console

REPORT_NAME = "inspect.json"
SHEET_NAME = "contact_sheet.png"
REPORT_FORMAT = "synfundus-inspection"
REPORT_VERSION = 1
MAX_LISTED_PROBLEMS = 10_000
_SHOWN_PROBLEMS = 12
_COLUMNS = 10
_TILE_PX = 128
_MOST_LETTERS = 100


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Inspect a set.

    Returns:
        The report, written to ``inspect.json`` with ``--out``; ``ok`` is false and ``exit_code`` 3 if there
        are problems.

    Raises:
        ConfigError: No set is given.
        DataError: There is no set.
    """
    del world
    section = config.inspect
    if section.data is None:
        raise ConfigError("--data is missing", where="inspect.data", hint="give --data")
    look = _look_at_png_files if is_png_folder(section.data) else _look_at_shards
    return look(section.data, section, config.seed, console)


def _look_at_png_files(url: str, section: InspectConfig, seed: int, console: Console) -> Summary:
    folder = open_png_folder(url)
    if section.out is not None:
        check_out(section.out)
    report = survey_png_folder(folder, verify=section.verify, console=console)

    def sheet() -> Pixels:
        images, labels = chosen_png_files(folder, wanted=section.contact_sheet_images, seed=seed)
        title = f"synthetic · {len(images):,} of {report['num_samples']:,} images · labels asked for"
        return _sheet([label_bars(folder.counts())], images, [label_caption(row) for row in labels], title)

    written = _write(section, report, sheet, mark="yes")
    show_png_folder(report, console)
    _tell(report, written, console)
    return report


def _look_at_shards(url: str, section: InspectConfig, seed: int, console: Console) -> Summary:
    shard_set = open_set(url)
    if section.out is not None:
        check_out(section.out)
    survey = SetSurvey(shard_set, verify=section.verify)
    action = "verifying" if section.verify else "reading labels"
    with console.progress(action, total=shard_set.num_samples(), unit="samples") as bar:
        above_0: dict[str, Counter[str]] = {split: Counter() for split in _splits(shard_set)}
        rows = _by_split(survey.label_rows(bar.advance), survey, above_0)
        counts = count_labels(rows, shard_set.label_schema)
    if section.verify:
        survey.check_other_files()
    report = _report(shard_set, survey, counts) | {"above_0": {split: dict(n) for split, n in above_0.items()}}
    wanted = section.contact_sheet_images
    mark = "yes" if shard_set.kind == "samples" else "drawn" if shard_set.properties.get("drawn") else ""
    note = _note(shard_set)
    sheet = partial(_sheet_of_shards, shard_set, counts, wanted=wanted, seed=seed)
    written = _write(section, report, sheet, mark=mark, note=note)
    _print(console, shard_set, survey, counts, report)
    _tell(report, written, console)
    return report


def _note(shard_set: ShardSet) -> str:
    """Return what a sheet of a set says of patients."""
    return patients_note(shard_set.properties) if shard_set.kind in ("images", "augmented") else ""


def _write(section: InspectConfig, report: Summary, sheet: Callable[[], Pixels], *, mark: str, note: str = "") -> str:
    """Write the report and the sheet where they are asked for; returns what is said of it."""
    images = section.contact_sheet_images
    if section.out is None:
        return f"nothing was written; give --out DIR for {REPORT_NAME}" + (" and a contact sheet" if images else "")
    where = filesystem.join(section.out, REPORT_NAME)
    documents.write_document(where, report, format_name=REPORT_FORMAT, version=REPORT_VERSION)
    if images:
        data = encode_png(sheet(), text={"synthetic": mark, "Warning": note}, compress_level=6)
        filesystem.write_bytes(filesystem.join(section.out, SHEET_NAME), data)
    return f"written: {where}" + (f", {SHEET_NAME}{note and f' ({note})'}" if images else "")


def _tell(report: Summary, written: str, console: Console) -> None:
    """Say which problems were found, the verdict, and what was written."""
    for problem in report["problems"][:_SHOWN_PROBLEMS]:
        console.warning(f"{problem['place']}: {problem['reason']}")
    if (hidden := report["num_problems"] - _SHOWN_PROBLEMS) > 0:
        console.warning(f"and {hidden:,} more problems; --out DIR lists them in {REPORT_NAME}")
    console.message(_verdict(report))
    console.message(written)


def _by_split(
    rows: Iterable[Mapping[str, int | None]], survey: SetSurvey, above_0: Mapping[str, Counter[str]]
) -> Iterator[Mapping[str, int | None]]:
    """Pass label rows on, and count for each split the samples in which a label is above 0."""
    splits = {entry.name: entry.split for entry in survey.shard_set.shards}
    for row in rows:
        above_0[splits[survey.reports[-1].name]].update(name for name, value in row.items() if value)
        yield row


def check_out(out: str) -> None:
    """Refuse to replace files that `inspect` did not write; its sheet always has a report beside it.

    Raises:
        ConfigError: There is such a file.
    """
    report, sheet = (filesystem.join(out, name) for name in (REPORT_NAME, SHEET_NAME))
    try:
        if filesystem.exists(report):
            documents.read_document(report, format_name=REPORT_FORMAT, version=REPORT_VERSION)
            return
    except DataError as error:
        raise ConfigError(
            f"`inspect` did not write this: {error.message}", where=report, hint="give another --out"
        ) from error
    if filesystem.exists(sheet):
        raise ConfigError("`inspect` did not write this file", where=sheet, hint="give another --out")


def _report(shard_set: ShardSet, survey: SetSurvey, counts: LabelCounts) -> dict[str, Any]:
    problems, good = survey.problems, survey.good
    return {
        "ok": not problems,
        "exit_code": DataError.exit_code if problems else 0,
        "location": shard_set.url,
        "kind": shard_set.kind,
        "identity": shard_set.identity,
        "num_samples": shard_set.num_samples(),
        "splits": {split: _split_sizes(shard_set.split_shards(split)) for split in _splits(shard_set)},
        "members": {name: asdict(sizes) for name, sizes in survey.members.items()},
        "labels": counts.to_document(),
        "rejects": dict(shard_set.rejects),
        "properties": dict(shard_set.properties),
        "verified": survey.verify,
        "good": good,
        "damaged": shard_set.num_samples() - good,
        "damaged_shards": [
            {"name": report.name, "num_samples": report.num_samples, "good": report.good}
            for report in survey.reports
            if report.problems
        ],
        "num_problems": len(problems),
        "problems_by_reason": survey.reasons(),
        "problems": [asdict(problem) for problem in problems[:MAX_LISTED_PROBLEMS]],
    }


def _splits(shard_set: ShardSet) -> list[str]:
    named = {shard.split for shard in shard_set.shards}
    return [*(split for split in SPLITS if split in named), *sorted(named - set(SPLITS))]


def _split_sizes(shards: Sequence[ShardEntry]) -> dict[str, int]:
    sizes = sorted(shard.bytes for shard in shards)
    return {
        "num_samples": sum(shard.num_samples for shard in shards),
        "num_shards": len(shards),
        "bytes": sum(sizes),
        "smallest_shard_bytes": sizes[0],
        "median_shard_bytes": sizes[len(sizes) // 2],
        "largest_shard_bytes": sizes[-1],
        "smallest_shard_samples": min(shard.num_samples for shard in shards),
        "largest_shard_samples": max(shard.num_samples for shard in shards),
    }


def _size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def _print(console: Console, shard_set: ShardSet, survey: SetSurvey, counts: LabelCounts, report: Summary) -> None:
    sizes = ("bytes", "smallest_shard_bytes", "median_shard_bytes", "largest_shard_bytes")
    console.table(
        f"{shard_set.kind}: {shard_set.num_samples():,} samples, identity {shard_set.identity[:12]}",
        ("split", "samples", "shards", "bytes", "smallest shard", "median", "largest"),
        [
            (split, f"{row['num_samples']:,}", f"{row['num_shards']:,}", *(_size(row[name]) for name in sizes))
            for split, row in report["splits"].items()
        ],
    )
    console.table(
        "members",
        ("extension", "count", "bytes", "smallest", "mean", "largest"),
        [
            (
                f".{name}",
                f"{one.count:,}",
                *map(_size, (one.total_bytes, one.smallest_bytes)),
                *map(_size, (one.total_bytes / max(one.count, 1), one.largest_bytes)),
            )
            for name, one in survey.members.items()
        ],
    )
    header, *rows = counts.value_rows()
    console.table(f"labels of {counts.num_samples:,} samples", header, rows)
    splits = report["above_0"]
    console.table(
        "samples above 0, by split",
        ("label", *splits),
        [(name, *(f"{found.get(name, 0):,}" for found in splits.values())) for name in shard_set.label_schema.names],
    )
    for line in few_patients(shard_set.properties.get("num_patients"), num_samples=counts.num_samples):
        console.warning(line)
    if shard_set.rejects:
        console.table("rejects", ("reason", "inputs"), [(reason, f"{n:,}") for reason, n in shard_set.rejects.items()])
    properties = {name: value for name, value in shard_set.properties.items() if name != "label_counts"}
    console.table("properties", ("name", "value"), list(_readable(properties)))


def _readable(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the values of a document by dotted name, as people write them."""
    for name, value in document.items():
        if name == LABEL_ROWS:
            continue
        if isinstance(value, Mapping):
            yield from _readable(value, f"{prefix}{name}.")
            continue
        words = {None: "-", True: "yes", False: "no"}
        items = value if isinstance(value, list) else [value]
        texts = [words[one] if one is None or isinstance(one, bool) else str(one) for one in items]
        text = ", ".join(texts) or "none"
        yield prefix + name, text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS - 1]}…"


def _verdict(report: Summary) -> str:
    total, good, png_files = report["num_samples"], report["good"], "missing" in report
    if not report["verified"]:
        read = (
            f"{good:,} of {total:,} images are there"
            if png_files
            else f"the labels of {good:,} of {total:,} samples were read"
        )
        read += "; --verify reads every byte"
        return read if report["ok"] else f"{read}; {report['num_problems']:,} problems"
    if report["ok"]:
        return f"verified: {total:,} samples, every hash matches, every sample decodes"
    where = "" if png_files else f" in {len(report['damaged_shards'])} shards"
    return f"damaged: {good:,} of {total:,} samples are valid, problems{where} ({report['num_problems']:,})"


def _sheet(upper: Sequence[Pixels], images: Sequence[Pixels], captions: Sequence[str], title: str) -> Pixels:
    """Place charts above a selection of pictures."""
    if not images:
        return compose_sheet(upper, None)
    tile_px = min(_TILE_PX, max(images[0].shape[:2]))
    tiles = contact_sheet(images, captions=captions, columns=_COLUMNS, tile_px=tile_px, title=title)
    return compose_sheet(upper, tiles)


def _sheet_of_shards(shard_set: ShardSet, counts: LabelCounts, *, wanted: int, seed: int) -> Pixels:
    """Draw the label counts, the co-occurrence, and a random selection of samples."""
    images, captions = _chosen_pictures(shard_set, wanted=wanted, seed=seed) if shard_set.num_samples() else ([], [])
    mark = "synthetic · " if shard_set.kind == "samples" else ""
    what = "first three channels of the mean" if shard_set.kind == "latents" else "images"
    title = f"{mark}{what} of {len(images):,} of {shard_set.num_samples():,} samples · {shard_set.identity[:12]}"
    title += (note := _note(shard_set)) and f" · {note}"
    return _sheet([label_bars(counts.values), co_occurrence_map(counts.co_occurrence)], images, captions, title)


def _chosen_pictures(shard_set: ShardSet, *, wanted: int, seed: int) -> tuple[list[Pixels], list[str]]:
    """Return pictures and captions of a random selection of samples, without damaged ones."""
    total = shard_set.num_samples()
    chosen = np.sort(keyed_generator(seed, "inspect").choice(total, size=min(wanted, total), replace=False))
    ends = np.cumsum([shard.num_samples for shard in shard_set.shards])
    decode = sample_decoder(shard_set)
    images: list[Pixels] = []
    captions: list[str] = []
    for number in np.unique(np.searchsorted(ends, chosen, side="right")).tolist():
        entry = shard_set.shards[number]
        first = int(ends[number]) - entry.num_samples
        rows = chosen[(chosen >= first) & (chosen < first + entry.num_samples)] - first
        try:
            reader = TarShardReader(shard_set.shard_url(entry), index_sha256=entry.index_sha256)
        except (CorruptShard, StorageError):
            continue
        for row in rows.tolist():
            try:
                members = reader.read(row)
                arrays = decode(reader.index.keys[row], members, entry.name)
                labels = decode_json(members[META], where=entry.name)["labels"]
            except (CorruptShard, StorageError, IndexError):
                continue
            images.append(_picture(shard_set, arrays))
            captions.append(f"{entry.split}: {label_caption(labels)}")
        reader.close()
    return images, captions


def _picture(shard_set: ShardSet, arrays: dict[str, Any]) -> Pixels:
    if "pixels" in arrays:
        return cast(Pixels, arrays["pixels"])
    moments = arrays["moments"]
    channels = moments.shape[0] // 2
    own = moments[:channels].astype(np.float32)
    mean = shard_set.properties.get("latent_mean", own.mean(axis=(1, 2)).tolist())
    std = shard_set.properties.get("latent_std", own.std(axis=(1, 2)).tolist())
    return moments_picture(moments, mean=mean, std=std, edge_px=_TILE_PX)
