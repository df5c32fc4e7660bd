from __future__ import annotations

import json
import re
import secrets
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from tiny_pipeline import (
    LATENT_MEAN,
    LATENT_STD,
    SCHEDULE,
    SCHEMA,
    tiny_autoencoder,
    tiny_denoiser,
    write_tiny_pipeline,
)

from synfundus.artifacts.cards.model_card import model_card
from synfundus.artifacts.latent_set import trained_on
from synfundus.artifacts.model_folder import DOCUMENT_NAME, find_pipeline, load_pipeline
from synfundus.diffusion.sampling import SamplerSettings
from synfundus.errors import CheckpointError, ManifestMismatch
from synfundus.labels.schema import LabelSchema, LabelSpec
from synfundus.models.autoencoder import build_autoencoder, fingerprint
from synfundus.storage import filesystem
from synfundus.storage.manifest import ShardSet

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("run") / "export")


def _copy(source: Path, target: Path) -> Path:
    for path in source.rglob("*"):
        if path.is_file():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
    return target


def test_what_was_saved_comes_back(exported: Path) -> None:
    pipeline = load_pipeline(exported, device=CPU)
    wanted = tiny_denoiser().state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in pipeline.denoiser.state_dict().items())
    assert pipeline.label_schema == SCHEMA
    assert (pipeline.latent_mean, pipeline.latent_std) == (LATENT_MEAN, LATENT_STD)
    assert pipeline.latent_shape == (2, 8, 8)
    assert pipeline.schedule_settings == SCHEDULE
    assert pipeline.training_summary["validation_loss"] is None
    assert not pipeline.denoiser.training
    assert not pipeline.autoencoder.training


def test_stock_diffusers_classes_open_the_parts(exported: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(exported / "unet", low_cpu_mem_usage=False)
    vae = AutoencoderKL.from_pretrained(exported / "vae", low_cpu_mem_usage=False)
    scheduler = DPMSolverMultistepScheduler.from_pretrained(exported / "scheduler")
    wanted = tiny_denoiser().unet.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in unet.state_dict().items())
    assert vae.config.latent_channels == 2
    assert scheduler.config.prediction_type == "v_prediction"


def test_nothing_in_the_folder_is_a_pickle(exported: Path) -> None:
    assert {path.suffix for path in exported.rglob("*") if path.is_file()} == {".json", ".safetensors", ".md"}


def test_the_linear_path_travels_with_the_autoencoder_and_the_card_says_so(tmp_path: Path) -> None:
    autoencoder = tiny_autoencoder(linear_path=True)
    folder = write_tiny_pipeline(
        tmp_path / "export", autoencoder=autoencoder, autoencoder_fingerprint=fingerprint(autoencoder)
    )
    assert load_pipeline(folder, device=CPU).autoencoder.linear_path is not None
    assert "linear path" in (folder / "README.md").read_text()


