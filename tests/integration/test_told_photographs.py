"""What a set says of its photographs reaches the model card: drawn ones are not taken for patients, nor the reverse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from phantom_clinic import config_of, write_clinic
from tiny_pipeline import write_tiny_pipeline
from tiny_runs import Talk
from tiny_sets import tiny_config, write_numbered_set

from synfundus.artifacts.latent_set import LatentSets, trained_on
from synfundus.distributed.world import LocalWorld, World
from synfundus.errors import ConfigError
from synfundus.labels.seen import NONE_KNOWN
from synfundus.stages.encode_latents import job as encode_latents
from synfundus.stages.phantoms import job as phantoms
from synfundus.stages.prepare import job as prepare
from synfundus.stages.rehearsal import rehearse_sampling
from synfundus.stages.sample import job as sample
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
    assert set(told["positives"].values()) <= {"0", NONE_KNOWN, "fewer than 10", "10", "11", "12"}
    assert (NONE_KNOWN in told["positives"].values()) is not drawn, "a clinic's table knows few labels, phantoms all"


def test_a_label_that_no_photograph_has_is_refused_unless_it_is_allowed(tmp_path: Path) -> None:
    told = {"photographs": {"positives": {"is_gc": NONE_KNOWN, "dr_grade": "0", "eye_side": "12"}}}
    document = write_tiny_pipeline(tmp_path / "model" / "export") / "synfundus.json"
    content = json.loads(document.read_text())
    content["training"] |= told
    document.write_text(json.dumps(content))
    console = Talk()
    section = {"model": str(tmp_path / "model"), "out": str(tmp_path / "out"), "num_images": 1, "num_steps": 1}
    refused = {**section, "label": {"is_gc": 1}}
    with pytest.raises(ConfigError, match=r"1 of 1 images .* --label: no photograph has is_gc=1") as caught:
        sample.run(tiny_config({"sample": refused}), LocalWorld(), console)
    assert "--allow-unseen" in caught.value.hint
    assert not (tmp_path / "out").exists(), "the folder is not claimed"
    with pytest.raises(ConfigError, match="no photograph has is_gc=1"):
        rehearse_sampling(tiny_config({"sample": refused}).sample)
    sample.run(tiny_config({"sample": {**refused, "allow_unseen": True}}), LocalWorld(), console)
    assert any("no photograph has is_gc=1. What is drawn for them is a guess" in line for line in console.lines)


def test_the_shares_of_a_mixture_are_told(tmp_path: Path) -> None:
    first, second = (write_numbered_set(tmp_path / name, [3]) for name in ("a", "b"))
    assert LatentSets((first,), (1.0,), first).shares_text() == ""
    told = LatentSets((first, second), (0.7, 2.1), first).shares_text()
    assert told == f"25.0 % of the samples: {first.url}\n75.0 % of the samples: {second.url}"
