"""What a set says of its photographs reaches the model card: drawn ones are not taken for patients, nor the reverse."""

from __future__ import annotations

from pathlib import Path

import pytest
from phantom_clinic import config_of, write_clinic
from tiny_pipeline import write_tiny_pipeline
from tiny_sets import tiny_config

from synfundus.artifacts.latent_set import trained_on
from synfundus.distributed.world import World
from synfundus.stages.encode_latents import job as encode_latents
from synfundus.stages.phantoms import job as phantoms
from synfundus.stages.prepare import job as prepare
from synfundus.storage.manifest import load_shard_set
from synfundus.telemetry.console import SilentConsole


@pytest.mark.parametrize("drawn", [True, False])
def test_photographs_that_were_drawn_are_told_from_those_of_patients(drawn: bool, world: World, tmp_path: Path) -> None:
    source, console = tmp_path / "in", SilentConsole()
    if drawn:
        section = {"out": str(source), "num_images": 12, "image_size_px": 96, "workers": 0}
        phantoms.run(tiny_config({"phantoms": section}), world, console)
    else:
        write_clinic(source, 12)
    prepare.run(config_of(source, tmp_path / "images", tmp_path / "names"), world, console)
    write_tiny_pipeline(tmp_path / "model" / "export")
    encode = {"data": str(tmp_path / "images"), "vae": str(tmp_path / "model"), "out": str(tmp_path / "latents")}
    encode_latents.run(tiny_config({"encode_latents": encode}), world, console)
    images, latents = (load_shard_set(str(tmp_path / name), kind=name) for name in ("images", "latents"))
    told = trained_on(latents)
    assert told["drawn"] is drawn
    assert ("drawn" in images.properties) == drawn
    assert told["patients"] == sum(images.properties["num_patients"].values())
    assert told["collections"] == [images.properties["source"]]
    assert set(told["positives"].values()) <= {"0", "fewer than 10", "10", "11", "12"}