def test_what_the_card_shows_runs_and_makes_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    autoencoder = tiny_autoencoder(linear_path=True)
    folder = write_tiny_pipeline(
        tmp_path / "export", autoencoder=autoencoder, autoencoder_fingerprint=fingerprint(autoencoder)
    )
    monkeypatch.chdir(folder)
    card = (folder / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    for block in blocks:
        assert block.count("\n") <= 10
        exec(block.replace("num_images=2, seed=0", "num_images=2, seed=0, num_steps=1, batch_size=2"), names)
    assert (folder / "synthetic.png").exists()
    assert names["unet"].config.sample_size == 8


def test_the_card_tells_of_the_photographs_and_of_the_sampling(tmp_path: Path) -> None:
    values = {"dr_grade": {"0": 90, "1": 3, "2": 4, "unknown": 3}, "is_gc": {"0": 50, "1": 45, "unknown": 5}}
    told = {
        "source": "Eyes",
        "num_patients": {"train": 40, "val": 5, "test": 5},
        "patients": 50,
        "drawn": True,
        "values": values,
    }
    latents = ShardSet("set", "latents", SCHEMA, (), properties={"photographs": told})
    advice = SamplerSettings("euler", 12, 1.5, (0.0, 1.0), 0.7)
    figures = {"images_seen": 9, "training_images": 77, "photographs": trained_on(latents)}
    folder = write_tiny_pipeline(tmp_path / "export", training_summary=figures, recommended_sampling=advice)
    card = (folder / "README.md").read_text()
    for said in (
        "library_name: synfundus",
        "| they are | drawn by a program: phantoms, no patient |",
        "| collections | Eyes |",
        "| patients, those held out included | 50 |",
        "| `dr_grade` | 0-4 | fewer than 10 |",
        "| `is_gc` | 0-1 | 45 |",
        "| `eye_side` | 0-1 | not recorded |",
        "euler, 12 steps, guidance 1.5 (rescaled by 0.7)",
        f"| written on | {datetime.now(UTC).date().isoformat()} |",
    ):
        assert said in card, said
    assert load_pipeline(folder, device=CPU).recommended_sampling == advice


@pytest.mark.parametrize(("drawn", "said"), [((False,), "of patients, or not known"), ((True, False), "in part drawn")])
def test_photographs_of_patients_are_not_called_drawn(drawn: tuple[bool, ...], said: str, exported: Path) -> None:
    sources = [
        {"source": f"{at}", "num_patients": {"train": 1}, "drawn": one, "values": {}} for at, one in enumerate(drawn)
    ]
    latents = ShardSet("set", "latents", SCHEMA, (), properties={"photographs": sources})
    document = json.loads((exported / DOCUMENT_NAME).read_text())
    document["training"]["photographs"] = trained_on(latents)
    card = model_card(document, SCHEMA, opening="")
    assert f"| they are | {said}" in card or said in card
    assert trained_on(replace(latents, properties={})) == {}


def test_the_card_of_an_autoencoder_of_blocks_says_how_its_channels_become_pixels(tmp_path: Path) -> None:
    autoencoder = build_autoencoder(
        image_size_px=32,
        block_size_px=4,
        latent_channels=2,
        block_out_channels=[8],
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_attention=False,
        linear_path=False,
    ).eval()
    folder = write_tiny_pipeline(
        tmp_path / "export", autoencoder=autoencoder, autoencoder_fingerprint=fingerprint(autoencoder)
    )
    said = (folder / "README.md").read_text()
    assert "blocks of 4 x 4 pixels as 48 channels" in said
    stock = AutoencoderKL.from_pretrained(folder / "vae", low_cpu_mem_usage=False)
    latents = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        decoded = stock.decode(latents).sample
        assert decoded.shape[1] == 48
        pixels = torch.nn.functional.pixel_shuffle(decoded, 4)
        assert torch.allclose(pixels, autoencoder.decode(latents), atol=1e-5)


def test_card_says_synthetic_counts_and_never_promises_anonymity(exported: Path) -> None:
    card = (exported / "README.md").read_text()
    assert "synthetic" in card
    assert "1,234" in card
    assert "77" in card
    assert "anonym" not in card.lower()


def test_an_export_of_an_earlier_version_opens_and_is_replaced(exported: Path, tmp_path: Path) -> None:
    folder = _copy(exported, tmp_path / "export")
    shutil.rmtree(folder / "diffusers")
    (folder / "README.md").rename(folder / "MODEL_CARD.md")
    (folder / "model_index.json").write_text("{}")
    assert load_pipeline(folder, device=CPU).label_schema == SCHEMA
    write_tiny_pipeline(folder)
    assert {path.name for path in folder.iterdir()} == {path.name for path in exported.iterdir()}


def test_a_second_export_replaces_the_first_whole(tmp_path: Path) -> None:
    folder = write_tiny_pipeline(tmp_path / "export")
    first = load_pipeline(folder, device=CPU).fingerprint
    (folder / "unet" / "left-over.safetensors").write_text("x")
    write_tiny_pipeline(folder, seed=1)
    assert load_pipeline(folder, device=CPU).fingerprint != first
    assert not (folder / "unet" / "left-over.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_an_autoencoder_of_another_run_is_refused_naming_both(exported: Path, tmp_path: Path) -> None:
    folder = _copy(exported, tmp_path / "export")
    other = tiny_autoencoder(seed=9)
    other.save_pretrained(folder / "vae")
    with pytest.raises(ManifestMismatch) as caught:
        load_pipeline(folder, device=CPU)
    assert fingerprint(other)[:12] in str(caught.value)
    assert fingerprint(tiny_autoencoder())[:12] in str(caught.value)


def test_saving_with_an_autoencoder_the_latents_are_not_of_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ManifestMismatch):
        write_tiny_pipeline(tmp_path / "export", autoencoder_fingerprint="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_another_label_schema_is_refused_naming_both(exported: Path, tmp_path: Path) -> None:
    folder = _copy(exported, tmp_path / "export")
    document = json.loads((folder / DOCUMENT_NAME).read_text())
    document["label_schema"].append({"name": "is_pm", "num_values": 2})
    (folder / DOCUMENT_NAME).write_text(json.dumps(document))
    with pytest.raises(ManifestMismatch, match=r"4 labels .* 3 labels"):
        load_pipeline(folder, device=CPU)
    with pytest.raises(ManifestMismatch):
        write_tiny_pipeline(tmp_path / "other", label_schema=LabelSchema((LabelSpec("is_pm", 2),)))


def test_weights_changed_after_the_export_are_refused(exported: Path, tmp_path: Path) -> None:
    folder = _copy(exported, tmp_path / "export")
    tiny_denoiser(seed=3).conditioner.save_pretrained(folder / "conditioner")
    with pytest.raises(ManifestMismatch, match="changed after the export"):
        load_pipeline(folder, device=CPU)


@pytest.mark.parametrize("part", ["unet", "vae", "conditioner", "scheduler", DOCUMENT_NAME])
def test_a_missing_part_is_named(exported: Path, tmp_path: Path, part: str) -> None:
    folder = tmp_path / "export"
    for path in exported.rglob("*"):
        if path.is_file() and path.relative_to(exported).parts[0] != part:
            place = folder / path.relative_to(exported)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match=part):
        load_pipeline(folder, device=CPU)


def test_a_document_without_its_fields_is_refused(exported: Path, tmp_path: Path) -> None:
    folder = _copy(exported, tmp_path / "export")
    document = json.loads((folder / DOCUMENT_NAME).read_text())
    del document["latent_mean"]
    (folder / DOCUMENT_NAME).write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="latent_mean"):
        load_pipeline(folder, device=CPU)


