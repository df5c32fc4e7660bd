"""What the demo says of its figures: what they are of, and what to distrust."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_runs import Talk
from tiny_sets import write_phantom_set

from synfundus.stages.demo.report import DemoResult, describe_autoencoder, reconstruction_subtitle, show_report
from synfundus.stages.judging import LabelControl, describe_judged, read_photographs
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
