"""`synfundus augment`: plan what rare classes lack, draw it, look at it, and write it with the photographs as one set.

``generated/`` is the sample set with all that `sample` writes; its images are copied into the set, those that failed
the check left out. Val and test split stay as they are: figures on them are of photographs.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synfundus.artifacts.claim import Claim
from synfundus.artifacts.samples.augmented import AugmentedSet
from synfundus.artifacts.samples.layouts import SampleImages, open_sample_images
from synfundus.config.applications import AugmentConfig
from synfundus.config.generation import SampleConfig
from synfundus.config.sample_sets import PlanLabelsConfig
from synfundus.config.schema import RunConfig
from synfundus.distributed.agreement import on_rank_0
from synfundus.distributed.shared_work import share_work
from synfundus.distributed.world import World, without_timeout
from synfundus.errors import ConfigError
from synfundus.evaluation.examination.ledger import LEDGER_NAME, Check
from synfundus.evaluation.examination.verdict import SMALLEST_SIZE_PX
from synfundus.labels.plan import plan_table
from synfundus.labels.planning import PlanRequest, plan_rows
from synfundus.labels.schema import UNKNOWN_STATE, LabelSchema, difference
from synfundus.labels.seen import mark_rows
from synfundus.shards.label_reading import read_label_states
from synfundus.stages import Summary
from synfundus.stages.augment.readme import augmented_readme, classes_table
from synfundus.stages.plan_labels.job import PlannedRows, RowSource, open_source, show_plan
from synfundus.stages.rehearsal import read_model
from synfundus.stages.sample import job as sample
from synfundus.stages.verb import require
from synfundus.storage import documents, filesystem
from synfundus.storage.manifest import SPLITS, ShardSet, load_shard_set
from synfundus.telemetry.console import Console, PlainConsole

PLAN_NAME = "label-plan.csv"
GENERATED_DIR = "generated"
CLASSES_NAME = "classes.csv"
REJECTS_NAME = "rejects.jsonl"
README_NAME = "README.md"
_CLAIM = Claim("request.json", "synfundus-augment", 1, others="another training set")
_PART, _WRITTEN = "part", "written"
States = NDArray[np.int64]


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Write the training set ``config.augment`` asks for. Collective; resumes by itself.

    Returns:
        ``out``, ``num_real`` and ``num_synthetic`` of the train split, ``num_rejected`` (failed the check and left
        out), ``num_images`` by split.

    Raises:
        CheckpointError: No model.
        ConfigError: Labels that are not there, nothing that lacks, a model for other labels or another size, or a
            folder that holds something else.
        DataError: No image set.
    """
    section = config.augment
    out = require(section.out, flag="--out", key="augment.out")
    real, model = _open(section)
    planned = on_rank_0(lambda: _begin(section, config.seed, real, model, console), world)
    console.message(f"{planned:,} images to draw: {filesystem.join(out, PLAN_NAME)}")
    sample.run(config.model_copy(update={"sample": _asked(section, config.sample)}), world, console)
    generated = open_sample_images(filesystem.join(out, GENERATED_DIR))
    try:
        failed = {} if section.unchecked else _failed(generated)
        kept = None if section.all_labels else {*section.fill, *section.balance}
        made = AugmentedSet(out, section.format, real, generated, failed.keys(), kept)
        if not on_rank_0(lambda: filesystem.exists(filesystem.join(out, CLASSES_NAME)), world):
            _write(made, world, console)
        return on_rank_0(lambda: _publish(made, section, failed, console), without_timeout(world))
    finally:
        generated.close()


def rehearse(section: AugmentConfig, seed: int) -> str:
    """Describe what would be drawn, for a dry run; reads no image.

    Raises:
        SynfundusError: As the run.
    """
    stream = io.StringIO()
    console = PlainConsole(stream)
    planned = _plan(section, seed, _open(section)[0], console)
    show_plan(planned, console)
    return f"# images to draw\n{len(planned.index):,}\n{stream.getvalue()}\n"


def compare_claim(section: AugmentConfig, seed: int) -> None:
    """Refuse a folder of another set, as the run does."""
    real, model = _open(section)
    _CLAIM.compare(str(section.out), _request(section, seed, real, model))


