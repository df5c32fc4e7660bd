"""What the demo says of its figures: what they are of, and what to distrust."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_runs import Talk
from tiny_sets import write_phantom_set

from synfundus.config.generation import DemoConfig
from synfundus.evaluation.label_control import LabelAgreement
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA
from synfundus.pictures.sheets import PATIENTS_NOTE, PictureSection, titled_rows
from synfundus.stages.demo.plan import GenerationPlan
from synfundus.stages.demo.report import (
    WITHHELD,
    DemoResult,
    describe_autoencoder,
    draw_demo,
    label_control_subtitle,
    reconstruction_subtitle,
    report_document,
    show_report,
)
from synfundus.stages.demo.verb import VERB
from synfundus.stages.judging import LabelControl, LabelledImages, describe_judged, read_photographs
from synfundus.stages.verb import closing_lines
from synfundus.stages.vessel_detail import VesselsBeside
from synfundus.storage.manifest import ShardSet

FIGURES = {"psnr_db": 30.0, "ssim": 0.9, "vessel_images": 0}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_phantom_set(tmp_path_factory.mktemp("photographs"))


def test_the_stage_says_what_its_figures_are_of() -> None:
    assert describe_autoencoder({**FIGURES, "judged_on": "held-out images"}).endswith("; of held-out images")
    assert "held" not in describe_autoencoder(FIGURES)
    result = DemoResult(minutes=1, pace_images_per_s=1, world_size=1, judged_on="held-out photographs")
    result.add_stage("train-vae", 1.0, "", {**FIGURES, "judged_on": "training images (no val split)"})
    subtitle = reconstruction_subtitle(result)
    assert subtitle.startswith("held-out photographs, and what is left")
    assert subtitle.endswith("of training images (no val split)")


def test_photographs_are_held_out_where_a_split_holds_them_out(photographs: ShardSet) -> None:
    without = replace(photographs, shards=photographs.split_shards("train"))
    known = replace(photographs, properties={**photographs.properties, "num_patients": {"train": 3, "val": 2}})
    assert describe_judged(photographs) == "held-out photographs"
    assert describe_judged(known) == "photographs of held-out patients"
    assert "nobody is held out" in describe_judged(without)
    train, judged = read_photographs(without)
    assert judged is train
    train, judged = read_photographs(photographs)
    assert (len(train), len(judged)) == (
        photographs.num_samples("train"),
        photographs.num_samples("val") + photographs.num_samples("test"),
    )


def test_the_demo_says_what_to_distrust() -> None:
    talk = Talk()
    warnings = ("nobody is held out", "the camera tells it")
    show_report(DemoResult(1, 1, 1, label_control=LabelControl(warnings=warnings)), talk)
    assert [line for line in talk.lines if line.startswith("warning: ")] == [f"warning: {text}" for text in warnings]


def _judged(energy: float) -> DemoResult:
    agreement = {"eye_side": LabelAgreement(8, 4, None, 0.62, None, accuracy_interval=(0.39, 0.82))}
    seen = {"real": agreement} if energy > 3 else {"real": agreement, "generated": agreement}
    control = LabelControl(dict(seen), dict(seen), generated_vessels=VesselsBeside(energy, -0.9))
    return DemoResult(0.05, 1, 1, label_control=control, num_generated=16)


def test_figures_of_noise_are_withheld_wherever_they_would_stand() -> None:
    result, talk = _judged(79.6), Talk()
    show_report(result, talk)
    warnings = [line for line in talk.lines if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "do not look like fundus photographs" in warnings[0]
    assert label_control_subtitle(result).endswith(f"(synthetic) · {WITHHELD}")
    document = report_document(result, seed=0, budgets={})
    assert document["label_control"]["generated"] is document["camera_alone"]["generated"] is None
    assert document["label_control"]["real"]["headline"]["eye_side_accuracy"] == 0.62
    assert warnings[0].endswith(document["label_control_withheld"])
    assert document["generated_vessel_energy"] == 79.6
    (said,) = closing_lines(VERB, DemoConfig(out="out"), document)
    assert "next: synfundus sample" not in said
    assert "more --minutes" in said


def test_figures_of_images_that_look_like_photographs_are_given() -> None:
    result = _judged(0.77)
    assert label_control_subtitle(result).endswith("judged on 16 generated images: side 0.62 (0.39, 0.82)")
    document = report_document(result, seed=0, budgets={})
    assert document["label_control"]["generated"]["headline"]["eye_side_accuracy"] == 0.62
    assert not document["label_control_withheld"]
    assert closing_lines(VERB, DemoConfig(out="out"), document)[-1].startswith(
        "next: synfundus sample --model out/model"
    )


@pytest.mark.parametrize("note", ["", PATIENTS_NOTE])
def test_a_picture_with_photographs_of_patients_says_so(note: str, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []

    def arrange(sections: Sequence[PictureSection], **layout: Any) -> Any:
        titles.extend(section.title for section in sections)
        return titled_rows(sections, **layout)

    monkeypatch.setattr("synfundus.stages.demo.report.titled_rows", arrange)
    pixels = np.full((2, 64, 64, 3), 90, dtype=np.uint8)
    shown = LabelledImages(pixels, np.ones((2, len(DEFAULT_LABEL_SCHEMA.labels)), dtype=np.int64))
    data = draw_demo(
        result=_judged(79.6),
        plan=GenerationPlan((), 0, ()),
        held_out=shown,
        restored=pixels,
        photographs=shown,
        generated=pixels,
        schema=DEFAULT_LABEL_SCHEMA,
        note=note,
    )
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert image.info.get("Warning", "") == note
    assert titles == [f"Autoencoder · {note}" if note else "Autoencoder"]
