"""The public API: what `synfundus.load_model`, `open_dataset` and `read_manifest` promise in docs/api.md."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipeline import IMAGE_SIZE_PX, write_tiny_pipeline
from tiny_sets import moments_of, phantom_samples, write_numbered_set, write_set
from torch.utils.data import DataLoader

import synfundus
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import LocalWorld
from synfundus.errors import CheckpointError, ConfigError, DataError, LaunchError
from synfundus.models.attention import KernelAttnProcessor, math_attention
from synfundus.stages.sample import job as sample
from synfundus.telemetry.console import SilentConsole

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("run") / "export").parent


def test_importing_the_package_is_cheap_and_its_names_are_known() -> None:
    code = "import sys, synfundus; print(sorted(synfundus.__all__), 'torch' in sys.modules, 'PIL' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60
    )
    names = ["ShardDataset", "SynfundusPipeline", "__version__", "load_model"]
    names += ["open_dataset", "read_manifest", "save_image"]
    assert done.stdout == f"{names} False False\n"
    assert set(names) <= set(dir(synfundus))
    for name in names:
        assert getattr(synfundus, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        _ = synfundus.nothing_of_ours


def test_images_are_those_of_the_verb(run_dir: Path, tmp_path: Path) -> None:
    settings = {"sampler": "ddim", "num_steps": 2, "batch_size": 2, "guidance_scale": 1.5}
    given = {"model": str(run_dir), "out": str(tmp_path), "label": {"is_gc": 1}, "num_images": 3, **settings}
    config = RunConfig.model_validate({"seed": 5, "sample": given, "launch": {"device": "cpu"}})
    sample.run(config, LocalWorld(), SilentConsole())
    model = synfundus.load_model(str(run_dir), device="cpu")
    # kernels round differently, which images of this model are too few to show
    layers = model.model.denoiser.unet.attn_processors.values()
    assert {type(layer) for layer in layers} == {KernelAttnProcessor}
    assert {layer.kernel for layer in layers} == {math_attention}
    images = model.sample(labels={"is_gc": 1}, num_images=3, seed=5, **settings)
    for number, image in enumerate(images):
        assert isinstance(image, Image.Image)
        written = tmp_path / "images" / f"{number:08d}.png"
        assert np.array_equal(np.asarray(image), np.asarray(Image.open(written)))
        synfundus.save_image(image, str(tmp_path / "saved.png"))
        assert (tmp_path / "saved.png").read_bytes() == written.read_bytes(), "marked as the verb marks it"
    assert len(images) == 3


def test_what_was_changed_or_read_again_is_saved_with_its_marks(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8))
    image.info |= {"synthetic": "yes", "seed": "7", "dpi": (72, 72)}
    place = str(tmp_path / "one.PNG")
    for changed in (image.resize((4, 4)), image.convert("L"), Image.new("RGB", (2, 2))):
        synfundus.save_image(changed, place)
        with Image.open(place) as read:
            read.load()
            assert read.mode == "RGB"
            assert read.info["synthetic"] == "yes"
            assert read.info.get("seed") == changed.info.get("seed")
            assert "/trainedAlgorithmicMedia" in read.info["XML:com.adobe.xmp"]
        data = Path(place).read_bytes()
        with Image.open(place) as read:
            read.load()
            synfundus.save_image(read, str(tmp_path / "again.png"))
        assert (tmp_path / "again.png").read_bytes() == data
    with pytest.raises(ConfigError, match="written to PNG files"):
        synfundus.save_image(image, str(tmp_path / "one.jpg"))


def test_each_image_has_labels_of_its_own(run_dir: Path) -> None:
    model = synfundus.load_model(str(run_dir / "export"), device="cpu")
    assert model.label_schema.names == ("dr_grade", "is_gc", "eye_side")
    fast = {"num_steps": 1, "batch_size": 2}
    first, second = model.sample(labels=[{"is_gc": 1}, {"is_gc": None}], **fast)
    assert first.size == second.size == (IMAGE_SIZE_PX, IMAGE_SIZE_PX)
    for wrong, said in (
        ({"labels": {"is_pm": 1}}, "is_pm"),
        ({"labels": {"is_gc": 7}}, "is_gc = 7"),
        ({"labels": [{"is_gc": 1}], "num_images": 2}, "2 images of 1 rows"),
        ({"num_images": 0}, "0 images"),
        ({"steps": 3}, "steps"),
        ({"num_steps": 0}, "num_steps is 0: "),
    ):
        with pytest.raises(ConfigError, match=said) as caught:
            model.sample(**wrong)
        assert "pydantic" not in str(caught.value)
    with pytest.raises(ConfigError, match="no device to compute on: 'mps'"):
        synfundus.load_model(str(run_dir), device="mps")
    if not torch.cuda.is_available():
        with pytest.raises(LaunchError, match="torch finds no CUDA device"):
            synfundus.load_model(str(run_dir), device="cuda:0")
    with pytest.raises(CheckpointError, match="no such folder"):
        synfundus.load_model(str(run_dir / "nowhere"))


def test_a_set_of_images_is_a_torch_data_set(tmp_path: Path) -> None:
    drawn = phantom_samples(6)
    write_set(tmp_path, drawn, shards={"train": (3, 1), "val": (2,)})
    images = synfundus.open_dataset(str(tmp_path))
    assert len(images) == 6
    assert [images[at]["key"] for at in range(6)] == [key for key, _ in drawn]
    assert [images[at]["split"] for at in range(6)] == ["train"] * 4 + ["val"] * 2
    one = images[-1]
    assert one["image"].shape == (3, 64, 64)
    assert one["image"].dtype == torch.uint8
    for name, state in zip(images.label_schema.names, one["states"].tolist(), strict=True):
        assert one["labels"][name] == (state - 1 if state else None)
    assert any(value is None for at in range(6) for value in images[at]["labels"].values()), "unknown is None, not 0"
    with pytest.raises(IndexError):
        images[6]
    assert len(synfundus.open_dataset(str(tmp_path), split="val")) == 2
    assert len(synfundus.open_dataset(str(tmp_path), split="test")) == 0
    with pytest.raises(ConfigError, match="no split 'all'"):
        synfundus.open_dataset(str(tmp_path), split="all")


def test_latents_are_read_in_batches_by_worker_processes(tmp_path: Path) -> None:
    write_numbered_set(tmp_path, (3, 4))
    latents = synfundus.open_dataset(str(tmp_path))
    loader = DataLoader(latents, batch_size=7, num_workers=1, collate_fn=latents.collate)
    (batch,) = loader
    wanted = np.stack([moments_of(number) for number in range(7)]).astype(np.float32)
    assert torch.equal(batch["moments"], torch.from_numpy(wanted))
    assert batch["states"].shape == (7, len(latents.label_schema.labels))
    assert batch["key"] == [f"s{number:05d}" for number in range(7)]


def test_a_manifest_is_read_and_what_is_none_is_refused(tmp_path: Path) -> None:
    made = write_set(tmp_path / "set", phantom_samples(2), shards={"train": (2,)})
    found = synfundus.read_manifest(str(tmp_path / "set"))
    assert (found.kind, found.identity, found.num_samples("train")) == ("images", made.identity, 2)
    with pytest.raises(DataError, match="no shard set"):
        synfundus.read_manifest(str(tmp_path))


def test_the_examples_of_the_page_run(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    write_set(tmp_path / "data" / "images", phantom_samples(9), shards={"train": (8,), "val": (1,)})
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "ldm").symlink_to(run_dir)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, names)
    assert (tmp_path / "synthetic-0.png").exists()