def filled(source: RowSource, fill: Mapping[str, int], balance: Sequence[str]) -> dict[str, int]:
    """Return how many images every value of a label shall have; of labels to balance as many as the most frequent.

    Raises:
        ConfigError: A label that is not there, or that is given twice, or that no photograph knows.
    """
    if twice := sorted({*fill} & {*balance}):
        hint = "leave it out of --balance, or out of --fill"
        raise ConfigError(f"{', '.join(twice)} is filled and balanced", where="augment.balance", hint=hint)
    wanted = dict(fill)
    for name in balance:
        column = source.states[source.index, source.schema.names.index(source.schema[name].name)]
        counts = np.bincount(column)[UNKNOWN_STATE + 1 :]
        if not counts.sum():
            raise ConfigError(f"no photograph knows {name}", where="augment.balance", hint="name another label")
        wanted[name] = int(counts.max())
    return wanted


def _open(section: AugmentConfig) -> tuple[ShardSet, documents.Document]:
    """Open the photographs and the document of the model; both must fit."""
    real = load_shard_set(require(section.real, flag="--real", key="augment.real"), kind="images")
    url = require(section.model, flag="--model", key="augment.model")
    model = read_model(url)
    schema = LabelSchema.from_document(model["label_schema"], where=url)
    if text := difference(real.label_schema, schema):
        said = f"{real.url} and {url} have other labels: {text}"
        raise ConfigError(said, where="augment.model", hint="give a model that was trained with the labels of the set")
    sizes = int(real.properties["image_size_px"]), int(model["image_size_px"])
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"the photographs have {sizes[0]} px, the model draws {sizes[1]} px",
            where="augment.real",
            hint="give the set that the model was trained on, or prepare the photographs in its size",
        )
    if sizes[0] < SMALLEST_SIZE_PX and not section.unchecked:
        said = f"images of {sizes[0]} px are too small to look at; {SMALLEST_SIZE_PX} px are needed"
        raise ConfigError(said, where="augment.unchecked", hint="add --unchecked")
    return real, model


def _request(section: AugmentConfig, seed: int, real: ShardSet, model: documents.Document) -> dict[str, Any]:
    names = {"fill", "balance", "matched", "all_labels", "unchecked", "check_redraws"}
    return {
        "image_set_identity": real.identity,
        "model_fingerprint": model["fingerprints"]["model"],
        "seed": seed,
        "set_format": section.format,
        **section.model_dump(mode="json", include=names),
    }


def _plan(section: AugmentConfig, seed: int, real: ShardSet, console: Console) -> PlannedRows:
    source = open_source(PlanLabelsConfig(source=real.url), console)
    request = PlanRequest(num_images=0, fill=filled(source, section.fill, section.balance), matched=section.matched)
    counts = np.bincount(source.index, minlength=len(source.states))
    states, index, notes = plan_rows(source.states, counts, request, source.schema, seed=seed)
    for note in notes:
        console.warning(note)
    if not len(index):
        wanted = ", ".join(f"{name} {number:,}" for name, number in request.fill.items())
        raise ConfigError(
            f"nothing to draw: every value that occurs has as many photographs as asked for ({wanted})",
            where="augment",
            hint="give a larger number to --fill",
        )
    marks = None if source.seen is None else mark_rows(states, source.seen, source.schema.num_values)
    return PlannedRows(source, states, index, marks, filled=True)


def _begin(section: AugmentConfig, seed: int, real: ShardSet, model: documents.Document, console: Console) -> int:
    """Claim the folder and write the plan; returns how many images it has."""
    out = str(section.out)
    planned = _plan(section, seed, real, console)
    _CLAIM.make(out, _request(section, seed, real, model))
    told = (model.get("training") or {}).get("training_images")
    if told is not None and int(told) != real.num_samples("train"):
        console.warning(
            f"the model was trained on {told:,} photographs, the train split of this set has "
            f"{real.num_samples('train'):,}: if it has seen photographs of val or test, figures on these are too good"
        )
    table = plan_table(planned.states, planned.index, planned.marks, planned.source.schema)
    filesystem.write_bytes(filesystem.join(out, PLAN_NAME), table)
    return len(planned.index)


