"""`synfundus sample`: synthetic images for labels, the same bytes from any number of ranks."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from synfundus.artifacts.cards.set_cards import publish_cards
from synfundus.artifacts.model import Model, canonical_batch_size, guidance_of
from synfundus.artifacts.model_folder import find_pipeline, load_pipeline
from synfundus.artifacts.run_folder import operator, versions
from synfundus.artifacts.samples import layouts as sample_layouts
from synfundus.artifacts.samples.description import LABELS_ARE, PROVENANCE_NAME, RELEASE, sample_readme, sheet_page
from synfundus.artifacts.samples.stores import PngStore, SampleStore, ShardStore
from synfundus.config.generation import SampleConfig
from synfundus.config.schema import RunConfig
from synfundus.diffusion.guidance import check_guidance
from synfundus.diffusion.sampling import scheduler_for
from synfundus.distributed.agreement import on_rank_0, require_same
from synfundus.distributed.numerics import reproducible_threads
from synfundus.distributed.world import World, torch_device, without_timeout
from synfundus.labels.plan import REQUESTED, LabelRow, label_table
from synfundus.labels.schema import label_caption
from synfundus.labels.unseen import check_unseen
from synfundus.pictures.sheets import contact_sheet, encode_png
from synfundus.redaction import redact
from synfundus.shards.reader import decode_image
from synfundus.stages import Summary, build
from synfundus.stages.rehearsal import read_requests
from synfundus.stages.sample.checking import open_inspector, publish_checks, told
from synfundus.stages.sample.factory import COMPRESS_LEVEL, Work, generate
from synfundus.stages.sample.guide import load_guide
from synfundus.stages.sample.request import (
    EARLIER_NAMES,
    FORMAT_NAME,
    FORMAT_VERSION,
    LABELS_NAME,
    README_NAME,
    SHEET_NAME,
    claim,
    request_of,
)
from synfundus.stages.verb import require
from synfundus.storage import documents, filesystem
from synfundus.storage.locations import resolved
from synfundus.telemetry.console import Console

_SHEET_COLUMNS = 8
_SHEET_TILE_PX = 192


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Generate the images ``config.sample`` asks for. Collective; resumes by itself.

    Returns:
        ``out``, ``num_images``, ``num_kept`` (were there already), ``fingerprint``, and ``checks`` with ``--check``.

    Raises:
        CheckpointError: No model.
        ConfigError: Labels the model does not know, a sampler that cannot draw from it, or a folder that holds
            something else.
        DataError: A label plan that cannot be read; the row is named.
    """
    out = require(config.sample.out, flag="--out", key="sample.out")
    folder = find_pipeline(require(config.sample.model, flag="--model", key="sample.model"))
    build.tensor_cores(True, world, console)  # images have eight bits
    device = torch_device(world)
    section = _settled(config.sample, world, console)
    pipeline = load_pipeline(folder, device=device)
    guide = load_guide(section.guide_model, pipeline, device=device, console=console) if section.guide_model else None
    sampling = build.sampler_settings(section, pipeline.recommended_sampling, schema=pipeline.label_schema)
    scheduler_for(sampling.sampler, pipeline.schedule_settings)  # refuse before the folder is claimed
    check_guidance(guidance_of(sampling, pipeline.label_schema, guide=None if guide is None else guide.denoiser))
    requests = read_requests(section, pipeline.label_schema)
    rows, where = requests.rows, section.labels or "sample.label"
    doubts = check_unseen(requests, pipeline.training_summary, allowed=section.allow_unseen, where=where)
    fingerprints = {"model": pipeline.fingerprint, "autoencoder": pipeline.autoencoder_fingerprint}
    if guide is not None:
        fingerprints["guide"] = guide.fingerprint
    inspector, judge = (
        open_inspector(
            pipeline.label_schema,
            pipeline.image_size_px,
            most_redraws=section.check_redraws,
            judge=section.judge,
        )
        if section.check
        else (None, b"")
    )
    request = request_of(section, sampling, config.seed, fingerprints, rows, pipeline.label_schema, judge=judge)
    require_same(request, world)
    on_rank_0(lambda: claim(out, request, rows, pipeline.label_schema), world)
    console.message(f"{sampling.sampler}, {sampling.num_steps} steps, guidance {sampling.guidance_scale:g}")
    for doubt in doubts:
        console.warning(doubt)
    dtype = build.torch_dtype(section.precision)
    for model in filter(None, (pipeline, guide)):
        build.ready_to_sample(
            model, config.launch, dtype=dtype, world=world, console=console, compile_denoiser=section.compile
        )
    store = _store(section, config.seed, out, pipeline, rows)
    work = Work(sampling, config.seed, pipeline, rows, section.batch_size, store, device, guide, inspector, out)
    with reproducible_threads(device=world.device):
        num_kept = generate(work, world, console)
    counts = on_rank_0(lambda: _publish(work, section, out, request), without_timeout(world))
    kept = f" ({num_kept:,} were there, in whole batches)" if num_kept else ""
    console.message(f"{len(rows):,} synthetic images in {out}{kept}")
    if counts:
        console.message(told(counts))
    checked = {"checks": counts} if counts else {}
    return {"out": out, "num_images": len(rows), "num_kept": num_kept, "fingerprint": pipeline.fingerprint, **checked}


