"""Runs that start from weights others have trained: any autoencoder through the whole chain, any U-Net into `train`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderDC, AutoencoderKL, UNet2DConditionModel
from foreign_models import SCHEDULER, SD2, SD15, SDXL, dc_f32, kl_f8, write_foreign_pipeline
from rank_processes import run_cli, run_cli_killed_at
from tiny_sets import tiny_config, write_config

from synfundus.artifacts.model_folder import load_pipeline
from synfundus.distributed.world import World
from synfundus.errors import CheckpointError, ConfigError
from synfundus.models.autoencoder import fingerprint
from synfundus.models.pixels import pixels_to_tensor
from synfundus.shards.reader import ShardSetReader
from synfundus.shards.source import ImageDecoder, LatentDecoder
from synfundus.stages.encode_latents import job as encode_latents
from synfundus.stages.sample import job as sample
from synfundus.stages.train import job as train
from synfundus.stages.train_vae import job as train_vae
from synfundus.stages.verify_latents import job as verify_latents
from synfundus.storage import filesystem
from synfundus.storage.documents import read_document, read_lines
from synfundus.storage.manifest import ShardSet, load_shard_set
from synfundus.telemetry.console import SilentConsole

AUTOENCODERS: dict[str, Callable[[], AutoencoderKL | AutoencoderDC]] = {
    "KL, f8, 4 channels": lambda: kl_f8(4),
    "KL, f8, 16 channels": lambda: kl_f8(16),
    "DC, f32, 8 channels": dc_f32,
}
SHAPES = {"KL, f8, 4 channels": (4, 8, 8), "KL, f8, 16 channels": (16, 8, 8), "DC, f32, 8 channels": (8, 2, 2)}
SHORT = {"budget_images": 16, "checkpoint_every_images": 8, "validate_every_images": 0, "validation_images": 4}
WEIGHTS = "diffusion_pytorch_model.safetensors"


class Talk(SilentConsole):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.warnings: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def encode(image_set: ShardSet, vae: Path, out: Path, world: World, **section: Any) -> ShardSet:
    given = {"data": image_set.url, "vae": str(vae), "out": str(out), **section}
    encode_latents.run(tiny_config({"encode_latents": given}), world, SilentConsole())
    return load_shard_set(str(out), kind="latents")


def train_on(
    latents: ShardSet, run_dir: Path, world: World, talk: Talk | None = None, **changes: Any
) -> dict[str, Any]:
    return train.run(tiny_config(settings(latents, run_dir, **changes)), world, talk or Talk())


def settings(latents: ShardSet, run_dir: Path, **changes: Any) -> dict[str, Any]:
    init_from = changes.pop("init_from", None)
    given = {"latents": latents.url, "run_dir": str(run_dir)} | ({"init_from": str(init_from)} if init_from else {})
    return {"train": {**given, "loop": {**SHORT, **changes.pop("loop", {})}, **changes}}


def read_first(image_set: ShardSet, latents: ShardSet) -> tuple[torch.Tensor, np.ndarray[Any, Any]]:
    """Return the first image of the train split and its stored moments."""
    images, stored = ShardSetReader(image_set, split="train"), ShardSetReader(latents, split="train")
    decode_image = ImageDecoder(schema=image_set.label_schema, image_size_px=64)
    shape = tuple(latents.properties["moments_shape"])
    decode = LatentDecoder(schema=latents.label_schema, moments_shape=shape, with_flip=False)
    (key, image), (same, members) = images.read(0, 0), stored.read(0, 0)
    assert key == same
    pixels = pixels_to_tensor(decode_image(key, image, "image")["pixels"][None])
    moments = decode(key, members, "latents")["moments"]
    images.close()
    stored.close()
    return pixels, moments


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_a_foreign_autoencoder_goes_through_the_whole_chain(
    kind: str, image_set: ShardSet, world: World, tmp_path: Path
) -> None:
    stock, channels = AUTOENCODERS[kind](), SHAPES[kind][0]
    stock.save_pretrained(tmp_path / "foreign" / "vae")
    latents = encode(image_set, tmp_path / "foreign", tmp_path / "latents", world)
    assert tuple(latents.properties["moments_shape"]) == (2 * channels, *SHAPES[kind][1:])

    # raw: neither scaling_factor nor shift_factor of the config is in what is stored
    pixels, moments = read_first(image_set, latents)
    with torch.no_grad():
        if isinstance(stock, AutoencoderDC):
            mean, logvar = stock.encode(pixels).latent, torch.tensor(-30.0)
        else:
            posterior = stock.encode(pixels).latent_dist
            mean, logvar = posterior.mean, posterior.logvar
    np.testing.assert_allclose(moments[:channels], mean[0].numpy(), rtol=2e-3, atol=2e-3)
    wanted_logvar = np.broadcast_to(logvar.numpy(), (1, *moments[channels:].shape))[0]
    np.testing.assert_allclose(moments[channels:], wanted_logvar, rtol=2e-3, atol=2e-3)

    summary = train_on(latents, tmp_path / "run", world, loop={"preview_every_images": 16})
    assert summary["images_seen"] == 16
    assert np.isfinite(summary["loss"])
    exported = tmp_path / "run" / "export"
    back = type(stock).from_pretrained(exported / "vae", use_safetensors=True, low_cpu_mem_usage=False)
    assert all(torch.equal(one, stock.state_dict()[name]) for name, one in back.state_dict().items())
    is_kl = isinstance(stock, AutoencoderKL)
    assert (exported / "diffusers").exists() is is_kl
    opens = "DiffusionPipeline" if is_kl else type(stock).__name__
    assert f"{opens}.from_pretrained" in (exported / "README.md").read_text()

    given = {"model": str(tmp_path / "run"), "out": str(tmp_path / "samples"), "num_images": 2, "batch_size": 2}
    sample.run(tiny_config({"sample": given}), world, SilentConsole())
    assert len(list((tmp_path / "samples" / "images").glob("*.png"))) == 2

    checked = {"latents": latents.url, "vae": str(tmp_path / "foreign"), "num_samples": 4, "min_psnr_db": 0.0}
    found = verify_latents.run(tiny_config({"verify_latents": checked}), world, SilentConsole())
    assert found["samples"] == 4


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_training_goes_on_from_a_foreign_autoencoder(
    kind: str, image_set: ShardSet, world: World, tmp_path: Path
) -> None:
    stock = AUTOENCODERS[kind]()
    stock.save_pretrained(tmp_path / "foreign")
    changes = {"data": image_set.url, "run_dir": str(tmp_path / "run"), "init_from": str(tmp_path / "foreign")}
    loop = {"budget_images": 48, "checkpoint_every_images": 16, "validation_images": 4}
    config = tiny_config({"train_vae": {**changes, "loop": loop}})
    train_vae.run(config, world, SilentConsole())
    rows = [row for row in read_lines(str(tmp_path / "run" / "metrics.jsonl")) if "l1" in row]
    assert rows[-1]["l1"] < rows[0]["l1"]
    assert (rows[0]["kl"] == 0) == isinstance(stock, AutoencoderDC)
    folder = tmp_path / "run" / "export" / "vae"
    trained = type(stock).from_pretrained(folder, use_safetensors=True, low_cpu_mem_usage=False)
    assert not torch.equal(next(trained.parameters()), next(stock.parameters()))
    record = json.loads((tmp_path / "run" / "init.json").read_text())
    assert record["fingerprint"] == fingerprint(tmp_path / "foreign"), "of what the run started from, in a folder"
    latents = encode(image_set, tmp_path / "run", tmp_path / "latents", world)
    assert latents.num_samples() == 96


def test_the_latents_of_an_exact_code_are_drawn_as_they_are(image_set: ShardSet, world: World, tmp_path: Path) -> None:
    dc_f32().save_pretrained(tmp_path / "vae")
    latents = encode(image_set, tmp_path / "vae", tmp_path / "latents", world)
    _, moments = read_first(image_set, latents)
    assert (moments[8:] == -30.0).all()
    assert float(np.exp(0.5 * moments[8:].astype(np.float64)).max()) < 1e-6
    assert all(std > 0 for std in latents.properties["latent_std"])


def test_a_half_precision_autoencoder_with_an_old_config_serves_until_the_export(
    image_set: ShardSet, world: World, tmp_path: Path
) -> None:
    vae = tmp_path / "foreign" / "vae"
    kl_f8(4).half().save_pretrained(vae, variant="fp16")
    config = json.loads((vae / "config.json").read_text())
    del config["force_upcast"], config["mid_block_add_attention"]
    (vae / "config.json").write_text(json.dumps(config))
    latents = encode(image_set, tmp_path / "foreign", tmp_path / "latents", world)
    train_on(latents, tmp_path / "run", world)
    loaded = load_pipeline(tmp_path / "run" / "export", device=torch.device("cpu"))
    assert loaded.autoencoder_fingerprint == latents.properties["autoencoder_fingerprint"]


def test_autoencoders_that_cannot_be_used_leave_no_mark(image_set: ShardSet, world: World, tmp_path: Path) -> None:
    dc_f32().save_pretrained(tmp_path / "dc")
    diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        num_encoder_blocks=(1,),
        num_decoder_blocks=(1,),
    ).save_pretrained(tmp_path / "tiny")

    def start(folder: str, loop: Mapping[str, Any]) -> None:
        given = {"data": image_set.url, "run_dir": str(tmp_path / "run"), "init_from": str(tmp_path / folder)}
        train_vae.run(tiny_config({"train_vae": {**given, "loop": dict(loop)}}), world, SilentConsole())

    with pytest.raises(ConfigError, match="AutoencoderDC cannot recompute its activations"):
        start("dc", {"gradient_checkpointing": True})
    with pytest.raises(CheckpointError, match="'AutoencoderTiny', expected 'AutoencoderKL' or 'AutoencoderDC'"):
        start("tiny", {})
    with pytest.raises(CheckpointError, match="'AutoencoderTiny', expected"):
        encode(image_set, tmp_path / "tiny", tmp_path / "latents", world)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "latents").exists()


@pytest.fixture(scope="module")
def wide_latents(image_set: ShardSet, world: World, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Latents of 16 channels."""
    folder = tmp_path_factory.mktemp("wide")
    kl_f8(16).save_pretrained(folder / "vae")
    return encode(image_set, folder / "vae", folder / "latents", world)