def _asked(section: AugmentConfig, given: SampleConfig) -> SampleConfig:
    """Return what `sample` is asked for."""
    out = str(section.out)
    return given.model_copy(
        update={
            "model": section.model,
            "out": filesystem.join(out, GENERATED_DIR),
            "labels": filesystem.join(out, PLAN_NAME),
            "label": {},
            "num_images": None,
            "format": "shards" if section.format == "shards" else "png",
            "layout": "imagefolder",
            "check": not section.unchecked,
            "check_redraws": section.check_redraws,
            "judge": section.judge,
        }
    )


def _failed(generated: SampleImages) -> dict[int, list[str]]:
    """Return the faults of the images that failed the check, by image."""
    url = filesystem.join(generated.url, LEDGER_NAME)
    checks = (Check.from_line(line, where=url) for line in filesystem.read_bytes(url).splitlines())
    return {one.image: list(one.examination.faults) for one in checks if not one.examination.passed}


def _write(made: AugmentedSet, world: World, console: Console) -> None:
    """Write the parts that are missing. Collective."""
    parts = made.parts()
    there = on_rank_0(lambda: sorted(made.finished()), world)
    missing = [part for part in parts if part.name not in {*there}]
    at_the_end, shared = without_timeout(world), share_work(world)
    shown = 0

    def show(done: int) -> None:
        nonlocal shown
        bar.advance(done - shown)
        shown = done

    with console.progress("writing the set", total=len(parts), unit="parts", start=len(parts) - len(missing)) as bar:
        while (turn := shared.take(_PART)) < len(missing):
            made.write(missing[turn])
            show(shared.add(_WRITTEN, 1))
        with shared.watched(_WRITTEN, show):
            at_the_end.barrier()


def _publish(made: AugmentedSet, section: AugmentConfig, failed: Mapping[int, list[str]], console: Console) -> Summary:
    """Complete the set, and say what it did to each class. On rank 0."""
    out, schema = made.out, made.schema
    kept = [image for image in range(len(made.generated)) if image not in failed]
    drawn = np.array([schema.encode(made.row(image)) for image in kept], dtype=np.int64)
    states: dict[str, States] = {
        split: read_label_states(made.real, splits=(split,)).astype(np.int64) for split in SPLITS
    }
    header, rows = classes_table(schema, states, drawn.reshape(len(kept), len(schema.labels)), section)
    numbers = {split: len(states[split]) for split in SPLITS}
    provenance = {
        "image_size_px": int(made.real.properties["image_size_px"]),
        "image_set_identity": made.real.identity,
        "model_fingerprint": made.generated.model,
        "num_real": numbers[SPLITS[0]],
        "num_synthetic": len(kept),
        "num_rejected": len(failed),
        "labels_of_synthetic_are": made.generated.provenance["labels_are"],
        **{name: made.real.properties[name] for name in ("num_patients", "drawn") if name in made.real.properties},
    }
    if not filesystem.exists(filesystem.join(out, CLASSES_NAME)):
        made.publish(provenance)
        lines = [{"image": image, "reason": "check_failed", "faults": faults} for image, faults in failed.items()]
        documents.write_lines(filesystem.join(out, REJECTS_NAME), lines)
        readme = augmented_readme(provenance, header, rows, kind=section.format)
        filesystem.write_bytes(filesystem.join(out, README_NAME), readme.encode())
        table = "".join(",".join(map(str, row)) + "\n" for row in (header, *rows))
        filesystem.write_bytes(filesystem.join(out, CLASSES_NAME), table.encode())
    console.table(
        "images of each class",
        header,
        [[f"{cell:,}" if isinstance(cell, int) else cell for cell in row] for row in rows],
    )
    if failed:
        console.warning(f"{len(failed):,} of {len(made.generated):,} generated images failed the check: left out")
    num_images = {**numbers, SPLITS[0]: numbers[SPLITS[0]] + len(kept)}
    return {
        "out": out,
        "num_real": numbers[SPLITS[0]],
        "num_synthetic": len(kept),
        "num_rejected": len(failed),
        "num_images": num_images,
    }
