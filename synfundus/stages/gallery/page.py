"""What the page of a gallery is made of: labels and columns as a script, and the built assets of ``web/gallery``.

A page that is opened from a file may load scripts and images of its folder, but read no other file. So the data are
a script that sets a variable.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synfundus.artifacts.samples.description import LABELS_ARE, RELEASE
from synfundus.labels.schema import DISEASES, READABLE, LabelSchema, LabelSpec
from synfundus.stages.gallery.sheets import LARGE_SIDE, SIDE, THUMBNAIL_PX
from synfundus.stages.gallery.sources import Collection
from synfundus.storage import filesystem

DATA_NAME = "data/gallery.js"
PAGE_NAME = "index.html"
ASSETS = ("page.js", "page.css")
DATA_VERSION = 1
_VARIABLE = "synfundusGallery"


@dataclass(frozen=True)
class Group:
    """The images of one kind, as the page shows them.

    Attributes:
        key: ``synthetic`` or ``real``, in file names too.
        collection: Where they come from.
        names: File or key of each that can be shown.
        positions: Number of each in the collection ``[n]``.
        states: Label states in the order of the collection's schema ``[n, k]``.
        brightness: Mean brightness ``[n]``.
        places: Place of each on the map ``[n, 2]``.
        large_px: Edge of a large tile; 0 where there is none.
        full: Extension of the copied files; empty where there are none.
    """

    key: str
    collection: Collection
    names: Sequence[str]
    positions: NDArray[np.uint32]
    states: NDArray[np.uint8]
    brightness: NDArray[np.uint8]
    places: NDArray[np.uint16]
    large_px: int
    full: str


def label_title(spec: LabelSpec) -> str:
    """Return a label in words: its meaning, as far as that is a name."""
    words = spec.meaning.partition(":")[0].strip()
    return words if words and not words[0].isdigit() else spec.name.removeprefix("is_").replace("_", " ")


def value_names(spec: LabelSpec) -> list[str]:
    """Return the names of a label's values, from 0 on; with the grade where there are grades."""
    names = spec.names or tuple(map(str, range(spec.num_values)))
    return [f"{value} {name}" for value, name in enumerate(names)] if spec.ordinal and spec.names else list(names)


def _unremarkable(spec: LabelSpec) -> int | None:
    """Return the value that needs no mention in a caption."""
    return 0 if spec.name in DISEASES and not spec.ordinal else 1 if spec.name in READABLE else None


def shown_labels(schemas: Sequence[LabelSchema]) -> list[LabelSpec]:
    """Return the labels of all schemas, those of the first one first."""
    found: dict[str, LabelSpec] = {}
    for spec in (spec for schema in schemas for spec in schema.labels):
        found.setdefault(spec.name, spec)
    return list(found.values())


def _column(values: NDArray[Any]) -> str:
    """Return numbers as base64 of their little-endian bytes."""
    return base64.b64encode(values.astype(values.dtype.newbyteorder("<")).tobytes()).decode()


def _group_document(group: Group, labels: Sequence[LabelSpec]) -> dict[str, Any]:
    schema = group.collection.schema
    columns = dict(zip(schema.names, group.states.T, strict=True))
    unknown = np.zeros(len(group.names), np.uint8)
    return {
        "key": group.key,
        "mark": group.collection.mark,
        "count": len(group.names),
        "tile": {"px": THUMBNAIL_PX, "side": SIDE},
        "large": {"px": group.large_px, "side": LARGE_SIDE} if group.large_px else None,
        "full": group.full,
        "positions": _column(group.positions),
        "states": [_column(columns.get(spec.name, unknown)) for spec in labels],
        "brightness": _column(group.brightness),
        "x": _column(group.places[:, 0]),
        "y": _column(group.places[:, 1]),
        "names": "\n".join(name.replace("\n", " ") for name in group.names),
    }


def data_script(groups: Sequence[Group], *, variance: tuple[float, float], about: Mapping[str, Any]) -> bytes:
    """Return the data of a gallery as a script.

    Args:
        groups: The images.
        variance: Share of the variance along the axes of the map.
        about: What else the page says of them.
    """
    labels = shown_labels([group.collection.schema for group in groups])
    document = {
        "version": DATA_VERSION,
        "labels": [
            {
                "name": spec.name,
                "title": label_title(spec),
                "values": value_names(spec),
                "unremarkable": _unremarkable(spec),
            }
            for spec in labels
        ],
        "groups": [_group_document(group, labels) for group in groups],
        "variance": [round(share, 4) for share in variance],
        "labelsAre": LABELS_ARE,
        "release": RELEASE,
        **about,
    }
    return f"globalThis.{_VARIABLE} = {json.dumps(document, sort_keys=True)};\n".encode()


def write_data(out: str, data: bytes) -> None:
    """Write the data of the page."""
    filesystem.write_bytes(filesystem.join(out, DATA_NAME), data)


def write_page(out: str) -> None:
    """Write the page, as it was built from ``web/gallery``."""
    assets = files(__package__).joinpath("assets")
    for name in (*ASSETS, PAGE_NAME):
        filesystem.write_bytes(filesystem.join(out, name), assets.joinpath(name).read_bytes())
