"""What a sample set is of, and whether a folder holds some of it: all that the bytes of its images depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from synfundus.artifacts.cards.set_cards import CARD_NAMES
from synfundus.artifacts.claim import Claim, difference
from synfundus.artifacts.model import CPU_BATCH_SIZE
from synfundus.artifacts.samples.description import PROVENANCE_NAME
from synfundus.artifacts.samples.layouts import SYNFUNDUS_1M_TABLE
from synfundus.config.generation import SampleConfig
from synfundus.diffusion.sampling import SamplerSettings
from synfundus.labels.plan import LabelRow, label_table, read_label_plan
from synfundus.labels.schema import LabelSchema
from synfundus.stages import build
from synfundus.stages.rehearsal import read_model, read_requests
from synfundus.stages.sample.checking import open_inspector
from synfundus.stages.sample.guide import guide_fingerprint
from synfundus.storage import documents, filesystem
from synfundus.storage.manifest import MANIFEST_NAME
from synfundus.storage.writer_lock import write_alone

LABELS_NAME = "metadata.csv"
"""As Hugging Face's imagefolder expects it, with the column ``file_name``."""
README_NAME = "README.md"
REQUEST_NAME = "request.json"
SHEET_NAME = "contact-sheet.html"
EARLIER_NAMES = ("labels.csv", "contact-sheet.png")
"""What earlier versions called the labels and the sheet."""
FORMAT_NAME = "synfundus-samples"
FORMAT_VERSION = 1
_CLAIM = Claim(REQUEST_NAME, FORMAT_NAME, FORMAT_VERSION, others="images of another request")


def request_of(
    section: SampleConfig,
    sampling: SamplerSettings,
    seed: int,
    fingerprints: Mapping[str, str],
    rows: Sequence[LabelRow],
    schema: LabelSchema,
    *,
    judge: bytes = b"",
) -> dict[str, Any]:
    """Return all that the bytes of the images depend on.

    Args:
        section: Its precision is settled, and its batch size is that of the computation.
        sampling: Sampler, steps, guidance.
        seed: Seed of the noise.
        fingerprints: Of ``model``, ``autoencoder`` and, if there is one, ``guide``.
        rows: Labels of every image.
        schema: Labels of the model.
        judge: File of the judge that looks at the images.
    """
    checks = {
        "check_redraws": section.check_redraws,
        "judge_sha256": hashlib.sha256(judge).hexdigest() if judge else "",
    }
    request = {
        "model_fingerprint": fingerprints["model"],
        "autoencoder_fingerprint": fingerprints["autoencoder"],
        "seed": seed,
        "num_images": len(rows),
        "labels_sha256": _labels_sha256(rows, schema),
        **sampling.to_document(),
        **({"guide_fingerprint": fingerprints["guide"]} if "guide" in fingerprints else {}),
        **({"compile": True} if section.compile else {}),
        **section.model_dump(mode="json", include={"batch_size", "precision"}),
        "image_format": section.format,
        **(checks if section.check else {}),
        **({} if section.layout == "imagefolder" else {"layout": section.layout}),
    }
    return dict(documents.as_json(request))


def compare_claim(section: SampleConfig, seed: int) -> None:
    """Refuse a folder of other images, as the run does, with what is not settled yet as in the folder."""
    out = str(section.out)
    document = read_model(str(section.model))
    schema = LabelSchema.from_document(document["label_schema"], where=str(section.model))
    recommended = document.get("recommended_sampling")
    advice = SamplerSettings.from_document(recommended) if recommended else None
    sampling = build.sampler_settings(section, advice, schema=schema)
    rows = read_requests(section, schema).rows
    found = _CLAIM.read(out) or {}
    if section.precision == "auto":
        section = section.model_copy(update={"precision": found.get("precision")})
    if found.get("batch_size") == CPU_BATCH_SIZE:
        section = section.model_copy(update={"batch_size": CPU_BATCH_SIZE})
    fingerprints = dict(document["fingerprints"])
    if section.guide_model:
        fingerprints["guide"] = guide_fingerprint(section.guide_model)
    size = int(document["image_size_px"])
    judge = open_inspector(schema, size, most_redraws=0, judge=section.judge)[1] if section.check else b""
    _extends(out, request_of(section, sampling, seed, fingerprints, rows, schema, judge=judge), rows, schema)


def claim(out: str, request: dict[str, Any], rows: Sequence[LabelRow], schema: LabelSchema) -> None:
    """Claim the folder; one with the first of these images is extended.

    Raises:
        ConfigError: It holds other images, and the message says what differs; or it has another writer.
    """
    _extends(out, request, rows, schema)
    write_alone(out)
    if _extends(out, request, rows, schema):  # as the only writer: another one may have published meanwhile
        # incomplete again
        published = (MANIFEST_NAME, PROVENANCE_NAME, README_NAME, LABELS_NAME, SHEET_NAME, SYNFUNDUS_1M_TABLE)
        for name in (*published, *CARD_NAMES, *EARLIER_NAMES):
            filesystem.remove(filesystem.join(out, name))
        url = filesystem.join(out, REQUEST_NAME)
        documents.write_document(url, request, format_name=FORMAT_NAME, version=FORMAT_VERSION)
    else:
        _CLAIM.make(out, request)


def _labels_sha256(rows: Sequence[LabelRow], schema: LabelSchema) -> str:
    return hashlib.sha256(label_table(rows, schema.names)).hexdigest()


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
    urls = [filesystem.join(out, name) for name in (LABELS_NAME, EARLIER_NAMES[0])]
    for url in filter(filesystem.exists, urls):
        earlier = read_label_plan(filesystem.read_bytes(url), schema, where=url)
        for image, (old, new) in enumerate(zip(earlier, rows, strict=False)):
            for name in schema.names:
                if old[name] != new[name]:
                    there, here = ("unknown" if value is None else value for value in (old[name], new[name]))
                    return f"{name} of image {image}", there, here
    return None