@pytest.mark.usefixtures("memory_store")
def test_a_model_lies_in_an_object_store_like_on_a_disk(exported: Path) -> None:
    run = f"memory://pipeline-{secrets.token_hex(4)}"
    try:
        for seed in (1, 0):  # the second replaces the first
            write_tiny_pipeline(f"{run}/export", seed=seed)
        assert find_pipeline(run) == f"{run}/export"
        found, wanted = load_pipeline(f"{run}/export", device=CPU), load_pipeline(exported, device=CPU)
        assert found.fingerprint == wanted.fingerprint
        assert found.folder == f"{run}/export"
        state = wanted.denoiser.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in found.denoiser.state_dict().items())
        filesystem.write_bytes(f"{run}/export/conditioner/config.json", b"{}")
        with pytest.raises(ManifestMismatch, match="changed after the export") as caught:
            load_pipeline(f"{run}/export", device=CPU)
        assert caught.value.where == f"{run}/export"
        filesystem.remove(f"{run}/export/{DOCUMENT_NAME}")
        with pytest.raises(CheckpointError, match="autoencoder"):
            find_pipeline(run)
    finally:
        filesystem.remove(run, recursive=True)


def test_a_model_is_found_by_its_run_and_by_its_folder(exported: Path) -> None:
    assert find_pipeline(str(exported.parent)) == str(exported)
    assert find_pipeline(str(exported)) == str(exported)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("export/vae", "autoencoder"),
        ("checkpoints", "has not ended"),
        ("pictures", "no model here"),
        (None, "no such folder"),
    ],
)
def test_what_is_no_model_is_named(tmp_path: Path, made: str | None, said: str) -> None:
    if made is not None:
        (tmp_path / "run" / made).mkdir(parents=True)
    with pytest.raises(CheckpointError, match=said):
        find_pipeline(str(tmp_path / "run"))
