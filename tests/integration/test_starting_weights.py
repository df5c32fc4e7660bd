"""Starting weights that come with the package: written, found by name, refused where they do not fit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from photographs import retina
from PIL import Image
from safetensors import safe_open
from tiny_runs import Talk
from tiny_sets import TINY, tiny_config

from benchmarks import starting_weights as making
from synfundus.artifacts.autoencoder_folder import find_autoencoder
from synfundus.artifacts.model_folder import load_pipeline
from synfundus.config.diffusion import UNetConfig
from synfundus.config.loader import Assignment, load_config
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import LocalWorld
from synfundus.errors import CheckpointError, ConfigError
from synfundus.labels.schema import LabelSchema, LabelSpec
from synfundus.models.autoencoder import LatentAutoencoder
from synfundus.models.pixels import pixels_to_tensor
from synfundus.models.vessel_metrics import vessel_correlation
from synfundus.stages import starting_weights
from synfundus.stages.demo import job as demo_job
from synfundus.stages.demo.job import start_from_drawn
from synfundus.stages.demo.plan import REFERENCE_PACE, plan_demo
from synfundus.stages.train import job as train_denoiser
from synfundus.stages.train.rehearsal import rehearse
from synfundus.stages.train.start import initial_denoiser
from synfundus.stages.train_vae import job as train_vae
from synfundus.stages.trial_step import latent_shape
from synfundus.storage.documents import read_document
from synfundus.storage.manifest import ShardSet


@pytest.fixture(scope="module")
def model_run(latent_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of train on the latents of the autoencoder."""
    run_dir = tmp_path_factory.mktemp("model") / "run"
    section = {"latents": latent_set.url, "run_dir": str(run_dir), "loop": {"budget_images": 32}}
    train_denoiser.run(tiny_config({"train": section}), LocalWorld(), Talk())
    return run_dir


