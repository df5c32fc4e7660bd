"""`synfundus sample`: synthetic images for labels, the same bytes from any number of ranks.

Image ``i`` depends on (seed, i, its labels) and on the batch size: images are generated in canonical batches (image i
is slot ``i % B`` of batch ``i // B``, the last batch is padded), whole batches go to ranks. So neither the number of
ranks or images nor a resume changes a byte. Another batch size can move a value by one grey level.
"""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from synfundus.artifacts.cards.set_cards import CARD_NAMES, publish_cards
from synfundus.artifacts.claim import Claim, difference
from synfundus.artifacts.latent_set import unseen_labels
from synfundus.artifacts.model import Model, generate_batch
from synfundus.artifacts.model_folder import find_pipeline, load_pipeline
from synfundus.artifacts.run_folder import operator, versions
from synfundus.artifacts.sample_set import (
    LABELS_ARE,
    PROVENANCE_NAME,
    RELEASE,
    PngStore,
    SampleStore,
    ShardStore,
    image_marks,
    sample_readme,
    sheet_page,
)
from synfundus.config.generation import SampleConfig
from synfundus.config.schema import RunConfig
from synfundus.diffusion.sampling import SamplerSettings, scheduler_for
from synfundus.distributed.agreement import on_rank_0, require_same
from synfundus.distributed.world import World, of_rank, share_of, torch_device, without_timeout
from synfundus.labels.plan import REQUESTED, LabelRow, label_table, plan_labels, read_label_plan
from synfundus.labels.schema import LabelSchema, label_caption
from synfundus.pictures.sheets import contact_sheet, encode_png
from synfundus.redaction import redact
from synfundus.shards.reader import decode_image
from synfundus.stages import Summary, build
from synfundus.stages.rehearsal import read_model
from synfundus.stages.verb import require
from synfundus.storage import documents, filesystem
from synfundus.storage.locations import resolved
from synfundus.storage.manifest import MANIFEST_NAME
from synfundus.storage.writer_lock import write_alone
from synfundus.telemetry.console import Console

LABELS_NAME = "metadata.csv"
"""As Hugging Face's imagefolder expects it, with the column ``file_name``."""
README_NAME = "README.md"
REQUEST_NAME = "request.json"
SHEET_NAME = "contact-sheet.html"
_EARLIER_NAMES = ("labels.csv", "contact-sheet.png")
"""What earlier versions called the labels and the sheet."""
FORMAT_NAME = "synfundus-samples"
FORMAT_VERSION = 1
_CLAIM = Claim(REQUEST_NAME, FORMAT_NAME, FORMAT_VERSION, others="images of another request")
_SHEET_COLUMNS = 8
_SHEET_TILE_PX = 192
COMPRESS_LEVEL = 6


