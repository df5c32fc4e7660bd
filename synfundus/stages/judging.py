"""Label control of generated images: a judge compares them with photographs, as they are and reconstructed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from synfundus.evaluation.camera import camera_features, fit_linear, shortcuts, source_features
from synfundus.evaluation.fit import FitRecipe
from synfundus.evaluation.judge import evaluate_label_control, train_judge
from synfundus.evaluation.judge_file import measure_doubts, pack_judge
from synfundus.evaluation.label_control import Agreement, agreement_table, headline, not_told
from synfundus.labels.schema import LabelSchema
from synfundus.models.autoencoder import LatentAutoencoder
from synfundus.models.pixels import pixels_to_tensor, tensor_to_pixels
from synfundus.shards.label_reading import read_label_states
from synfundus.shards.members import META, decode_json
from synfundus.shards.reader import ShardSetReader
from synfundus.shards.source import ImageDecoder
from synfundus.stages.vessel_detail import VesselsBeside, unlike_photographs, vessels_beside
from synfundus.storage.manifest import ShardSet
from synfundus.telemetry.console import Console
from synfundus.training.validation import knows_patients

JUDGE_SIZE_PX = 96
"""At 96 px and 14 epochs it reads held-out photographs better than at 128 px and 11, in two thirds of the time."""
TRAIN_SPLIT = "train"
HELD_OUT_SPLITS = ("val", "test")
MAX_IMAGES = 8192
"""Maximum number of photographs of a kind in memory."""
NOBODY_HELD_OUT = (
    "the set holds nobody out: figures on real photographs are of those that judge and model have learned from"
)
_BATCH = 32
_LR = 6e-3
_WEIGHT_DECAY = 0.02
_EPOCHS = 14
_MIN_BUDGET_IMAGES = 256
_MAX_BUDGET_IMAGES = 40_000
_RECONSTRUCTED_SHARE = 0.5
"""Share of the training photographs the judge also sees as reconstructions."""


@dataclass(frozen=True)
class LabelledImages:
    """Photographs in memory.

    Attributes:
        pixels: uint8 ``[n, s, s, 3]``.
        states: Label states ``[n, k]``.
        sources: Collection of each; empty for generated images.
    """

    pixels: NDArray[np.uint8]
    states: NDArray[np.int64]
    sources: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)


def _places(image_set: ShardSet, split: str) -> Iterator[tuple[ShardSetReader, int, int]]:
    """Yield (reader, shard, sample) of a split, in the order of the set."""
    reader = ShardSetReader(image_set, split=split)
    for shard, count in enumerate(reader.shard_sizes):
        for sample in range(count):
            yield reader, shard, sample
    reader.close()


def read_images(image_set: ShardSet, *, splits: tuple[str, ...]) -> LabelledImages:
    """Read the photographs of some splits, in the order of the set, at most `MAX_IMAGES`."""
    size = int(image_set.properties["image_size_px"])
    decode = ImageDecoder(schema=image_set.label_schema, image_size_px=size)
    total = min(MAX_IMAGES, sum(image_set.num_samples(split) for split in splits))
    pixels = np.empty((total, size, size, 3), dtype=np.uint8)
    states = np.empty((total, len(image_set.label_schema.labels)), dtype=np.int64)
    places = itertools.chain.from_iterable(_places(image_set, split) for split in splits)
    sources = []
    for number, (reader, shard, sample) in enumerate(itertools.islice(places, total)):
        key, members = reader.read(shard, sample)
        where = reader.sample_name(shard, sample)
        arrays = decode(key, members, where)
        pixels[number], states[number] = arrays["pixels"], arrays["states"]
        sources.append(str(decode_json(members[META], where=where).get("source", "")))
    return LabelledImages(pixels, states, tuple(sources))


def read_states(image_set: ShardSet, *, splits: tuple[str, ...]) -> NDArray[np.int64]:
    """Read the label states of some splits ``[n, k]``, in the order of the set, without decoding an image."""
    return read_label_states(image_set, splits=splits).astype(np.int64)


def held_out_splits(image_set: ShardSet) -> tuple[str, ...]:
    """Return the splits of held-out patients; the train split of a set too small to hold anyone out."""
    return HELD_OUT_SPLITS if any(image_set.num_samples(split) for split in HELD_OUT_SPLITS) else (TRAIN_SPLIT,)


def read_photographs(image_set: ShardSet) -> tuple[LabelledImages, LabelledImages]:
    """Return the photographs a judge learns from, and those it is judged on: the same where nobody is held out."""
    train, splits = read_images(image_set, splits=(TRAIN_SPLIT,)), held_out_splits(image_set)
    return train, train if splits == (TRAIN_SPLIT,) else read_images(image_set, splits=splits)


def describe_judged(image_set: ShardSet) -> str:
    """Return what the photographs are that figures are of."""
    if held_out_splits(image_set) == (TRAIN_SPLIT,):
        return "photographs that were trained on (nobody is held out)"
    return "photographs of held-out patients" if knows_patients(image_set) else "held-out photographs"


@torch.no_grad()
def reconstruct(
    autoencoder: LatentAutoencoder, pixels: NDArray[np.uint8], *, device: torch.device
) -> NDArray[np.uint8]:
    """Return images ``[n, s, s, 3]`` after encoding and decoding (posterior mean)."""
    restored = np.empty_like(pixels)
    for at in range(0, len(pixels), _BATCH):
        mean, _ = LatentAutoencoder.split(autoencoder.encode(pixels_to_tensor(pixels[at : at + _BATCH]).to(device)))
        restored[at : at + _BATCH] = tensor_to_pixels(autoencoder.decode(mean))
    return restored


@dataclass(frozen=True)
class LabelControl:
    """What judges say of photographs and generated images.

    Attributes:
        agreements: Of the judge that sees the whole image, by image source: ``real``, ``reconstructed``, and
            ``generated``, which is withheld where generated images do not look like photographs.
        camera_alone: Of one that sees the field of view and the mean colour, ``real`` and ``generated``.
        source_alone: Of one that knows the collection, ``real``; empty where there is one collection.
        warnings: What to distrust: labels that can be told without seeing the eye, or that the judge does not tell,
            photographs that were learned from.
        generated_vessels: Vessels of generated images beside those of the photographs judged.
        judge_file: The judge and its doubts of held-out photographs.
    """

    agreements: dict[str, Agreement] = field(default_factory=dict)
    camera_alone: dict[str, Agreement] = field(default_factory=dict)
    source_alone: dict[str, Agreement] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    generated_vessels: VesselsBeside = field(default_factory=VesselsBeside)
    judge_file: bytes = field(default=b"", repr=False)

    @property
    def withheld(self) -> str:
        """Why there are no figures of generated images; empty where there are."""
        return unlike_photographs(self.generated_vessels)

    def columns(self) -> dict[str, Agreement]:
        """Return all agreements by the title of their column in a table."""
        blind = {f"camera, {source}": agreement for source, agreement in self.camera_alone.items()}
        return self.agreements | blind | {f"source, {name}": one for name, one in self.source_alone.items()}

    def to_document(self) -> dict[str, Any]:
        """Return the figures for a JSON document; those of generated images are null where they are withheld."""
        nothing = {"generated": None} if self.withheld else {}
        documents: dict[str, Any] = {
            name: {
                source: {
                    "headline": headline(agreement),
                    "labels": {label: figures.to_document() for label, figures in agreement.items()},
                }
                for source, agreement in agreements.items()
            }
            for name, agreements in (
                ("label_control", self.agreements),
                ("camera_alone", self.camera_alone),
                ("source_alone", self.source_alone),
            )
        }
        for name in ("label_control", "camera_alone"):
            documents[name] |= nothing
        return documents | {"label_control_warnings": list(self.warnings), "label_control_withheld": self.withheld}


def show_label_control(control: LabelControl, console: Console, *, num_generated: int) -> None:
    """Show the table of all judges, how to read it, and what to distrust."""
    of = "photographs alone" if control.withheld else f"{num_generated} generated images"
    console.table(f"label control, {of}", *agreement_table(control.columns()))
    console.message(
        "camera: a judge that sees only the field of view and the mean colour. 95 % intervals: Wilson (accuracy), "
        "Newcombe (AUC), bootstrap (kappa); n: images whose label is known"
    )
    for text in filter(None, (control.withheld, *control.warnings)):
        console.warning(text)


def judge_label_control(
    *,
    train: LabelledImages,
    held_out: LabelledImages,
    held_out_restored: NDArray[np.uint8] | None,
    generated: LabelledImages,
    autoencoder: LatentAutoencoder | None,
    schema: LabelSchema,
    seed: int,
    device: torch.device,
    console: Console,
) -> LabelControl:
    """Train judges and return their agreement with the labels of real, reconstructed and generated images.

    Args:
        train: Real photographs the judge is trained on.
        held_out: Real photographs of held-out patients; `train` itself where nobody is held out, which is warned of.
        held_out_restored: The same after the autoencoder; None without one.
        generated: Generated images with the labels they were asked for.
        autoencoder: The autoencoder, for the reconstructions the judge is trained on; None: on photographs alone.
        schema: The labels.
        seed: The run's seed.
        device: Where the autoencoder computes; the judge is small and stays on the CPU.
        console: Where progress is shown.
    """
    restored = None
    if autoencoder is not None:
        restored = train.pixels.copy()
        count = max(1, int(len(train) * _RECONSTRUCTED_SHARE))
        restored[:count] = reconstruct(autoencoder, train.pixels[:count], device=device)
    budget_images = min(max(_EPOCHS * len(train), _MIN_BUDGET_IMAGES), _MAX_BUDGET_IMAGES)
    with console.progress("training the judge", total=budget_images, unit="images") as bar:
        judge = train_judge(
            pixels=train.pixels,
            reconstructions=restored,
            states=train.states,
            schema=schema,
            image_size_px=min(JUDGE_SIZE_PX, train.pixels.shape[1]),
            recipe=FitRecipe(num_samples=budget_images, batch_size=_BATCH, lr=_LR, weight_decay=_WEIGHT_DECAY),
            seed=seed,
            on_step=lambda images, loss: bar.advance(images, loss=f"{loss:.3f}"),
        )
    agreements = {"real": evaluate_label_control(judge, held_out.pixels, held_out.states)}
    if held_out_restored is not None:
        agreements["reconstructed"] = evaluate_label_control(judge, held_out_restored, held_out.states)
    vessels = vessels_beside(generated.pixels, held_out.pixels)
    judged = {"real": held_out} if unlike_photographs(vessels) else {"real": held_out, "generated": generated}
    if "generated" in judged:
        agreements["generated"] = evaluate_label_control(judge, generated.pixels, generated.states)
    control = _compare_with_blind_judges(agreements, train, judged, schema)
    warnings = (NOBODY_HELD_OUT, *control.warnings) if held_out is train else control.warnings
    if unsure := not_told(agreements["real"], held_out.states, schema):
        warnings = (
            *warnings,
            "labels that the judge may tell no better than a guess, on photographs: "
            f"{', '.join(unsure)}; its figures of generated images say little about them",
        )
    packed = pack_judge(judge, measure_doubts(judge, held_out.pixels, held_out.states))
    return replace(control, warnings=warnings, generated_vessels=vessels, judge_file=packed)


def _compare_with_blind_judges(
    agreements: dict[str, Agreement], train: LabelledImages, judged: Mapping[str, LabelledImages], schema: LabelSchema
) -> LabelControl:
    """Add judges that do not see the eye, trained on the same photographs; ``judged`` has ``real`` at least."""
    camera = fit_linear(camera_features(train.pixels), train.states, schema)
    camera_alone, warnings = {}, []
    for name, images in judged.items():
        camera_alone[name] = camera.agreement(camera_features(images.pixels), images.states)
        if found := shortcuts(camera_alone[name], agreements[name], images.states, schema):
            warnings.append(
                f"label control on {name} images: the field of view and the mean colour alone tell {', '.join(found)}; "
                "the judge may read these labels off the camera, not off the eye"
            )
    source_alone: dict[str, Agreement] = {}
    if len(known := sorted(set(train.sources))) > 1:
        by_source = fit_linear(source_features(train.sources, known), train.states, schema)
        real = judged["real"]
        source_alone["real"] = by_source.agreement(source_features(real.sources, known), real.states)
        if found := shortcuts(source_alone["real"], agreements["real"], real.states, schema):
            warnings.append(
                f"labels that go with a collection: the name of the collection alone tells {', '.join(found)}"
            )
    return LabelControl(agreements, camera_alone, source_alone, tuple(warnings))