@pytest.fixture(scope="module")
def drawn(
    image_set: ShardSet, vae_run: Path, model_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """Weights written from finished runs, and their figures."""
    work = tmp_path_factory.mktemp("work")
    (work / "images").symlink_to(image_set.url)
    (work / "vae").symlink_to(vae_run)
    (work / "model").symlink_to(model_run)
    out = work / "shipped" / starting_weights.DRAWN
    return out, making.write_weights(work, making.RECIPE, out, denoiser=True)


@pytest.fixture
def shipped(drawn: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package with these weights in it."""
    folder = drawn[0]
    monkeypatch.setattr(starting_weights, "asset_folders", lambda kind: (folder.parent / "none", folder.parent))
    return folder


def train(
    image_set: ShardSet, run_dir: Path, *, init_from: str = "drawn", **autoencoder: Any
) -> tuple[dict[str, Any], list[str]]:
    section = {"data": image_set.url, "run_dir": str(run_dir), "init_from": init_from, "autoencoder": autoencoder}
    talk = Talk()
    loop = {"budget_images": 8, "validation_images": 4}
    return train_vae.run(tiny_config({"train_vae": {**section, "loop": loop}}), LocalWorld(), talk), talk.lines


def test_they_are_the_trained_ones_in_half_precision_with_card_licence_and_recipe(
    drawn: tuple[Path, dict[str, Any]], vae_run: Path, model_run: Path
) -> None:
    folder, figures = drawn
    assert {path.name for path in folder.iterdir()} >= {"README.md", "LICENSE", "recipe.yaml", "synfundus.json"}
    for part in ("vae", "unet"):
        with safe_open(folder / part / "diffusion_pytorch_model.safetensors", framework="pt") as weights:
            assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}  # noqa: SIM118
    ours, theirs = (LatentAutoencoder.from_pretrained(find_autoencoder(str(one))) for one in (vae_run, folder))
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(theirs.state_dict()[name], tensor, rtol=1e-3, atol=1e-6)
    trained, stored = (load_pipeline(one, device=torch.device("cpu")) for one in (model_run / "export", folder))
    for name, tensor in trained.denoiser.state_dict().items():
        torch.testing.assert_close(stored.denoiser.state_dict()[name], tensor, rtol=1e-3, atol=1e-6)
    card = (folder / "README.md").read_text()
    assert figures["fingerprint"] in card
    assert stored.fingerprint in card
    assert "trained | 96 images" in card
    assert "trained | 32 images" in card
    assert f"PSNR {figures['psnr_db']:.2f} dB" in card
    assert "no patient" in card.lower()


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "out" / "thesis.tex"
    theirs.parent.mkdir()
    theirs.write_text("three years")
    with pytest.raises(SystemExit, match="something else than starting weights"):
        making.require_ours(theirs.parent)
    assert theirs.read_text() == "three years"


def test_a_run_starts_from_them_and_keeps_what_it_started_from(
    image_set: ShardSet, shipped: Path, drawn: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    _, said = train(image_set, tmp_path / "run")
    assert any("starts from drawn" in line for line in said)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["identity"]["init_from"] == "drawn"
    record = read_document(str(tmp_path / "run" / "init.json"), format_name="synfundus-initial-weights", version=1)
    assert (record["source"], record["fingerprint"]) == ("drawn", drawn[1]["fingerprint"])
    begun = LatentAutoencoder.from_pretrained(tmp_path / "run" / "init").state_dict()
    given = LatentAutoencoder.from_pretrained(shipped / "vae").state_dict()
    assert all(begun[name].equal(tensor) for name, tensor in given.items())


def test_another_architecture_is_refused_naming_both(image_set: ShardSet, shipped: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"latent_channels 6 \(they have 4\)") as refused:
        train(image_set, tmp_path / "run", latent_channels=6)
    assert "--set train_vae.autoencoder.latent_channels=4, or" in refused.value.hint
    train(image_set, tmp_path / "followed", latent_channels=4)
    with pytest.raises(ConfigError, match=r"linear_path False \(they have True\)"):
        train(image_set, tmp_path / "run", linear_path=False)
    (shipped / "vae" / "config.json").rename(shipped / "vae" / "kept.json")
    try:
        with pytest.raises(ConfigError, match="has no starting weights 'drawn'"):
            train(image_set, tmp_path / "run")
        (shipped / "vae" / "config.json").write_text("{}")
        with pytest.raises(CheckpointError, match="damaged"):
            train(image_set, tmp_path / "run")
    finally:
        (shipped / "vae" / "kept.json").rename(shipped / "vae" / "config.json")


def demo(**changes: Any) -> RunConfig:
    return tiny_config({"demo": {"source": "photographs", **changes}, "prepare": {"image_size_px": 64}})


def train_from_drawn(latents: ShardSet, run_dir: Path, **unet: Any) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return the denoiser a run starts from, and what is said."""
    section = {"latents": latents.url, "run_dir": str(run_dir), "init_from": "drawn", "unet": unet}
    talk = Talk()
    config = tiny_config({"train": section}).train
    return initial_denoiser(config, latents, talk, seed=0).denoiser.state_dict(), talk.lines


def relabelled(latents: ShardSet, schema: LabelSchema) -> ShardSet:
    """Return a latent set as one with other labels, and as one of another autoencoder."""
    return replace(latents, label_schema=schema, properties={**latents.properties, "autoencoder_fingerprint": "0" * 64})


def test_a_denoiser_starts_from_them_with_what_labels_mean_the_same(
    latent_set: ShardSet, shipped: Path, tmp_path: Path
) -> None:
    given = load_pipeline(shipped, device=torch.device("cpu")).denoiser
    theirs = given.state_dict()
    begun, said = train_from_drawn(relabelled(latent_set, latent_set.label_schema), tmp_path / "run")
    assert all(begun[name].equal(tensor) for name, tensor in theirs.items())
    assert any("shipped weights of drawn eyes" in line for line in said)
    side = latent_set.label_schema["eye_side"]
    grade = replace(latent_set.label_schema["dr_grade"], ordinal=False)
    other, said = train_from_drawn(
        relabelled(latent_set, LabelSchema((side, LabelSpec("is_myopic", 2), grade))), tmp_path / "other"
    )
    assert any("labels that begin anew: is_myopic, dr_grade" in line for line in said)
    place = int(given.conditioner.offsets[latent_set.label_schema.names.index("eye_side")])
    assert other["conditioner.table"][:3].equal(theirs["conditioner.table"][place : place + 3])
    assert not other["conditioner.table"][3:].eq(theirs["conditioner.table"][3 : len(other["conditioner.table"])]).any()
    assert all(
        other[name].equal(tensor) for name, tensor in theirs.items() if name.startswith(("unet", "conditioner.p"))
    )


def test_a_run_from_them_trains_and_is_refused_where_they_do_not_fit(
    latent_set: ShardSet, shipped: Path, drawn: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    loop = {"budget_images": 8, "validate_every_images": 0}
    section = {"latents": latent_set.url, "run_dir": str(run_dir), "init_from": "drawn", "loop": loop}
    config = tiny_config({"train": section})
    rehearse(config.train, config.sample)
    assert train_denoiser.run(config, LocalWorld(), Talk())["images_seen"] == 8
    record = read_document(str(run_dir / "init.json"), format_name="synfundus-initial-weights", version=1)
    named = load_pipeline(shipped, device=torch.device("cpu")).fingerprint
    assert (record["source"], record["fingerprint"]) == ("drawn", named)
    wide = tiny_config({"train": {**section, "run_dir": str(tmp_path / "wide"), "unet": {"block_out_channels": [32]}}})
    for start in (lambda: rehearse(wide.train, wide.sample), lambda: train_denoiser.run(wide, LocalWorld(), Talk())):
        with pytest.raises(ConfigError, match=r"block_out_channels \[32\] \(they have \[16\]\)"):
            start()
    small = replace(latent_set, properties={**latent_set.properties, "moments_shape": [8, 4, 4]})
    with pytest.raises(ConfigError, match=r"latents \[4, 4, 4\] \(they have \[4, 8, 8\]\)"):
        train_from_drawn(small, tmp_path / "small")
    for name, text in (("config.json", "{}"), ("config.json", "no JSON")):
        kept = (shipped / "unet" / name).read_text()
        (shipped / "unet" / name).write_text(text)
        with pytest.raises(CheckpointError, match="damaged"):
            train_from_drawn(latent_set, tmp_path / "damaged")
        (shipped / "unet" / name).write_text(kept)


def test_an_autoencoder_alone_is_a_start_for_the_autoencoder_alone(
    image_set: ShardSet, latent_set: ShardSet, vae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, out = tmp_path / "work", tmp_path / "shipped" / starting_weights.DRAWN
    work.mkdir()
    (work / "images").symlink_to(image_set.url)
    (work / "vae").symlink_to(vae_run)
    making.write_weights(work, making.RECIPE, out, denoiser=False)
    assert {path.name for path in out.iterdir()} == {"README.md", "LICENSE", "recipe.yaml", "vae"}
    assert "An autoencoder of fundus" in (out / "README.md").read_text()
    assert {path.stat().st_mode & 0o777 for path in (out / "vae").iterdir()} == {0o644}
    monkeypatch.setattr(starting_weights, "asset_folders", lambda kind: (out.parent,))
    started = start_from_drawn(demo(), Talk())
    assert (started.train_vae.init_from, started.train.init_from) == ("drawn", None)
    assert any("starts from drawn" in line for line in train(image_set, tmp_path / "run")[1])
    with pytest.raises(ConfigError, match="no starting weights 'drawn' for this network"):
        train_from_drawn(latent_set, tmp_path / "other")


def test_another_objective_is_taken_with_a_warning(latent_set: ShardSet, shipped: Path, tmp_path: Path) -> None:
    section = {"latents": latent_set.url, "run_dir": str(tmp_path / "run"), "init_from": "drawn"}
    for changed, warned in (({}, False), ({"prediction_type": "epsilon", "zero_terminal_snr": False}, True)):
        talk = Talk()
        initial_denoiser(tiny_config({"train": {**section, "diffusion": changed}}).train, latent_set, talk, seed=0)
        assert any("'v_prediction' there, 'epsilon' here" in line for line in talk.lines) == warned


def test_every_setting_of_the_denoiser_is_compared(shipped: Path) -> None:
    """A setting that a shipped denoiser is not asked about would end in an error of torch."""
    document = json.loads((shipped / "unet" / "config.json").read_text())
    compared = set(starting_weights.unet_architecture(document)) - {"latents"}
    assert compared == set(UNetConfig.model_fields) - {"dropout"}


def test_the_demo_on_ones_own_photographs_starts_from_them_where_they_fit(shipped: Path) -> None:
    talk = Talk()
    both = start_from_drawn(demo(), talk)
    assert (both.train_vae.init_from, both.train.init_from) == ("drawn", "drawn")
    assert "the autoencoder and the denoiser start from the shipped weights of drawn eyes" in talk.lines[0]
    theirs = demo().model_copy(update={"train": tiny_config({"train": {"init_from": "somewhere"}}).train})
    kept = start_from_drawn(theirs, talk)
    assert (kept.train_vae.init_from, kept.train.init_from) == ("drawn", "somewhere")
    assert "the autoencoder starts from" in talk.lines.pop()
    wide = demo().model_copy(update={"train": tiny_config({"train": {"unet": {"block_out_channels": [32]}}}).train})
    first = start_from_drawn(wide, talk)
    assert (first.train_vae.init_from, first.train.init_from) == ("drawn", None)
    assert "the autoencoder starts from" in talk.lines.pop()
    other = {"train_vae": {"autoencoder": {"latent_channels": 8}}, "demo": {"source": "photographs"}}
    given = {"train_vae": {"init_from": "somewhere"}, "demo": {"source": "photographs"}}
    for config in (demo(source=None), demo(starting_weights=False), tiny_config(other), tiny_config(given)):
        assert start_from_drawn(config, talk) == config
    assert len(talk.lines) == 1


def test_a_demo_goes_on_with_what_it_began_with(shipped: Path, tmp_path: Path) -> None:
    """Weights that an installation gets, or loses, meanwhile do not make another demo of it."""
    out = str(tmp_path / "demo")

    def begin(config: RunConfig) -> dict[str, Any]:
        demo_job._Demo(config, out, 1.0, LocalWorld(), Talk()).claim()
        found = demo_job._CLAIM.read(out)
        assert found is not None
        return found

    plain, named = (
        demo(),
        tiny_config({"demo": {"source": "drawn"}, "prepare": {"source": "drawn", "image_size_px": 64}}),
    )
    for config in (plain, named):
        begun = begin(config)
        assert begin(start_from_drawn(config, Talk(), begun)) == begun, "begun without"
        shutil.rmtree(out)
    begun = begin(start_from_drawn(plain, Talk()))
    (shipped / "vae" / "config.json").rename(shipped / "vae" / "kept.json")
    try:
        assert begin(start_from_drawn(plain, Talk(), begun)) == begun, "begun with"
    finally:
        (shipped / "vae" / "kept.json").rename(shipped / "vae" / "config.json")
    with pytest.raises(ConfigError, match="a demo with other settings"):
        begin(demo(starting_weights=False))


def test_a_folder_that_has_their_name_is_named_where_both_could_be_meant(
    image_set: ShardSet, shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    note = "the folder of that name here is written ./drawn"
    assert starting_weights.folder_of_that_name() == ""
    shutil.copytree(shipped, "drawn")
    assert any(note in line for line in train(image_set, tmp_path / "two")[1])
    with pytest.raises(ConfigError, match=note):
        train(image_set, tmp_path / "three", latent_channels=6)
    own = train(image_set, tmp_path / "four", init_from="./drawn")[1]
    assert any("starts from ./drawn" in line for line in own)
    assert not any(note in line for line in own)


def test_the_recipe_is_for_the_networks_of_the_demo() -> None:
    """Weights of another architecture than `demo --source` trains would never be used."""
    made = load_config(preset="demo-cpu", file=str(making.RECIPE), settings=[], flags=[]).config
    own = Assignment("demo.source", "photographs", "--source")
    demo_cpu = plan_demo(
        load_config(preset="demo-cpu", file=None, settings=[], flags=[own]).config, pace=REFERENCE_PACE
    )
    assert made.train_vae.autoencoder == demo_cpu.train_vae.autoencoder
    assert made.phantoms.variety == "wide"
    assert made.train.unet == demo_cpu.train.unet
    assert made.train.diffusion == demo_cpu.train.diffusion
    if (shipped := starting_weights.shipped_model()) is not None:
        assert starting_weights.architecture_problem(demo_cpu.train_vae.autoencoder, shipped) == ""
    if (shipped := starting_weights.shipped_model("unet")) is not None:
        shape = latent_shape(demo_cpu.train_vae.autoencoder, image_size_px=demo_cpu.prepare.image_size_px)
        assert starting_weights.denoiser_problem(demo_cpu.train.unet, shape, shipped) == ""


def test_what_is_shipped_keeps_the_vessels_of_a_real_photograph() -> None:
    """It has seen none: .90 was measured on this one, .78 with an autoencoder of the demo's minute on 326 others."""
    folder = starting_weights.shipped_model()
    assert folder is not None
    autoencoder = LatentAutoencoder.from_pretrained(folder / "vae").eval()
    whole = Image.fromarray(retina()).resize((128, 128), Image.Resampling.BOX)
    photograph = pixels_to_tensor(np.array(whole)[None])
    with torch.no_grad():
        mean, _ = autoencoder.split(autoencoder.encode(photograph))
        restored = autoencoder.decode(mean).clamp(-1, 1)
    assert float(vessel_correlation(restored, photograph)) > 0.85


def test_steps_that_are_done_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(making, "run_verb", lambda arguments: ran.append(arguments[0]))
    making.run_steps(tmp_path, making.RECIPE, denoiser=False)
    assert ran == ["phantoms", "prepare", "train-vae"]
    for proof, _ in making.steps(tmp_path, making.RECIPE, denoiser=True)[:2]:
        proof.parent.mkdir(parents=True)
        proof.touch()
    making.run_steps(tmp_path, making.RECIPE, denoiser=True)
    assert ran[3:] == ["train-vae", "encode-latents", "train"]


@pytest.mark.parametrize("name", ["INT", "TERM"])
def test_a_stopped_step_saves_and_says_how_to_resume(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.starting_weights"]
    making_them = subprocess.Popen(
        [*command, "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")],
        cwd=making.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    while not any((tmp_path / "work").rglob("*.png")):
        assert making_them.poll() is None
        time.sleep(0.1)
    number = getattr(signal, f"SIG{name}")
    (os.killpg if name == "INT" else os.kill)(making_them.pid, number)
    told, _ = making_them.communicate(timeout=120)
    assert making_them.returncode not in (0, -number), told
    assert f"stopped by SIG{name}" in told, "the verb came to its own end"
    assert "phantoms ended with code" in told
    assert "start it all again" in told
    assert "Traceback" not in told
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_whole_way_gives_the_same_weights_twice(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    small = {
        "phantoms": {"num_images": 60, "image_size_px": 64, "variety": "wide"},
        "prepare": {"image_size_px": 64},
        **{name: TINY[name] for name in ("train_vae", "encode_latents", "train", "launch")},
    }
    recipe.write_text(yaml.safe_dump(small))
    for name in ("one", "other"):
        out = str(tmp_path / name / "drawn")
        making.main(["--work", str(tmp_path / name), "--recipe", str(recipe), "--out", out, "--denoiser"])
    weights = "diffusion_pytorch_model.safetensors"
    files = (f"vae/{weights}", "vae/linear_path.safetensors", f"unet/{weights}", "conditioner/model.safetensors")
    assert all(
        (tmp_path / "one/drawn" / one).read_bytes() == (tmp_path / "other/drawn" / one).read_bytes() for one in files
    )
