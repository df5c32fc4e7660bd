"""Previews of trainings: marked as what they are, and of every label."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_pipeline import SCHEMA, tiny_autoencoder
from tiny_sets import phantom_samples, write_set

from synfundus.pictures.sheets import PATIENTS_NOTE, contact_sheet
from synfundus.stages.train.preview import PREVIEW_IMAGES, draw_preview, preview_labels
from synfundus.stages.train_vae.held_out import draw_reconstructions


def test_a_preview_says_in_its_file_that_it_is_synthetic() -> None:
    tile = np.zeros((16, 16, 3), dtype=np.uint8)
    data = draw_preview(SCHEMA, {"raw": [tile] * PREVIEW_IMAGES}, title="at 80 images")
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert image.info["synthetic"] == "yes"
        assert "trainedAlgorithmicMedia" in str(image.info["XML:com.adobe.xmp"])


def test_reconstructions_beside_photographs_are_marked_as_generated_in_part(tmp_path: Path) -> None:
    images = write_set(tmp_path, phantom_samples(2), shards={"val": (2,)})
    data = draw_reconstructions(tiny_autoencoder(), images)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert image.info["synthetic"] == "in part"
        assert "compositeWithTrainedAlgorithmicMedia" in str(image.info["XML:com.adobe.xmp"])


@pytest.mark.parametrize("drawn", [False, True])
def test_reconstructions_beside_photographs_of_patients_say_that_they_are(
    drawn: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []

    def draw(*images: Any, title: str, **layout: Any) -> Any:
        titles.append(title)
        return contact_sheet(*images, title=title, **layout)

    monkeypatch.setattr("synfundus.stages.train_vae.held_out.contact_sheet", draw)
    told = {"image_size_px": 64, "crop": "none", **({"drawn": True} if drawn else {})}
    images = write_set(tmp_path, phantom_samples(2), shards={"val": (2,)}, properties=told)
    with Image.open(io.BytesIO(draw_reconstructions(tiny_autoencoder(), images))) as image:
        image.load()
        assert image.info.get("Warning") == (None if drawn else PATIENTS_NOTE)
    assert [PATIENTS_NOTE in title for title in titles] == [not drawn]


def test_every_value_of_every_label_is_asked_for_once_and_nothing_at_all() -> None:
    rows = preview_labels(SCHEMA)
    assert len(rows) == PREVIEW_IMAGES
    assert rows[0] == {}
    asked = {item for row in rows for item in row.items()}
    assert asked == {*(("dr_grade", grade) for grade in range(5)), ("is_gc", 1), ("eye_side", 1)}
