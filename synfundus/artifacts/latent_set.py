"""Latent sets: one, or several with weights (``--latents A:0.7 --latents B:0.3``), and their sources."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from synfundus.artifacts.cards.model_card import FEW
from synfundus.errors import ConfigError, DataError, ManifestMismatch
from synfundus.labels.schema import UNKNOWN_STATE, LabelSchema, difference
from synfundus.labels.seen import LABEL_ROWS, NONE_KNOWN, SeenRows, never_seen
from synfundus.shards.shard_plan import BLOCK_POSITIONS, shares
from synfundus.storage import documents, filesystem
from synfundus.storage.locations import parse_weighted
from synfundus.storage.manifest import ShardSet, load_shard_set

SOURCES_NAME = "sources.json"
"""Beside the manifest, not in it: the manifest's hash is the set's identity, and the same latents encoded from a
copy of the images elsewhere are the same set, read in the same order."""
FORMAT_NAME = "synfundus-latent-sources"
FORMAT_VERSION = 1
_SAME = ("autoencoder_fingerprint", "moments_shape", "image_size_px", "input_range", "dtype")


@dataclass(frozen=True)
class LatentSets:
    """The latent sets of a run.

    Attributes:
        sets: The sets.
        weights: Of each; its share is its weight over the sum of all.
        combined: All shards, with the properties of the mixture. Only a description: samples are read from `sets`.
    """

    sets: tuple[ShardSet, ...]
    weights: tuple[float, ...]
    combined: ShardSet

    def shares_text(self) -> str:
        """Say how the samples of a run come from the sets; empty for one set."""
        if len(self.sets) == 1:
            return ""
        total = sum(self.weights)
        return "\n".join(
            f"{100 * weight / total:.1f} % of the samples: {one.url}"
            for one, weight in zip(self.sets, self.weights, strict=True)
        )


def open_latent_sets(texts: Sequence[str]) -> LatentSets:
    """Open the latent sets of a run.

    Raises:
        ConfigError: None given, one given twice, or unusable shares.
        ManifestMismatch: Sets that do not fit together; names both sides.
    """
    if not texts:
        raise ConfigError("--latents is missing", where="train.latents", hint="give --latents, or set train.latents")
    urls, weights = zip(*(parse_weighted(text) for text in texts), strict=True)
    sets = tuple(load_shard_set(url, kind="latents") for url in urls)
    if len(sets) == 1:
        return LatentSets(sets, (1.0,), sets[0])
    parts = shares(weights, BLOCK_POSITIONS)
    if len({one.identity for one in sets}) < len(sets):
        raise ConfigError("the same latent set is given twice", where="train.latents")
    for other in sets[1:]:
        _require_alike(sets[0], other)
    document = json.dumps([[one.identity, part] for one, part in zip(sets, parts, strict=True)])
    combined = replace(
        sets[0],
        shards=tuple(shard for one in sets for shard in one.shards),
        properties={
            **sets[0].properties,
            **_statistics(sets, parts),
            "flip": all(one.properties["flip"] for one in sets),
            "photographs": [told for one in sets if (told := one.properties.get("photographs"))],
        },
        identity=hashlib.sha256(document.encode()).hexdigest(),
    )
    return LatentSets(sets, tuple(weights), combined)


def require_flip(latents: ShardSet, *, wanted: bool) -> None:
    """Require mirrored moments where they are wanted.

    Raises:
        ConfigError: The set has none.
    """
    if wanted and not latents.properties["flip"]:
        raise ConfigError(
            "train.diffusion.flip is on, but the latents hold no mirrored moments",
            where=latents.url,
            hint="encode them with --flip, or turn train.diffusion.flip off",
        )


def trained_on(latents: ShardSet, *, flip: bool = False) -> dict[str, Any]:
    """Return what a model may tell of the photographs behind its latents; empty where the set does not say.

    Args:
        latents: The latent set, or the combined sets, of the training.
        flip: Whether it mirrors images, and the eye side with them.

    Returns:
        ``collections``; ``drawn``, whether a program painted them (``in part``: some); ``patients``, if known;
        ``positives``, by label how many have a value above 0, where numbers from 1 to `FEW` - 1 are not given exactly
        and `NONE_KNOWN` says that the label is known of none; ``never`` (see `never_seen`), if all sets tell.
    """
    told = latents.properties.get("photographs", [])
    sources: list[dict[str, Any]] = [told] if isinstance(told, dict) else told
    if not sources:
        return {}
    positives: Counter[str] = Counter()
    known: Counter[str] = Counter()
    for label, counts in (item for source in sources for item in source["values"].items()):
        positives[label] += sum(count for value, count in counts.items() if value.isdigit() and value != "0")
        known[label] += sum(count for value, count in counts.items() if value.isdigit())
    drawn = [bool(source["drawn"]) for source in sources]
    patients = [source.get("patients") for source in sources]
    return {
        "collections": sorted({str(source["source"]) for source in sources}),
        "drawn": "in part" if any(drawn) and not all(drawn) else all(drawn),
        **({} if None in patients else {"patients": sum(int(number or 0) for number in patients)}),
        "positives": {
            label: f"fewer than {FEW}" if 0 < number < FEW else f"{number:,}" if known[label] else NONE_KNOWN
            for label, number in positives.items()
        },
        **_never(sources, latents.label_schema, flip=flip),
    }


def _never(sources: Sequence[Mapping[str, Any]], schema: LabelSchema, *, flip: bool) -> dict[str, Any]:
    if not all(LABEL_ROWS in source for source in sources):
        return {}
    seen = [SeenRows.of_document(source[LABEL_ROWS], len(schema.labels)).states for source in sources]
    states = np.concatenate(seen)
    if flip and "eye_side" in schema.names:
        mirrored, side = states.copy(), schema.names.index("eye_side")
        mirrored[:, side] = np.where(states[:, side] == UNKNOWN_STATE, UNKNOWN_STATE, 3 - states[:, side])
        states = np.concatenate([states, mirrored])
    return {"never": never_seen(SeenRows.of(states), schema)}


def photographs_of(image_set: ShardSet) -> dict[str, Any]:
    """Return the property of a latent set that tells of the photographs; empty where the image set does not."""
    properties = image_set.properties
    if not {"source", "num_patients", "label_counts"} <= properties.keys():
        return {}
    told = {name: properties[name] for name in ("source", "num_patients")}
    number = sum(properties["num_patients"].values())  # without a patient column, each photograph counts as one
    told |= {"patients": number if number < image_set.num_samples() else None}
    told |= {"drawn": bool(properties.get("drawn")), "values": properties["label_counts"]["values"]}
    if LABEL_ROWS in properties:
        told |= {LABEL_ROWS: properties[LABEL_ROWS]}
    return {"photographs": told}


def require_same_autoencoder(latents: ShardSet, fingerprint: str, *, where: str) -> None:
    """Check that a latent set was encoded with this autoencoder.

    Raises:
        ManifestMismatch: It was not; names both.
    """
    expected = str(latents.properties["autoencoder_fingerprint"])
    if expected != fingerprint:
        raise ManifestMismatch(
            f"the latents in {latents.url} were made by autoencoder {expected[:12]}, this one is {fingerprint[:12]}",
            where=where,
            hint="give the autoencoder the latents were made with, or encode them again with this one",
        )


def _require_alike(first: ShardSet, other: ShardSet) -> None:
    where = "train.latents"
    for name in _SAME:
        if first.properties.get(name) != other.properties.get(name):
            raise ManifestMismatch(
                f"{name} is {first.properties.get(name)} in {first.url}, {other.properties.get(name)} in {other.url}",
                where=where,
                hint="encode both with the same autoencoder and size",
            )
    changed = difference(first.label_schema, other.label_schema)
    if changed:
        raise ManifestMismatch(f"{first.url} and {other.url} have other labels: {changed}", where=where)


def _statistics(sets: Sequence[ShardSet], parts: Sequence[int]) -> dict[str, list[float]]:
    """Return mean and std of the mixture, per channel: E[x] and sqrt(E[x^2] - E[x]^2) over the weighted sets."""
    weight = np.asarray(parts, dtype=np.float64)[:, None] / sum(parts)
    means = np.asarray([one.properties["latent_mean"] for one in sets], dtype=np.float64)
    stds = np.asarray([one.properties["latent_std"] for one in sets], dtype=np.float64)
    mean = (weight * means).sum(axis=0)
    second = (weight * (stds**2 + means**2)).sum(axis=0)
    return {"latent_mean": mean.tolist(), "latent_std": np.sqrt(second - mean**2).tolist()}


@dataclass(frozen=True)
class LatentSources:
    """Locations of the image set and the autoencoder of a latent set, at the time of encoding.

    Attributes:
        image_set_url: Folder of the image set.
        autoencoder_url: Run of train-vae, or folder of the autoencoder.
        patients: Whether the splits of the images keep patients apart, as far as is known.
    """

    image_set_url: str
    autoencoder_url: str
    patients: bool = False


def save_sources(latents_url: str, sources: LatentSources) -> None:
    """Write sources.json."""
    url = filesystem.join(latents_url, SOURCES_NAME)
    documents.write_document(url, asdict(sources), format_name=FORMAT_NAME, version=FORMAT_VERSION)


def keeps_patients_apart(sets: Sequence[ShardSet]) -> bool:
    """Whether all latent sets are known to keep patients in one split; False where a set does not tell."""
    told = [one.url for one in sets if filesystem.exists(filesystem.join(one.url, SOURCES_NAME))]
    return len(told) == len(sets) and all(load_sources(url).patients for url in told)


def load_sources(latents_url: str) -> LatentSources:
    """Read sources.json.

    Raises:
        DataError: It is not there, or damaged.
    """
    url = filesystem.join(latents_url, SOURCES_NAME)
    if not filesystem.exists(url):
        raise DataError(
            "these latents do not say where their images and autoencoder are: the file is missing",
            where=url,
            hint="copy it from the folder that they were encoded into, or give --vae (train), --data (verify-latents)",
        )
    document = documents.read_document(url, format_name=FORMAT_NAME, version=FORMAT_VERSION)
    patients = document.get("patients") is True
    return LatentSources(str(document["image_set_url"]), str(document["autoencoder_url"]), patients)
