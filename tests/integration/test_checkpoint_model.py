"""The model of a run that has not ended: its checkpoints open in diffusers, and `export` makes a model of each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from rank_processes import run_cli, run_ranks_killed_at
from tiny_runs import settings, train_here
from tiny_sets import flip_byte, merged, tiny_config, write_config
from torch import Tensor

from synfundus.artifacts.model import Model
from synfundus.artifacts.model_folder import load_pipeline
from synfundus.distributed.world import LocalWorld, World
from synfundus.errors import CheckpointError, ConfigError, DataError
from synfundus.models.weight_files import replace_weights
from synfundus.stages.export import job as export
from synfundus.storage.documents import write_document
from synfundus.storage.manifest import ShardSet
from synfundus.telemetry.console import SilentConsole

AT_80, AT_160 = "images-000000000080", "images-000000000160"
LAST = "images-000000000400"


@pytest.fixture(scope="module")
def ended(latent_set: ShardSet, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went to its end; not to be written to."""
    folder = tmp_path_factory.mktemp("ended") / "run"
    train_here(latent_set, folder, world)
    return folder


@pytest.fixture(scope="module")
def cut_off(latent_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that was killed behind its checkpoint at 160 images; not to be written to."""
    folder = tmp_path_factory.mktemp("cut") / "run"
    averages = {"train": {"ema": {"sigma_rel": [0.05, 0.1], "snapshot_every_images": 40}}}
    config = merged(settings(latent_set, folder), averages)
    path = write_config(folder.parent / "run.yaml", config)
    run_ranks_killed_at("settled:23", 0, "train", "--config", path, "--procs-per-node", "2", world_size=2)
    return folder


def exported(run_dir: Path, out: Path, **section: Any) -> Model:
    config = tiny_config({"export": {"run_dir": str(run_dir), "out": str(out), **section}})
    export.run(config, LocalWorld(), SilentConsole())
    return load_pipeline(out, device=torch.device("cpu"))


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_holds_a_network_that_diffusers_opens(ended: Path, tmp_path: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(ended / "checkpoints" / LAST / "unet", local_files_only=True)
    raw = exported(ended, tmp_path / "raw", checkpoint=LAST, weights="raw")
    assert same(unet.state_dict(), raw.denoiser.unet.state_dict())
    assert "_name_or_path" not in json.loads((ended / "checkpoints" / LAST / "unet" / "config.json").read_text())


def test_the_last_checkpoint_makes_the_model_the_run_exported(ended: Path, tmp_path: Path) -> None:
    finished = load_pipeline(ended / "export", device=torch.device("cpu"))
    made = exported(ended, tmp_path / "made", checkpoint=LAST)
    assert made.fingerprint == finished.fingerprint
    assert made.autoencoder_fingerprint == finished.autoencoder_fingerprint
    assert made.latent_mean == finished.latent_mean
    assert made.schedule_settings == finished.schedule_settings
    kept = ("parameters", "training_images", "images_seen")
    assert [made.training_summary[name] for name in kept] == [finished.training_summary[name] for name in kept]
    raw = exported(ended, tmp_path / "raw", weights="raw")
    assert raw.fingerprint != finished.fingerprint


def test_an_earlier_checkpoint_makes_another_model(ended: Path, tmp_path: Path) -> None:
    earlier = sorted(path.name for path in (ended / "checkpoints").glob("images-*"))[0]
    assert earlier != LAST
    made = exported(ended, tmp_path / "made", checkpoint=earlier)
    assert made.training_summary["images_seen"] == int(earlier.removeprefix("images-"))
    assert made.fingerprint != load_pipeline(ended / "export", device=torch.device("cpu")).fingerprint


def test_another_checkpoint_or_other_weights_do_not_replace_a_model(ended: Path, tmp_path: Path) -> None:
    earlier = sorted(path.name for path in (ended / "checkpoints").glob("images-*"))[0]
    out = tmp_path / "made"
    first = exported(ended, out, checkpoint=earlier).fingerprint
    for section, words in (
        ({"checkpoint": LAST}, f"images_seen {int(earlier[7:])} there, 400 here"),
        ({}, f"images_seen {int(earlier[7:])} there, 400 here"),
        ({"checkpoint": earlier, "weights": "raw"}, "weights averaged there, raw here"),
    ):
        with pytest.raises(ConfigError, match=f"another model is here.*{words}"):
            exported(ended, out, **section)
        assert load_pipeline(out, device=torch.device("cpu")).fingerprint == first
    assert exported(ended, out, checkpoint=earlier).fingerprint == first
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        exported(ended, out, checkpoint="images-000000000001")
    finished = tmp_path / "finished"
    assert exported(ended, finished).fingerprint == exported(ended, finished, checkpoint=LAST).fingerprint


def test_a_run_of_two_ranks_that_was_killed_gives_a_model_that_samples(cut_off: Path, tmp_path: Path) -> None:
    refused = run_cli("sample", "--model", cut_off, "--out", tmp_path / "images", "--num-images", "2")
    assert refused.returncode != 0
    assert "synfundus export --run-dir" in " ".join(refused.output.split())
    said = run_cli("export", "--run-dir", cut_off, "--out", tmp_path / "model").check().output
    assert "averaged weights at 160 images" in said
    command = ("sample", "--model", tmp_path / "model", "--out", tmp_path / "images", "--num-images", "2")
    run_cli(*command, "--set", "sample.num_steps=2").check()
    assert len(list((tmp_path / "images" / "images").glob("*.png"))) == 2
    assert "160" in (tmp_path / "model" / "README.md").read_text()


def test_an_average_of_another_length_needs_no_finished_run(cut_off: Path, tmp_path: Path) -> None:
    said = run_cli("ema", "--run-dir", cut_off, "--sigma-rel", "0.08", "--out", tmp_path / "model").check().output
    assert "average of width 0.08 at 160 images" in said
    made = load_pipeline(tmp_path / "model", device=torch.device("cpu"))
    assert made.training_summary["ema_sigma_rel"] == 0.08


def test_the_slices_of_two_ranks_make_the_model_that_the_run_exported(cut_off: Path, tmp_path: Path) -> None:
    """The engine joins the average over the ranks, `export` joins it from their files: the same bits."""
    copy = tmp_path / "run"
    shutil.copytree(cut_off, copy)
    run_cli("train", "--config", cut_off.parent / "run.yaml", "--procs-per-node", "2",
            "--set", f"train.run_dir={copy}").check()  # fmt: skip
    finished = load_pipeline(copy / "export", device=torch.device("cpu"))
    assert len(list((copy / "checkpoints" / LAST / "zero").iterdir())) == 2
    assert exported(copy, tmp_path / "made", checkpoint=LAST).fingerprint == finished.fingerprint
    raw = exported(copy, tmp_path / "raw", weights="raw").denoiser.state_dict()
    assert not same(finished.denoiser.state_dict(), raw)
    assert "not averaged" in (tmp_path / "raw" / "README.md").read_text()
    assert "not averaged" not in (tmp_path / "made" / "README.md").read_text()


def judged(run_dir: Path, *, model: str, auc: float | None = 0.75, withheld: bool = False) -> None:
    """Write what `judge --model RUN --out RUN/judged` leaves, as far as `export` reads it."""
    nothing = {"kappa": None, "auc": None, "accuracy": None}
    generated = {"is_gc": nothing | {"auc": auc, "accuracy": 0.6}, "eye_side": nothing}
    photographs = {"is_gc": nothing | {"auc": 0.875, "accuracy": 0.8}, "eye_side": nothing}
    control = {"generated": None if withheld else {"labels": generated}, "real": {"labels": photographs}}
    (run_dir / "judged" / "samples").mkdir(parents=True, exist_ok=True)
    report = str(run_dir / "judged" / "judge.json")
    write_document(report, {"label_control": control}, format_name="synfundus-judge", version=1)
    (run_dir / "judged" / "samples" / "PROVENANCE.json").write_text(json.dumps({"model_fingerprint": model}))


def test_the_card_of_an_export_shows_a_preview_and_what_judge_found_of_this_very_model(
    ended: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(ended, tmp_path / "run")
    made = exported(copy, tmp_path / "before")
    card = (tmp_path / "before" / "README.md").read_text()
    assert "--out RUN/judged`, then export again" in card
    for row in ("licence of the photographs", "licence of the weights", "contact"):
        assert f"| {row} | **not stated: fill in** |" in card
    assert not (tmp_path / "before" / "preview.png").exists()
    (copy / "previews").mkdir(exist_ok=True)
    (copy / "previews" / "images-000000000001.png").write_bytes(b"early")
    (copy / "previews" / "images-000000000002.png").write_bytes(b"late")
    (copy / "previews" / "images-900000000000.png").write_bytes(b"of a run that went on")
    judged(copy, model=made.fingerprint)
    exported(copy, tmp_path / "after")
    card = (tmp_path / "after" / "README.md").read_text()
    assert "| label control, of generated images | `is_gc` AUC 0.75 (held-out photographs 0.88) |" in card
    assert "](preview.png)" in card
    assert (tmp_path / "after" / "preview.png").read_bytes() == b"late"
    judged(copy, model=made.fingerprint, auc=None)
    exported(copy, tmp_path / "after")
    assert "`is_gc` accuracy 0.60 (held-out photographs 0.80)" in (tmp_path / "after" / "README.md").read_text()
    judged(copy, model=made.fingerprint, withheld=True)
    exported(copy, tmp_path / "after")
    assert "| withheld: the generated images do not look" in (tmp_path / "after" / "README.md").read_text()
    for name in ("judge.json", "samples/PROVENANCE.json"):
        judged(copy, model=made.fingerprint)
        (copy / "judged" / name).write_text('{"model_fing')
        with pytest.raises(DataError, match="not valid JSON"):
            exported(copy, tmp_path / name.partition(".")[0])
    judged(copy, model="another")
    exported(copy, tmp_path / "after")
    assert "not measured" in (tmp_path / "after" / "README.md").read_text()


def test_an_export_that_the_run_has_left_behind_is_named(ended: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(ended, copy)
    assert "was trained further" not in run_cli("export", "--run-dir", copy, "--out", tmp_path / "one").check().output
    shutil.copytree(copy / "checkpoints" / LAST, copy / "checkpoints" / "images-000000000480")
    said = run_cli("export", "--run-dir", copy, "--out", tmp_path / "two").check().output
    assert "was trained further after this export, to 480 images" in " ".join(said.split())


def test_weights_of_another_network_are_refused(ended: Path) -> None:
    denoiser = load_pipeline(ended / "export", device=torch.device("cpu")).denoiser
    weights = dict(denoiser.state_dict())
    name = next(iter(weights))
    for wrong in ({**weights, name: torch.zeros(1)}, {**weights, "more": torch.zeros(1)}):
        with pytest.raises(CheckpointError, match="weights of another network"):
            replace_weights(denoiser, wrong, where="here")
    del weights[name]
    with pytest.raises(CheckpointError, match="they lack"):
        replace_weights(denoiser, weights, where="here")


def test_a_damaged_newest_checkpoint_is_passed_over_and_one_asked_for_is_refused(cut_off: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(cut_off, copy)
    flip_byte(copy / "checkpoints" / AT_160 / "unet" / "diffusion_pytorch_model.safetensors", 3000)
    with pytest.raises(CheckpointError, match="damaged: unet/diffusion_pytorch_model") as caught:
        exported(copy, tmp_path / "asked", checkpoint=AT_160)
    assert caught.value.where.endswith(AT_160)
    assert exported(copy, tmp_path / "newest").training_summary["images_seen"] == 80
    with pytest.raises(CheckpointError, match="no checkpoint images-000000000004") as missing:
        exported(copy, tmp_path / "missing", checkpoint="images-000000000004")
    assert AT_80 in missing.value.hint


def test_a_checkpoint_of_train_vae_holds_an_autoencoder_that_diffusers_opens(vae_run: Path, tmp_path: Path) -> None:
    newest = sorted((vae_run / "checkpoints").glob("images-*"))[-1]
    AutoencoderKL.from_pretrained(newest / "vae", local_files_only=True)
    with pytest.raises(CheckpointError, match="this is an autoencoder"):
        exported(vae_run, tmp_path / "out")