@pytest.mark.parametrize("kind", ["sd15", "sd2", "sdxl"])
def test_a_run_starts_from_a_foreign_unet_and_exports_one(
    kind: str, latent_set: ShardSet, world: World, tmp_path: Path
) -> None:
    config = {"sd15": SD15, "sd2": SD2, "sdxl": SDXL}[kind]
    foreign = write_foreign_pipeline(tmp_path / "foreign", config)
    talk, run_dir = Talk(), tmp_path / "run"
    summary = train_on(latent_set, run_dir, world, talk, init_from=tmp_path / "foreign", optim={"lr": 1e-9})
    assert summary["images_seen"] == 16
    exported = UNet2DConditionModel.from_pretrained(
        run_dir / "export" / "unet", use_safetensors=True, low_cpu_mem_usage=False
    )
    assert exported.config.cross_attention_dim == config["cross_attention_dim"]
    assert list(exported.config.block_out_channels) == config["block_out_channels"]
    # at such a rate the weights are still those of the start
    for name, tensor in foreign.state_dict().items():
        if not name.startswith("add_embedding."):
            torch.testing.assert_close(exported.state_dict()[name], tensor, rtol=0, atol=1e-6)

    report = read_document(str(run_dir / "init.json"), format_name="synfundus-initial-weights", version=1)
    assert {*report["taken"], *report["unused"]} == set(foreign.state_dict())
    assert report["adapted"] == {}
    assert "conditioner.table" in report["new"]
    said = next(line for line in talk.lines if line.startswith("started from"))
    assert f"{len(report['taken'])} tensors" in said
    assert any(line.startswith("new: class_embedding.linear_1.weight") for line in talk.lines)
    document = json.loads((run_dir / "export" / "synfundus.json").read_text())
    assert document["training"]["started_from"] == report["fingerprint"]
    given = {"model": str(run_dir), "out": str(tmp_path / "samples"), "num_images": 2, "batch_size": 2}
    sample.run(tiny_config({"sample": given}), world, SilentConsole())


