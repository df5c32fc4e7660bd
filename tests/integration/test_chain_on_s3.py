"""The chain on an object store: the same bits as on a disk, also over kills and on two ranks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rank_processes import run_cli, run_cli_killed_at
from tiny_sets import tiny_config, write_config

from synfundus.config.schema import RunConfig
from synfundus.distributed.world import LocalWorld, World
from synfundus.shards.reader import ShardSetReader
from synfundus.shards.set_survey import SetSurvey
from synfundus.stages.encode_latents import job as encode_latents
from synfundus.stages.export import job as export
from synfundus.stages.phantoms import job as phantoms
from synfundus.stages.plot import job as plot
from synfundus.stages.sample import job as sample
from synfundus.stages.train import job as train
from synfundus.stages.train_vae import job as train_vae
from synfundus.stages.verify_latents import job as verify_latents
from synfundus.stages.watch import job as watch
from synfundus.storage import filesystem
from synfundus.storage.documents import read_lines
from synfundus.storage.manifest import ShardSet, load_shard_set
from synfundus.telemetry.console import SilentConsole
from synfundus.training.progress import CLOCK_FIGURES

BUDGET = 160
SECRET = "5" * 64
FINAL = f"checkpoints/images-{BUDGET:012d}"
WEIGHTS = "export/unet/diffusion_pytorch_model.safetensors"
TIMES = CLOCK_FIGURES
ABOUT_PLACES = ("sources.json", "export/synfundus.json", "export/README.md")
"""Files that name where something lies, or how long it took."""


def upload(local: str | Path, url: str) -> str:
    filesystem.upload_folder(Path(local), url)
    return url


def hashes(url: str | Path, *, below: str = "") -> dict[str, str]:
    """Hash every file of a folder that does not speak of places or times."""
    root = filesystem.join(str(url), below) if below else str(url)
    names = [name for name in filesystem.list_files(root) if name not in ABOUT_PLACES]
    return {name: hashlib.sha256(filesystem.read_bytes(filesystem.join(root, name))).hexdigest() for name in names}


def rows(run_dir: str | Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl without what depends on the clock."""
    found = read_lines(filesystem.join(str(run_dir), "metrics.jsonl"))
    return [{name: value for name, value in row.items() if name not in TIMES} for row in found]


def training(latents: str, run_dir: str | Path, **loop: Any) -> dict[str, Any]:
    """Use all that is drawn at random: flips, label drops, dropout."""
    return {
        "train": {
            "latents": latents,
            "run_dir": str(run_dir),
            "diffusion": {"flip": True},
            "unet": {"dropout": 0.1},
            "loop": {"budget_images": BUDGET, "checkpoint_every_images": 40, "validate_every_images": 80, **loop},
        },
        "telemetry": {"tensorboard": True},
    }


def sampling(model: str | Path, out: str | Path, **options: Any) -> RunConfig:
    settings = {"model": str(model), "out": str(out), "num_images": 5, "batch_size": 4, "label": {"dr_grade": 2}}
    return tiny_config({"sample": {**settings, **options}})


def assert_same_run(one: str | Path, other: str | Path) -> None:
    """Compare checkpoint, exported weights and metrics."""
    assert hashes(one, below=FINAL) == hashes(other, below=FINAL)
    assert "zero/rank-00000-of-00001.safetensors" in hashes(one, below=FINAL)
    for part in ("unet", "conditioner", "vae"):
        assert hashes(one, below=f"export/{part}") == hashes(other, below=f"export/{part}")
    assert rows(one) == rows(other)


def look_at_run(there: str, here: Path, curves_there: str, curves_here: Path) -> None:
    """Compare what `watch` and `plot` make of two runs that are alike."""
    seen = [
        watch.run(tiny_config({"watch": {"run_dir": str(run), "once": True}}), LocalWorld(), SilentConsole())
        for run in (there, here)
    ]
    assert seen[0]["images_seen"] == seen[1]["images_seen"] == BUDGET
    assert seen[0]["checkpoint_images"] == seen[1]["checkpoint_images"]
    drawn = [
        plot.run(tiny_config({"plot": {"run_dirs": [str(run)], "out": str(out)}}), LocalWorld(), SilentConsole())
        for run, out in ((there, curves_there), (here, curves_here))
    ]
    assert drawn[0]["curves"] == drawn[1]["curves"]
    assert filesystem.read_bytes(curves_there).startswith(b"\x89PNG")