def _settled(section: SampleConfig, world: World, console: Console) -> SampleConfig:
    """Return the section with the batch size of the computation."""
    size = canonical_batch_size(section.batch_size, device=world.device)
    if size != section.batch_size and "batch_size" in section.model_fields_set:
        console.message(f"a CPU draws {size} images at a time, so that their bytes do not depend on sample.batch_size")
    return section.model_copy(update={"batch_size": size})


def _store(section: SampleConfig, seed: int, out: str, pipeline: Model, rows: Sequence[LabelRow]) -> SampleStore:
    if section.format == "png":
        name = sample_layouts.synfundus_1m_name if section.layout == "synfundus-1m" else sample_layouts.file_name
        return PngStore(out, num_images=len(rows), batch_size=section.batch_size, name=name)
    return ShardStore(
        out,
        rows=rows,
        schema=pipeline.label_schema,
        seed=seed,
        image_size_px=pipeline.image_size_px,
        batch_size=section.batch_size,
    )


def _publish(work: Work, section: SampleConfig, out: str, request: dict[str, Any]) -> dict[str, Any]:
    """Check that every image exists, then write labels, provenance, contact sheet and what explains them.

    Returns:
        What the checks found; empty without them.
    """
    counts = publish_checks(out, work.store.parts()) if section.check else {}
    properties = {
        "synthetic": True,
        "statement": "Every image of this set was generated by a model; none is a photograph.",
        "labels_are": LABELS_ARE,
        "release": RELEASE,
        **request,
        "latent_set_identity": work.pipeline.latent_set_identity,
        "image_size_px": work.pipeline.image_size_px,
        "noise": "image i: Philox keyed by (seed, 'sample'), counter i",
        "versions": versions(),
        **({"checks": counts} if counts else {}),
    }
    work.store.publish(properties=properties)
    for name in EARLIER_NAMES:
        filesystem.remove(filesystem.join(out, name))
    files = [work.store.file_name(image) for image in range(len(work.rows))]
    names = work.pipeline.label_schema.names
    rows = [{REQUESTED + name: row.get(name) for name in names} for row in work.rows]
    table = label_table(rows, [REQUESTED + name for name in names], file_name=files)
    filesystem.write_bytes(filesystem.join(out, LABELS_NAME), table)
    if section.layout == "synfundus-1m":
        conditions = sample_layouts.synfundus_1m_table(work.rows, names)
        filesystem.write_bytes(filesystem.join(out, sample_layouts.SYNFUNDUS_1M_TABLE), conditions)
    count = min(section.contact_sheet_images, len(work.rows))
    if count:
        filesystem.write_bytes(filesystem.join(out, SHEET_NAME), sheet_page(_contact_sheet(work, count)))
    schema = work.pipeline.label_schema.to_document()
    provenance = properties | {"label_schema": schema, "generated": _occasion(work.pipeline)}
    filesystem.write_bytes(filesystem.join(out, README_NAME), sample_readme(provenance).encode())
    url = filesystem.join(out, PROVENANCE_NAME)
    documents.write_document(url, provenance, format_name=FORMAT_NAME, version=FORMAT_VERSION)
    publish_cards(out, provenance)
    return counts


def _occasion(pipeline: Model) -> dict[str, str]:
    """Return when, how, by whom and from what they were made: all that differs between two runs of a request."""
    command = shlex.join(["synfundus", *map(redact, sys.argv[1:])])
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": command,
        "model": resolved(pipeline.folder).removesuffix("/export").rpartition("/")[-1],
        **operator(),
    }


def _contact_sheet(work: Work, count: int) -> bytes:
    section = work.sampling
    images = [decode_image(work.store.read(image), where=work.store.file_name(image)) for image in range(count)]
    sheet = contact_sheet(
        images,
        captions=[label_caption(row) for row in work.rows[:count]],
        columns=_SHEET_COLUMNS,
        tile_px=min(images[0].shape[0], _SHEET_TILE_PX),
        title=f"synthetic · {count} of {len(work.rows):,} images · {section.sampler}, {section.num_steps} steps, "
        f"guidance {section.guidance_scale:g}, seed {work.seed}",
    )
    return encode_png(sheet, text={"synthetic": "yes"}, compress_level=COMPRESS_LEVEL)
