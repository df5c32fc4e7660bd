"""The images that are judged, and what they were asked for, as labels of the set the judge learns from."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from synfundus.artifacts.samples.description import PROVENANCE_NAME, TABLE_NAMES, requested_labels
from synfundus.errors import ConfigError, DataError
from synfundus.labels.schema import UNKNOWN_STATE, LabelSchema, label_differences
from synfundus.shards.reader import decode_image
from synfundus.stages.judging import TRAIN_SPLIT, LabelledImages, read_images, read_states
from synfundus.storage import documents, filesystem
from synfundus.storage.manifest import MANIFEST_NAME, ShardSet, load_shard_set


def read_samples(folder: str, schema: LabelSchema) -> LabelledImages:
    """Read generated images and what they were asked for: a folder of PNG files, or a shard set.

    Raises:
        ConfigError: There are no samples, or they were asked for labels or values the schema does not have.
        DataError: A row without a file, or images of different sizes.
    """
    if (samples := _sample_set(folder, schema)) is not None:
        images = read_images(samples, splits=(TRAIN_SPLIT,))
        return LabelledImages(images.pixels, _by_name(images.states, samples.label_schema, schema, where=folder))
    names, states = _read_table(folder, schema)
    pictures = [decode_image(filesystem.read_bytes(filesystem.join(folder, name)), where=name) for name in names]
    if len({picture.shape for picture in pictures}) > 1:
        raise DataError("the images are of different sizes", where=folder)
    return LabelledImages(np.stack(pictures), np.array(states, dtype=np.int64))


def check_samples(folder: str, schema: LabelSchema) -> int:
    """Return the number of generated images; refuses what `read_samples` refuses, but decodes no image."""
    if (samples := _sample_set(folder, schema)) is None:
        return len(_read_table(folder, schema)[0])
    states = read_states(samples, splits=(TRAIN_SPLIT,))
    return len(_by_name(states, samples.label_schema, schema, where=folder))


def _sample_set(folder: str, schema: LabelSchema) -> ShardSet | None:
    """Open a shard set of generated images; None where there are PNG files, or nothing."""
    if not filesystem.exists(filesystem.join(folder, MANIFEST_NAME)):
        return None
    samples = load_shard_set(folder, kind="samples")
    require_same_meaning(samples.label_schema, schema, where=folder)
    return samples


def _read_table(folder: str, schema: LabelSchema) -> tuple[list[str], list[list[int]]]:
    """Return the file and the label states of each of a folder of PNG files."""
    if (asked := _schema_asked(folder)) is not None:
        require_same_meaning(asked, schema, where=folder)
    requested = requested_labels(folder)
    if requested is None:
        hint = f"give a complete folder written by `sample`, with {TABLE_NAMES[0]}"
        raise ConfigError("there are no samples", where=folder, hint=hint)
    names = [name for name, _ in requested]
    if not requested or not all(names):
        raise DataError("the table of samples has no rows, or one without a file", where=folder)
    if missing := sorted({*names} - filesystem.list_files(folder).keys()):
        raise DataError(f"{len(missing)} of {len(names)} images are missing, first {missing[0]}", where=folder)
    rows = [{label: text for label, text in row.items() if text} for _, row in requested]
    _refuse_labels({label: None for row in rows for label in row}, schema, where=folder)
    return names, [schema.encode({label: schema.check_value(label, row[label]) for label in row}) for row in rows]


def require_same_meaning(asked: LabelSchema, schema: LabelSchema, *, where: str) -> None:
    """Refuse images of a model that means something else by a label than the set does.

    Args:
        asked: The labels of the model.
        schema: The labels of the set.
        where: The model or its images.

    Raises:
        ConfigError: Names the labels.
    """
    if found := label_differences(asked, schema):
        raise ConfigError(
            f"the labels of the model (the first) and of --data (the second) are others: {'; '.join(found)}",
            where=where,
            hint="give the --data the model was trained with",
        )


def _refuse_labels(names: Iterable[str], schema: LabelSchema, *, where: str) -> None:
    """Refuse labels that images were asked for and the set does not have."""
    if unknown := [name for name in names if name not in schema.names]:
        raise ConfigError(
            f"the images were asked for {', '.join(unknown)}; the labels of --data are {', '.join(schema.names)}",
            where=where,
            hint="give the --data the model was trained with",
        )


def _schema_asked(folder: str) -> LabelSchema | None:
    """Return the labels of the model behind PNG files; None where an earlier version wrote them."""
    url = filesystem.join(folder, PROVENANCE_NAME)
    if not filesystem.exists(url):
        return None
    document = documents.read_document(url, format_name="synfundus-samples", version=1)
    return LabelSchema.from_document(document["label_schema"], where=url) if "label_schema" in document else None


def _by_name(states: NDArray[np.int64], asked: LabelSchema, schema: LabelSchema, *, where: str) -> NDArray[np.int64]:
    """Return the states ``[n, k]`` of the set's labels, from those of the model's; a label only the set has is unknown.

    Raises:
        ConfigError: Images were asked for a label the set does not have.
    """
    columns = dict(zip(asked.names, states.T, strict=True))
    _refuse_labels([name for name, column in columns.items() if column.any()], schema, where=where)
    unknown = np.full(len(states), UNKNOWN_STATE)
    return np.stack([columns.get(name, unknown) for name in schema.names], axis=1)