def test_phantoms_are_drawn_into_a_store(s3_bucket: str, tmp_path: Path) -> None:
    for out in (f"{s3_bucket}/photos", str(tmp_path / "photos")):
        section = {"out": out, "num_images": 6, "image_size_px": 64, "workers": 0}
        phantoms.run(tiny_config({"phantoms": section}), LocalWorld(), SilentConsole())
        assert phantoms.run(tiny_config({"phantoms": section}), LocalWorld(), SilentConsole())["num_kept"] == 6
    assert hashes(f"{s3_bucket}/photos") == hashes(tmp_path / "photos")
    assert len(hashes(tmp_path / "photos")) > 8


@pytest.fixture(scope="module")
def on_disk(latent_set: ShardSet, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of train on local files that nothing interrupted."""
    run_dir = tmp_path_factory.mktemp("disk") / "run"
    train.run(tiny_config(training(latent_set.url, run_dir)), world, SilentConsole())
    return run_dir


def test_an_autoencoder_and_its_latents_are_the_same(
    image_set: ShardSet, vae_run: Path, latent_set: ShardSet, world: World, s3_bucket: str
) -> None:
    images, vae, out = (f"{s3_bucket}/{name}" for name in ("images", "vae", "latents"))
    upload(image_set.url, images)
    train_vae.run(tiny_config({"train_vae": {"data": images, "run_dir": vae}}), world, SilentConsole())
    final = "checkpoints/images-000000000096"
    assert hashes(vae, below="export/vae") == hashes(vae_run, below="export/vae")
    assert hashes(vae, below=final) == hashes(vae_run, below=final)
    assert rows(vae) == rows(vae_run)

    section = {"data": images, "vae": vae, "out": out, "flip": True}
    checked = {"latents": out, "vae": vae, "min_psnr_db": 1.0}
    config = tiny_config({"encode_latents": section, "verify_latents": checked})
    encode_latents.run(config, world, SilentConsole())
    assert hashes(out) == hashes(latent_set.url)
    assert verify_latents.run(config, LocalWorld(), SilentConsole())["samples"] > 0


def test_a_run_killed_between_the_objects_and_the_manifest_ends_with_the_same_bits(
    vae_run: Path, latent_set: ShardSet, on_disk: Path, world: World, s3_bucket: str, tmp_path: Path
) -> None:
    latents, run_dir = upload(latent_set.url, f"{s3_bucket}/latents"), f"{s3_bucket}/run"
    vae = upload(vae_run / "export" / "vae", f"{s3_bucket}/vae")
    config = training(latents, run_dir)
    config["train"]["vae"] = vae
    path = write_config(tmp_path / "run.yaml", config)
    run_cli_killed_at("write:images-000000000120/MANIFEST.json", "train", "--config", path)
    left = filesystem.list_files(f"{run_dir}/checkpoints/images-000000000120")
    assert "unet/diffusion_pytorch_model.safetensors" in left
    assert "MANIFEST.json" not in left
    assert rows(run_dir) == [row for row in rows(on_disk) if row["images_seen"] <= 120]

    train.run(tiny_config(config), world, SilentConsole())
    assert_same_run(run_dir, on_disk)
    names = set(filesystem.list_names(run_dir))
    assert names >= {"config.yaml", "run.json", "environment.json", "metrics.jsonl", "tensorboard", "export"}
    manifests = [name for name in filesystem.list_files(f"{run_dir}/checkpoints") if name.endswith("MANIFEST.json")]
    assert manifests == [f"images-{images:012d}/MANIFEST.json" for images in (80, 120, 160)]

    for image_format in ("png", "shards"):
        there, here = f"{s3_bucket}/{image_format}", tmp_path / image_format
        sample.run(sampling(run_dir, there, format=image_format), LocalWorld(), SilentConsole())
        sample.run(sampling(on_disk, here, format=image_format), LocalWorld(), SilentConsole())
        assert hashes(there) == hashes(here)
        assert any(name.endswith((".png", ".tar")) for name in hashes(there))
    export.run(
        tiny_config({"export": {"run_dir": run_dir, "out": f"{s3_bucket}/model"}}),
        LocalWorld(),
        SilentConsole(),
    )
    sample.run(sampling(f"{s3_bucket}/model", tmp_path / "exported"), LocalWorld(), SilentConsole())
    assert hashes(tmp_path / "exported", below="images") == hashes(tmp_path / "png", below="images")
    look_at_run(run_dir, on_disk, f"{s3_bucket}/curves.png", tmp_path / "curves.png")


def test_two_ranks_train_on_a_store(vae_run: Path, latent_set: ShardSet, s3_bucket: str, tmp_path: Path) -> None:
    latents = upload(latent_set.url, f"{s3_bucket}/latents")
    path = write_config(tmp_path / "run.yaml", training(latents, f"{s3_bucket}/run", budget_images=40))
    run_cli("train", "--config", path, "--vae", vae_run, "--procs-per-node", "2").check()
    folder = f"{s3_bucket}/run/checkpoints/images-000000000040"
    files = filesystem.list_files(folder)
    assert {"zero/rank-00000-of-00002.safetensors", "zero/rank-00001-of-00002.safetensors"} < set(files)
    manifest = json.loads(filesystem.read_bytes(f"{folder}/MANIFEST.json"))["files"]
    assert {name: entry["bytes"] for name, entry in manifest.items()} == {
        name: size for name, size in files.items() if name != "MANIFEST.json"
    }
    assert [row["images_seen"] for row in rows(f"{s3_bucket}/run") if "loss" in row] == [8, 16, 24, 32, 40]
    assert filesystem.exists(f"{s3_bucket}/run/{WEIGHTS}")


def test_a_pass_that_is_stopped_goes_on_with_what_is_finished(
    image_set: ShardSet, vae_run: Path, latent_set: ShardSet, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, out = upload(image_set.url, f"{s3_bucket}/images"), f"{s3_bucket}/latents"
    config = tiny_config({"encode_latents": {"data": images, "vae": str(vae_run), "out": out, "flip": True}})
    original = filesystem.write_bytes
    records: list[str] = []

    def write(url: str, data: bytes) -> None:
        if url.endswith(".done.json"):
            if len(records) == 2:
                raise KeyboardInterrupt
            records.append(url)
        original(url, data)

    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "write_bytes", write)
        with pytest.raises(KeyboardInterrupt):
            encode_latents.run(config, LocalWorld(), SilentConsole())
    assert [name for name in filesystem.list_files(out) if name.endswith(".done.json")] == [
        url.removeprefix(f"{out}/") for url in records
    ]
    records.clear()

    def note(url: str, data: bytes) -> None:
        records.extend([url] if url.endswith(".done.json") else [])
        original(url, data)

    monkeypatch.setattr(filesystem, "write_bytes", note)
    encode_latents.run(config, LocalWorld(), SilentConsole())
    assert hashes(out) == hashes(latent_set.url)
    assert len(records) == len(latent_set.shards) - 2


KILL_POINTS = (
    "step:3",
    "write:images-000000000040/zero/rank-00000-of-00001.safetensors",
    "write:images-000000000040/MANIFEST.json",
    "after:images-000000000040/MANIFEST.json",
    "write:run/metrics.jsonl",
    "write:images-000000000080/unet/diffusion_pytorch_model.safetensors",
    "write:checkpoints/latest",
    "step:7",
    "after:run/metrics.jsonl",
)
"""Each start goes on where the one before was killed."""


def kill_and_finish(points: Sequence[str], *command: str | Path) -> None:
    for point in points:
        run_cli_killed_at(point, *command)
    run_cli(*command).check()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_verb_killed_at_many_points_ends_as_on_a_disk(
    image_set: ShardSet,
    latent_set: ShardSet,
    vae_run: Path,
    on_disk: Path,
    s3_bucket: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    there = {name: f"{s3_bucket}/{name}" for name in ("images", "vae", "latents", "run", "two", "png", "shards")}
    upload(image_set.url, there["images"])
    config = write_config(tmp_path / "vae.yaml", {"train_vae": {"data": there["images"], "run_dir": there["vae"]}})
    kill_and_finish(
        ("write:vae/run.json", "step:7", "write:images-000000000096/MANIFEST.json"), "train-vae", "--config", config
    )
    encode = ("encode-latents", "--data", there["images"], "--vae", there["vae"], "--out", there["latents"], "--flip")
    kill_and_finish(
        ("after:train/000000.done.json", "write:val/000000.done.json", "write:latents/manifest.json"),
        *(*encode, "--config", write_config(tmp_path / "encode.yaml")),
    )
    config = write_config(tmp_path / "train.yaml", training(there["latents"], there["run"]))
    kill_and_finish(KILL_POINTS, "train", "--config", config)

    here = tmp_path / "two"
    for latents, run_dir in ((there["latents"], there["two"]), (latent_set.url, str(here))):
        config = write_config(tmp_path / "two.yaml", training(latents, run_dir))
        run_cli("train", "--config", config, "--procs-per-node", "2").check()

    wanted = ("--num-images", "5", "--config", write_config(tmp_path / "sample.yaml", {"sample": {"batch_size": 2}}))
    for image_format, points in (("png", ("write:images/00000003.png", "write:PROVENANCE.json")), ("shards", ())):
        command = ("sample", *wanted, "--set", f"sample.format={image_format}")
        kill_and_finish(points, *command, "--model", there["run"], "--out", there[image_format])
        run_cli(*command, "--model", on_disk, "--out", tmp_path / image_format).check()

    checks = {
        "autoencoder": hashes(there["vae"], below="export/vae") == hashes(vae_run, below="export/vae"),
        "latents": hashes(there["latents"]) == hashes(latent_set.url),
        "checkpoint": hashes(there["run"], below=FINAL) == hashes(on_disk, below=FINAL),
        "weights": hashes(there["run"], below="export/unet") == hashes(on_disk, below="export/unet"),
        "metrics": rows(there["run"]) == rows(on_disk),
        "two ranks": hashes(there["two"], below=FINAL) == hashes(here, below=FINAL),
        "images": hashes(there["png"]) == hashes(tmp_path / "png"),
        "image shards": hashes(there["shards"]) == hashes(tmp_path / "shards"),
    }
    with capsys.disabled():
        print("\n" + json.dumps({"name": "chain_on_s3", "passed": sum(checks.values()), "of": len(checks)}))
    assert all(checks.values()), checks


def walk_the_chain(root: str, photographs: str, world: World, tmp_path: Path) -> str:
    """Go from photographs to images with everything below one place; returns the run of `train`."""
    filesystem.write_bytes(f"{root}/names/secret.key", SECRET.encode())  # or the keys would be others each time
    tables = ("--labels", f"{photographs}/labels.csv", "--image-size", "64", "--workers", "0")
    places = ("--out", f"{root}/images", "--crosswalk", f"{root}/names")
    run_cli("prepare", "--source", photographs, *tables, *places).check()
    loop = {"budget_images": 16, "checkpoint_every_images": 8, "validation_images": 2, "validate_every_images": 0}
    config = tiny_config(
        {
            "train_vae": {"data": f"{root}/images", "run_dir": f"{root}/vae", "loop": loop},
            "encode_latents": {"data": f"{root}/images", "vae": f"{root}/vae", "out": f"{root}/latents"},
            "train": {"latents": [f"{root}/latents"], "run_dir": f"{root}/run", "loop": loop},
            "sample": {"model": f"{root}/run", "out": f"{root}/samples", "num_images": 2},
        }
    )
    for job in (train_vae, encode_latents, train):
        job.run(config, world, SilentConsole())
    sample.run(config, LocalWorld(), SilentConsole())
    return f"{root}/run"


def test_from_photographs_to_images_on_a_store_every_bit_is_that_of_a_disk(
    world: World, s3_bucket: str, tmp_path: Path
) -> None:
    photographs, here, there = tmp_path / "photographs", str(tmp_path / "here"), f"{s3_bucket}/chain"
    run_cli("phantoms", "--out", photographs, "--num-images", "24", "--image-size", "96", "--workers", "0").check()
    walk_the_chain(there, upload(photographs, f"{s3_bucket}/photographs"), world, tmp_path)
    walk_the_chain(here, str(photographs), world, tmp_path)
    prepared = load_shard_set(f"{there}/images", kind="images")
    assert prepared.num_samples() + sum(prepared.rejects.values()) == 24
    assert filesystem.list_files(f"{there}/names")
    survey = SetSurvey(prepared, verify=True)
    assert len(list(survey.label_rows(lambda _: None))) == prepared.num_samples()
    assert survey.problems == []
    reader = ShardSetReader(prepared, split="train")
    assert reader.shard(0).index.states is not None
    reader.close()
    final = "checkpoints/images-000000000016"
    for folder, below in (
        *(("images", "train"), ("images", "val"), ("latents", "train"), ("vae", "export/vae")),
        *(("run", final), ("run", "export/unet"), ("run", "export/conditioner"), ("samples", "images")),
    ):
        found = hashes(f"{there}/{folder}", below=below)
        assert found == hashes(f"{here}/{folder}", below=below), (folder, below)
        assert found, (folder, below)
