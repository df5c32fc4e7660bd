"""What other programs may import: open a model, draw and save images, read a set as a torch data set, read a manifest.

The names are also those of the package: ``synfundus.load_model``. Nothing here needs a config or a process group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from synfundus.artifacts.model import Model, canonical_batch_size, generate_batch
from synfundus.artifacts.model_folder import find_pipeline, load_pipeline
from synfundus.artifacts.samples.augmented import SYNTHETIC
from synfundus.artifacts.samples.description import image_marks
from synfundus.config.generation import SAMPLING_DEFAULTS, SampleConfig
from synfundus.config.machine import LaunchConfig
from synfundus.diffusion.sampling import scheduler_for
from synfundus.distributed.world import LocalWorld, resolve_device
from synfundus.errors import ConfigError
from synfundus.labels.plan import LabelRow, plan_labels
from synfundus.labels.schema import LabelSchema
from synfundus.pictures.sheets import XMP_KEYWORD, encode_png
from synfundus.shards.members import META, decode_json
from synfundus.shards.reader import ShardSetReader
from synfundus.shards.set_survey import sample_decoder
from synfundus.stages.build import ready_to_sample, sampler_settings
from synfundus.stages.sample.factory import COMPRESS_LEVEL
from synfundus.storage import filesystem
from synfundus.storage.manifest import SPLITS, ShardSet, open_set
from synfundus.telemetry.console import SilentConsole

__all__ = ["ShardDataset", "SynfundusPipeline", "load_model", "open_dataset", "read_manifest", "save_image"]

Labels = Mapping[str, int | None]


class SynfundusPipeline:
    """A trained model.

    Attributes:
        model: Its networks and settings.
        device: Where it computes.
    """

    def __init__(self, model: Model, device: torch.device) -> None:
        self.model, self.device = model, device

    @property
    def label_schema(self) -> LabelSchema:
        """The labels it can be asked for."""
        return self.model.label_schema

    @property
    def fingerprint(self) -> str:
        """sha256 over U-Net and conditioner."""
        return self.model.fingerprint

    def sample(
        self,
        labels: Labels | Sequence[Labels] | None = None,
        num_images: int | None = None,
        seed: int = 0,
        batch_size: int = 16,
        **settings: Any,  # noqa: ANN401 - as the options of `sample`
    ) -> list[Image.Image]:
        """Draw images, the same as `synfundus sample` with these values in fp32 (on a GPU but for rounding: TF32).

        Args:
            labels: Requested labels of every image, or a list with those of each; labels not named are unknown, and so
                are all by default. A request is no ground truth: an image may not show what was asked for.
            num_images: Number of images; default: one, or one for each of the labels.
            seed: Image i depends on the seed, i and its labels.
            batch_size: Images at a time on a GPU, whose rounding depends on it; a CPU always takes 16.
            settings: ``sampler``, ``num_steps``, ``guidance_scale``, ``guidance_rescale``, ``guidance_interval``,
                ``guidance_weight``, ``negative_label``; default: as the model recommends.

        Returns:
            RGB images whose ``info`` says that they are synthetic and what made them. PIL's own ``save`` leaves that
            out: `save_image` writes it.

        Raises:
            ConfigError: Labels, values or settings that the model does not have.
        """
        rows = self._rows(labels, num_images)
        if unknown := sorted(settings.keys() - SAMPLING_DEFAULTS.keys()):
            hint = f"there are {', '.join(SAMPLING_DEFAULTS)}"
            raise ConfigError(f"no settings of the sampling: {', '.join(unknown)}", where="sample", hint=hint)
        try:
            section = SampleConfig(batch_size=batch_size, **settings)
        except ValueError as error:
            found: list[Any] = getattr(error, "errors", list)()
            wrong = "; ".join(f"{one['loc'][-1]} is {one['input']!r}: {one['msg']}" for one in found) or error
            raise ConfigError(f"settings that cannot be: {wrong}", where="sample") from error
        batch_size = canonical_batch_size(batch_size, device=self.device.type)
        chosen = sampler_settings(section, self.model.recommended_sampling, schema=self.label_schema)
        scheduler_for(chosen.sampler, self.model.schedule_settings)
        batches = [
            generate_batch(
                self.model, rows, batch, batch_size=batch_size, seed=seed, settings=chosen, device=self.device
            )
            for batch in range(-(-len(rows) // batch_size))
        ]
        images = [Image.fromarray(pixels) for pixels in np.concatenate(batches)[: len(rows)]]
        for index, (image, row) in enumerate(zip(images, rows, strict=True)):
            image.info.update(image_marks(model=self.fingerprint, seed=seed, index=index, labels=row))
        return images

    def _rows(self, labels: Labels | Sequence[Labels] | None, num_images: int | None) -> list[LabelRow]:
        def planned(row: Labels, count: int) -> list[LabelRow]:
            return plan_labels(plan=None, labels=row, num_images=count, schema=self.label_schema, where="labels")

        if labels is None or isinstance(labels, Mapping):
            rows = planned(labels or {}, 1 if num_images is None else num_images)
        else:
            rows = [row for given in labels for row in planned(given, 1)][:num_images]
        if not rows or len(rows) < (num_images or 0):
            raise ConfigError(f"{num_images} images of {len(rows)} rows of labels", where="num_images")
        return rows


def load_model(path: str, *, device: str = "auto") -> SynfundusPipeline:
    """Open a run of `train`, or a folder written by `export` or `ema`.

    Args:
        path: Folder, also in an object store.
        device: ``auto`` takes a GPU if there is one; or ``cpu``, ``cuda``, ``cuda:1``.

    Raises:
        ConfigError: Not the name of such a device.
        LaunchError: There is none.
        CheckpointError: There is no model, or a part of it cannot be read.
        ManifestMismatch: Its parts do not belong together.
    """
    name: Any = device.partition(":")[0]
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"no device to compute on: {device!r}", where="device", hint="auto, cpu, cuda or cuda:1")
    kind = resolve_device(name)
    place = torch.device(kind if device == "auto" else device)
    model = load_pipeline(find_pipeline(str(path)), device=place)
    ready_to_sample(model, LaunchConfig(), dtype=torch.float32, world=LocalWorld(device=kind), console=SilentConsole())
    return SynfundusPipeline(model, place)


def save_image(image: Image.Image, path: str) -> None:
    """Write a generated image as PNG, marked as synthetic as `synfundus sample` marks it: the same bytes.

    Args:
        image: From `SynfundusPipeline.sample`; a changed copy keeps its marks as long as PIL keeps its ``info``.
        path: File, also in an object store; replaced if it exists.

    Raises:
        ConfigError: The name does not end in ``.png``.
    """
    if not str(path).lower().endswith(".png"):
        raise ConfigError("marks are written to PNG files", where=str(path), hint="give a name that ends in .png")
    marks = {"synthetic": "yes"}
    marks |= {str(name): text for name, text in image.info.items() if isinstance(text, str) and name != XMP_KEYWORD}
    pixels = np.asarray(image.convert("RGB"))
    filesystem.write_bytes(str(path), encode_png(pixels, text=marks, compress_level=COMPRESS_LEVEL))


class ShardDataset(Dataset[dict[str, Any]]):
    """The samples of a set, or of one of its splits, as a map-style data set; read by several workers if you like.

    A sample is a dictionary: ``key``; ``split``; ``image``, uint8 ``[3, h, w]``, or for latents ``moments``, float32
    ``[2c, lh, lw]`` (mean, then log-variance), and ``flip`` where the set holds it; ``labels``, the values by name,
    None where unknown; ``states``, int64 ``[k]``, 0 where unknown and else the value + 1; in a set of `augment`
    ``synthetic``, whether a model generated it.

    Args:
        shard_set: The set.
        splits: Its splits.
    """

    def __init__(self, shard_set: ShardSet, splits: Sequence[str]) -> None:
        self.shard_set = shard_set
        self._decode = sample_decoder(shard_set)
        self._readers = [(split, ShardSetReader(shard_set, split=split)) for split in splits]
        readers = [reader for _, reader in self._readers]
        self._shards = [(at, shard) for at, reader in enumerate(readers) for shard in range(len(reader.shards))]
        self._ends = np.array([*accumulate(size for reader in readers for size in reader.shard_sizes)], dtype=np.int64)

    @property
    def label_schema(self) -> LabelSchema:
        """The labels of the set."""
        return self.shard_set.label_schema

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read a sample.

        Raises:
            CorruptShard: It is damaged; the message names it.
            IndexError: There is no such sample.
        """
        at = index + len(self) if index < 0 else index
        if not 0 <= at < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        place = int(np.searchsorted(self._ends, at, side="right"))
        number, shard = self._shards[place]
        split, reader = self._readers[number]
        row = at - (int(self._ends[place - 1]) if place else 0)
        key, members = reader.read(shard, row)
        where = reader.sample_name(shard, row)
        arrays = self._decode(key, members, where)
        states = arrays.pop("states")
        pixels = arrays.pop("pixels", None)
        mixed = self.shard_set.kind == "augmented"
        said = {SYNTHETIC: bool(decode_json(members[META], where=where).get(SYNTHETIC))} if mixed else {}
        sample = {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}
        if pixels is not None:
            sample["image"] = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        labels = self.label_schema.decode(states.tolist())
        return {"key": key, "split": split, **said, **sample, "labels": labels, "states": torch.from_numpy(states)}

    @staticmethod
    def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch, as ``collate_fn`` of a DataLoader: tensors are stacked, all else becomes lists."""
        columns = {name: [sample[name] for sample in samples] for name in samples[0]}
        return {name: torch.stack(rows) if isinstance(rows[0], Tensor) else rows for name, rows in columns.items()}


def open_dataset(path: str, *, split: str | None = None) -> ShardDataset:
    """Open an image set, latent set, sample set, or training set of `augment`.

    Args:
        path: Folder, also in an object store.
        split: ``train``, ``val`` or ``test``; default: all.

    Raises:
        ConfigError: No such split.
        DataError: There is no complete set.
    """
    if split is not None and split not in SPLITS:
        raise ConfigError(f"there is no split {split!r}", where="split", hint=f"one of {', '.join(SPLITS)}")
    return ShardDataset(read_manifest(path), SPLITS if split is None else (split,))


def read_manifest(path: str) -> ShardSet:
    """Read the manifest of a set: kind, labels, shards, rejects, properties, identity.

    Raises:
        DataError: There is no complete set.
    """
    return open_set(str(path))