@dataclass(frozen=True)
class _Work:
    """All that a rank needs to generate its part.

    Attributes:
        section: The sample section.
        sampling: Sampler, steps, guidance.
        seed: Seed of the noise.
        pipeline: The model.
        rows: Labels of every image.
        store: Where images go.
        device: Where to compute.
    """

    section: SampleConfig
    sampling: SamplerSettings
    seed: int
    pipeline: Model
    rows: Sequence[LabelRow]
    store: SampleStore
    device: torch.device

    @property
    def batch_size(self) -> int:
        """Images in a canonical batch."""
        return self.section.batch_size

    def batch_images(self, batch: int) -> range:
        """Return the images of a batch, without padding."""
        return range(batch * self.batch_size, min((batch + 1) * self.batch_size, len(self.rows)))


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Generate the images ``config.sample`` asks for. Collective; resumes by itself.

    Returns:
        ``out``, ``num_images``, ``num_kept`` (were there already), ``fingerprint``.

    Raises:
        CheckpointError: No model.
        ConfigError: Labels the model does not know, a sampler that cannot draw from it, or a folder that holds
            something else.
        DataError: A label plan that cannot be read; the row is named.
    """
    section = config.sample
    out = require(section.out, flag="--out", key="sample.out")
    folder = find_pipeline(require(section.model, flag="--model", key="sample.model"))
    build.tensor_cores(True, world, console)  # images have eight bits
    device, dtype = torch_device(world), build.torch_dtype(section.precision)
    pipeline = load_pipeline(folder, device=device)
    sampling = build.sampler_settings(section, pipeline.recommended_sampling)
    scheduler_for(sampling.sampler, pipeline.schedule_settings)  # refuse before the folder is claimed
    rows = _rows(section, pipeline.label_schema)
    fingerprints = {"model": pipeline.fingerprint, "autoencoder": pipeline.autoencoder_fingerprint}
    request = _request(section, sampling, config.seed, fingerprints, rows, pipeline.label_schema)
    require_same(request, world)
    on_rank_0(lambda: _claim(out, request, rows, pipeline.label_schema), world)
    console.message(f"{sampling.sampler}, {sampling.num_steps} steps, guidance {sampling.guidance_scale:g}")
    if unseen := unseen_labels(pipeline.training_summary, rows):
        console.warning(f"no photograph of its training is known to have {', '.join(unseen)}: what it draws is a guess")
    build.ready_to_sample(pipeline, config.launch, dtype=dtype, world=world, console=console)
    work = _Work(
        section, sampling, config.seed, pipeline, rows, _store(section, config.seed, out, pipeline, rows), device
    )
    at_the_end = without_timeout(world)
    kept_here = _generate(work, world, console)
    at_the_end.barrier()
    num_kept = round(at_the_end.sum([kept_here])[0])
    on_rank_0(lambda: _publish(work, out, request), at_the_end)
    kept = f" ({num_kept:,} were there, in whole batches)" if num_kept else ""
    console.message(f"{len(rows):,} synthetic images in {out}{kept}")
    return {"out": out, "num_images": len(rows), "num_kept": num_kept, "fingerprint": pipeline.fingerprint}


def compare_claim(section: SampleConfig, seed: int) -> None:
    """Refuse a folder of other images, as the run does; a precision that is not settled is that of the folder."""
    out = str(section.out)
    document = read_model(str(section.model))
    schema = LabelSchema.from_document(document["label_schema"], where=str(section.model))
    recommended = document.get("recommended_sampling")
    sampling = build.sampler_settings(section, SamplerSettings.from_document(recommended) if recommended else None)
    rows = _rows(section, schema)
    if section.precision == "auto":
        section = section.model_copy(update={"precision": (_CLAIM.read(out) or {}).get("precision")})
    _extends(out, _request(section, sampling, seed, document["fingerprints"], rows, schema), rows, schema)


def _rows(section: SampleConfig, schema: LabelSchema) -> list[LabelRow]:
    return plan_labels(
        plan=None if section.labels is None else filesystem.read_bytes(section.labels),
        labels=section.label,
        num_images=section.num_images,
        schema=schema,
        where=section.labels or "sample.labels",
    )


def _store(section: SampleConfig, seed: int, out: str, pipeline: Model, rows: Sequence[LabelRow]) -> SampleStore:
    if section.format == "png":
        return PngStore(out)
    return ShardStore(
        out,
        rows=rows,
        schema=pipeline.label_schema,
        seed=seed,
        image_size_px=pipeline.image_size_px,
        batch_size=section.batch_size,
    )


def _labels_sha256(rows: Sequence[LabelRow], schema: LabelSchema) -> str:
    return hashlib.sha256(label_table(rows, schema.names)).hexdigest()


def _claim(out: str, request: dict[str, Any], rows: Sequence[LabelRow], schema: LabelSchema) -> None:
    """Claim the folder; one with the first of these images is extended.

    Raises:
        ConfigError: It holds other images, and the message says what differs; or it has another writer.
    """
    _extends(out, request, rows, schema)
    write_alone(out)
    if _extends(out, request, rows, schema):  # as the only writer: another one may have published meanwhile
        # incomplete again
        for name in (
            MANIFEST_NAME,
            PROVENANCE_NAME,
            README_NAME,
            LABELS_NAME,
            SHEET_NAME,
            *CARD_NAMES,
            *_EARLIER_NAMES,
        ):
            filesystem.remove(filesystem.join(out, name))
        url = filesystem.join(out, REQUEST_NAME)
        documents.write_document(url, request, format_name=FORMAT_NAME, version=FORMAT_VERSION)
    else:
        _CLAIM.make(out, request)


def _extends(out: str, request: dict[str, Any], rows: Sequence[LabelRow], schema: LabelSchema) -> bool:
    """Whether a folder has fewer images of this request; one with other images is refused."""
    found, wanted = _CLAIM.read(out) or {}, dict(request)
    number = found.get("num_images", 0)
    if number and found["labels_sha256"] == _labels_sha256(rows[:number], schema):
        found["labels_sha256"] = wanted["labels_sha256"]  # the same as far as both go
        if number < len(rows) and not difference(found | {"num_images": len(rows)}, wanted):
            return True
    elif number and (changed := _changed_label(out, rows, schema)) is not None:
        label, there, here = changed
        del found["labels_sha256"], wanted["labels_sha256"]
        found[label], wanted[label] = there, here
    if found:
        _CLAIM.refuse_difference(out, found, wanted)
    return False


def _changed_label(out: str, rows: Sequence[LabelRow], schema: LabelSchema) -> tuple[str, object, object] | None:
    """Return the first requested label that is another in a finished folder, its value there and here."""
    urls = [filesystem.join(out, name) for name in (LABELS_NAME, _EARLIER_NAMES[0])]
    for url in filter(filesystem.exists, urls):
        earlier = read_label_plan(filesystem.read_bytes(url), schema, where=url)
        for image, (old, new) in enumerate(zip(earlier, rows, strict=False)):
            for name in schema.names:
                if old[name] != new[name]:
                    there, here = ("unknown" if value is None else value for value in (old[name], new[name]))
                    return f"{name} of image {image}", there, here
    return None


def _request(
    section: SampleConfig,
    sampling: SamplerSettings,
    seed: int,
    fingerprints: Mapping[str, str],
    rows: Sequence[LabelRow],
    schema: LabelSchema,
) -> dict[str, Any]:
    """Return all that the bytes of the images depend on."""
    request = {
        "model_fingerprint": fingerprints["model"],
        "autoencoder_fingerprint": fingerprints["autoencoder"],
        "seed": seed,
        "num_images": len(rows),
        "labels_sha256": _labels_sha256(rows, schema),
        **asdict(sampling),
        **section.model_dump(mode="json", include={"batch_size", "precision"}),
        "image_format": section.format,
    }
    return dict(documents.as_json(request))


def _generate(work: _Work, world: World, console: Console) -> int:
    """Generate this rank's missing units; returns how many of its images existed.

    A unit is compressed and written while the next one is computed.
    """
    units = share_of(work.store.units(num_images=len(work.rows), batch_size=work.batch_size), world)
    total = sum(len(work.batch_images(batch)) for unit in units for batch in unit)
    num_kept = 0
    unwritten: list[tuple[int, Future[bytes]]] = []
    with (
        ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="png") as pool,
        console.progress(of_rank("sampling", world), total=total, unit="images") as bar,
    ):
        for unit in units:
            images = [image for batch in unit for image in work.batch_images(batch)]
            if work.store.has(images):
                num_kept += len(images)
                bar.advance(len(images))
                continue
            encoded: list[tuple[int, Future[bytes]]] = []
            for batch in unit:
                pixels = _batch_pixels(work, batch)
                encoded += [
                    (image, pool.submit(_encode, work, image, pixels[slot]))
                    for slot, image in enumerate(work.batch_images(batch))
                ]
                bar.advance(len(work.batch_images(batch)))
            _write(work, unwritten)
            unwritten = encoded
        _write(work, unwritten)
    return num_kept


def _write(work: _Work, encoded: Sequence[tuple[int, Future[bytes]]]) -> None:
    """Write a unit, once it is compressed."""
    if encoded:
        work.store.write([(image, data.result()) for image, data in encoded])


def _batch_pixels(work: _Work, batch: int) -> NDArray[np.uint8]:
    """Return all slots of a batch ``[B, h, w, 3]``."""
    return generate_batch(
        work.pipeline,
        work.rows,
        batch,
        batch_size=work.batch_size,
        seed=work.seed,
        settings=work.sampling,
        device=work.device,
    )


def _encode(work: _Work, image: int, pixels: NDArray[np.uint8]) -> bytes:
    marks = image_marks(model=work.pipeline.fingerprint, seed=work.seed, index=image, labels=work.rows[image])
    return encode_png(pixels, text=marks, compress_level=COMPRESS_LEVEL)


def _publish(work: _Work, out: str, request: dict[str, Any]) -> None:
    """Check that every image exists, then write labels, provenance, contact sheet and what explains them."""
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
    }
    work.store.publish(num_images=len(work.rows), properties=properties)
    for name in _EARLIER_NAMES:
        filesystem.remove(filesystem.join(out, name))
    files = [work.store.file_name(image) for image in range(len(work.rows))]
    names = work.pipeline.label_schema.names
    rows = [{REQUESTED + name: row.get(name) for name in names} for row in work.rows]
    table = label_table(rows, [REQUESTED + name for name in names], file_name=files)
    filesystem.write_bytes(filesystem.join(out, LABELS_NAME), table)
    count = min(work.section.contact_sheet_images, len(work.rows))
    if count:
        filesystem.write_bytes(filesystem.join(out, SHEET_NAME), sheet_page(_contact_sheet(work, count)))
    schema = work.pipeline.label_schema.to_document()
    provenance = properties | {"label_schema": schema, "generated": _occasion(work.pipeline)}
    filesystem.write_bytes(filesystem.join(out, README_NAME), sample_readme(provenance).encode())
    url = filesystem.join(out, PROVENANCE_NAME)
    documents.write_document(url, provenance, format_name=FORMAT_NAME, version=FORMAT_VERSION)
    publish_cards(out, provenance)


def _occasion(pipeline: Model) -> dict[str, str]:
    """Return when, how, by whom and from what they were made: all that differs between two runs of a request."""
    command = shlex.join(["synfundus", *map(redact, sys.argv[1:])])
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": command,
        "model": resolved(pipeline.folder).removesuffix("/export").rpartition("/")[-1],
        **operator(),
    }


def _contact_sheet(work: _Work, count: int) -> bytes:
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