def test_latents_of_other_channels_are_adapted_to_and_reported(
    wide_latents: ShardSet, world: World, tmp_path: Path
) -> None:
    write_foreign_pipeline(tmp_path / "foreign", SD15)
    talk = Talk()
    train_on(wide_latents, tmp_path / "run", world, talk, init_from=tmp_path / "foreign")
    assert "adapted: conv_in.weight [8, 4, 3, 3] -> [8, 16, 3, 3], repeated, rescaled" in talk.lines
    report = json.loads((tmp_path / "run" / "init.json").read_text())
    assert set(report["adapted"]) == {"conv_in.weight", "conv_out.weight", "conv_out.bias"}
    exported = load_pipeline(tmp_path / "run" / "export", device=torch.device("cpu"))
    assert exported.latent_shape == (16, 8, 8)


@pytest.mark.parametrize("how", [{"max_shard_size": "50KB"}, {"variant": "fp16"}, {}])
def test_the_unet_folder_itself_in_half_precision_or_shards_is_a_start(
    how: dict[str, Any], latent_set: ShardSet, world: World, tmp_path: Path
) -> None:
    foreign = write_foreign_pipeline(tmp_path / "foreign", SD2)
    unet = tmp_path / "foreign" / "unet"
    (unet / WEIGHTS).unlink()
    foreign.half().save_pretrained(unet, **how)
    train_on(latent_set, tmp_path / "run", world, init_from=unet, optim={"lr": 1e-9})
    found = safetensors.torch.load_file(tmp_path / "run" / "export" / "unet" / WEIGHTS)
    name = "mid_block.resnets.0.conv1.weight"
    torch.testing.assert_close(found[name], foreign.state_dict()[name].float(), rtol=0, atol=1e-6)


def test_foreign_weights_in_an_object_store_are_a_start(
    latent_set: ShardSet, world: World, tmp_path: Path, s3_bucket: str
) -> None:
    foreign = write_foreign_pipeline(tmp_path / "foreign", SD15, scheduler={**SCHEDULER, "prediction_type": "sample"})
    filesystem.upload_folder(tmp_path / "foreign", f"{s3_bucket}/sd")
    talk = Talk()
    train_on(latent_set, tmp_path / "run", world, talk, init_from=f"{s3_bucket}/sd")
    assert "prediction_type 'sample' there, 'v_prediction' here" in talk.warnings[0]
    report = json.loads((tmp_path / "run" / "init.json").read_text())
    assert set(report["taken"]) == set(foreign.state_dict())
    filesystem.write_bytes(f"{s3_bucket}/sd/unet/{WEIGHTS}", b"no weights")
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        train_on(latent_set, tmp_path / "other", world, init_from=f"{s3_bucket}/sd")
    assert caught.value.where == f"{s3_bucket}/sd/unet/{WEIGHTS}"


def test_two_ranks_start_from_the_same_foreign_network(latent_set: ShardSet, world: World, tmp_path: Path) -> None:
    write_foreign_pipeline(tmp_path / "foreign", SD15)
    changes: dict[str, Any] = {"init_from": tmp_path / "foreign"}
    train_on(latent_set, tmp_path / "one", world, **changes)
    two = write_config(tmp_path / "two.yaml", settings(latent_set, tmp_path / "two", **changes))
    run_cli("train", "--config", two, "--procs-per-node", "2").check()
    one_rank, two_ranks = (
        [row["loss"] for row in read_lines(str(tmp_path / name / "metrics.jsonl")) if "loss" in row]
        for name in ("one", "two")
    )
    assert len(one_rank) == 2
    assert two_ranks == pytest.approx(one_rank, rel=1e-5)


def test_another_objective_than_the_foreign_schedulers_is_warned_of_with_both_names(
    latent_set: ShardSet, world: World, tmp_path: Path
) -> None:
    theirs = {
        "prediction_type": "epsilon",
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "zero_terminal_snr": False,
        "min_snr_gamma": None,
    }
    optim = {"warmup_images": 0}  # a warm-up as long as the run is warned of
    write_foreign_pipeline(tmp_path / "epsilon", SD15)
    alike, talk = Talk(), Talk()
    train_on(latent_set, tmp_path / "a", world, alike, init_from=tmp_path / "epsilon", diffusion=theirs, optim=optim)
    assert alike.warnings == []
    train_on(latent_set, tmp_path / "b", world, talk, init_from=tmp_path / "epsilon", optim=optim)
    assert "prediction_type 'epsilon' there, 'v_prediction' here" in talk.warnings[0]
    assert "beta_schedule 'scaled_linear' there, 'squaredcos_cap_v2' here" in talk.warnings[0]

    scheduler = {**SCHEDULER, "prediction_type": "v_prediction"}
    write_foreign_pipeline(tmp_path / "velocity", SD2, scheduler=scheduler)
    talk = Talk()
    train_on(latent_set, tmp_path / "c", world, talk, init_from=tmp_path / "velocity", diffusion=theirs, optim=optim)
    assert len(talk.warnings) == 1
    assert "prediction_type 'v_prediction' there, 'epsilon' here" in talk.warnings[0]


def test_a_killed_run_goes_on_to_the_same_bits_and_refuses_another_start(
    latent_set: ShardSet, world: World, tmp_path: Path
) -> None:
    write_foreign_pipeline(tmp_path / "foreign", SD15)
    loop = {"budget_images": 48, "checkpoint_every_images": 16}
    changes: dict[str, Any] = {"init_from": tmp_path / "foreign", "loop": loop}
    train_on(latent_set, tmp_path / "straight", world, **changes)
    command = (
        "train",
        "--config",
        str(write_config(tmp_path / "r.yaml", settings(latent_set, tmp_path / "run", **changes))),
    )
    run_cli_killed_at("settled:5", *command)
    report = (tmp_path / "run" / "init.json").read_bytes()
    talk = Talk()
    train_on(latent_set, tmp_path / "run", world, talk, **changes)
    assert any("resumed at 32 images" in line for line in talk.lines)
    assert (tmp_path / "run" / "init.json").read_bytes() == report
    one, other = (tmp_path / name / "export" / "unet" / WEIGHTS for name in ("straight", "run"))
    assert one.read_bytes() == other.read_bytes()

    # other weights at the same place, another place, another architecture, none at all
    shutil.move(tmp_path / "foreign", tmp_path / "moved")
    write_foreign_pipeline(tmp_path / "foreign", SD15, seed=1)
    with pytest.raises(ConfigError, match=r"init_fingerprint is '[0-9a-f]{12}' there, '[0-9a-f]{12}' here"):
        train_on(latent_set, tmp_path / "run", world, **changes)
    with pytest.raises(ConfigError, match=r"init_from is .*foreign.* there, .*moved.* here"):
        train_on(latent_set, tmp_path / "run", world, **{**changes, "init_from": tmp_path / "moved"})
    with pytest.raises(ConfigError, match=r"unet\.dropout is 0\.0 there, 0\.1 here"):
        train_on(latent_set, tmp_path / "run", world, **changes, unet={"dropout": 0.1})
    with pytest.raises(ConfigError, match=r"init_fingerprint is .* there, 'absent' here"):
        train_on(latent_set, tmp_path / "run", world, loop=loop)


def test_starts_that_cannot_be_are_refused_and_leave_no_mark(
    latent_set: ShardSet, world: World, tmp_path: Path
) -> None:
    write_foreign_pipeline(tmp_path / "pickled", SD15)
    (tmp_path / "pickled" / "unet" / WEIGHTS).rename(tmp_path / "pickled" / "unet" / "diffusion_pytorch_model.bin")
    write_foreign_pipeline(tmp_path / "damaged", SD15)
    (tmp_path / "damaged" / "unet" / WEIGHTS).write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ")
    write_foreign_pipeline(tmp_path / "gated", SD15)
    (tmp_path / "gated" / "unet" / "config.json").write_text(json.dumps({**SD15, "attention_type": "gated"}))
    kl_f8(4).save_pretrained(tmp_path / "vae")
    (tmp_path / "sd3" / "transformer").mkdir(parents=True)
    (tmp_path / "sd3" / "transformer" / "config.json").write_text("{}")
    (tmp_path / "nothing").mkdir()
    for folder, kind, words in (
        ("pickled", CheckpointError, "diffusion_pytorch_model.bin, a pickle"),
        ("damaged", CheckpointError, "weights do not match the config"),
        ("gated", ConfigError, "attention_type is 'gated'"),
        ("vae", CheckpointError, "'AutoencoderKL', expected 'UNet2DConditionModel'"),
        ("sd3", CheckpointError, "a transformer; synfundus trains U-Nets"),
        ("nothing", CheckpointError, "no model here"),
        ("absent", CheckpointError, "there is no such folder"),
    ):
        with pytest.raises(kind, match=words) as caught:
            train_on(latent_set, tmp_path / "run", world, init_from=tmp_path / folder)
        assert folder in str(caught.value)
    assert not (tmp_path / "run").exists()
