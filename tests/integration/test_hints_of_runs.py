"""Hints about runs, their checkpoints and exports are true: each error is met, its hint followed, and it is gone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import Talk
from tiny_sets import flip_byte, merged, tiny_config, write_config
from told import Shell, refusal

from synfundus.artifacts.model_folder import find_pipeline, load_pipeline
from synfundus.distributed.world import World
from synfundus.shards.reader import ShardSetReader
from synfundus.stages import Summary
from synfundus.stages.train import job as train
from synfundus.storage.manifest import ShardSet, load_shard_set

LOOP = {"budget_images": 48, "checkpoint_every_images": 24, "validate_every_images": 0, "validation_images": 4}
OLDER, NEWER = "images-000000000024", "images-000000000048"
AVERAGES = {"sigma_rel": [0.05, 0.1], "snapshot_every_images": 24}


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def start(latents: str, run_dir: Path, world: World, *, talk: Any = None, **sections: Any) -> Summary:
    section = merged({"latents": latents, "run_dir": str(run_dir), "loop": LOOP, "ema": AVERAGES}, sections)
    return train.run(tiny_config({"train": section}), world, talk or Talk())


@pytest.fixture(scope="module")
def begun(latent_set: ShardSet, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 48 images with two checkpoints and averages; to be copied."""
    run_dir = tmp_path_factory.mktemp("begun") / "run"
    start(latent_set.url, run_dir, world)
    return run_dir


@pytest.fixture
def run_dir(begun: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "run"))


def opens(model: Path) -> bool:
    return bool(load_pipeline(find_pipeline(str(model)), device=torch.device("cpu")).fingerprint)


def test_what_is_no_model(shell: Shell, run_dir: Path, vae_run: Path, world: World, latent_set: ShardSet) -> None:
    line = ("sample", "--out", run_dir.parent / "images", "--num-images", 1, "--device", "cpu", "--dry-run", "--model")
    shell.refused("give the run of `synfundus train`, not of `train-vae`", *line, vae_run)
    shell.done(*line, run_dir)
    (run_dir.parent / "empty").mkdir()
    shell.refused("or a folder written by `synfundus export`", *line, run_dir.parent / "empty")
    with refusal("give a run of `synfundus train`"):
        find_pipeline(str(run_dir.parent / "nowhere"))
    begun = run_dir.parent / "begun"
    begun.mkdir()
    shutil.copy(run_dir / "run.json", begun)
    told = shell.refused("`synfundus watch --run-dir` shows how far it is", *line, begun)
    shell.done("watch", "--run-dir", begun, "--once")
    shutil.rmtree(run_dir / "export")
    told = shell.refused("exports its newest checkpoint", *line, run_dir)
    export, _ = re.findall(r"`synfundus (.*?)`", told.hint)
    shell.done(*export.split(), run_dir, "--out", run_dir.parent / "model")
    shell.done(*line, run_dir.parent / "model")
    start(latent_set.url, run_dir, world)
    shell.done(*line, run_dir)


def damaged(model: Path, kind: str, vae_run: Path) -> None:
    if kind == "a part":
        shutil.rmtree(model / "unet")
    elif kind == "a field":
        path = model / "synfundus.json"
        document = json.loads(path.read_text())
        del document["training" if model.name == "model" else "fingerprints"]
        path.write_text(json.dumps(document))
    elif kind == "weights":
        document = model / "unet" / "config.json"
        document.write_text(document.read_text().replace('"dropout": 0.0', '"dropout": 0.5'))
    else:
        shutil.rmtree(model / "vae")
        shutil.copytree(vae_run / "export" / "vae", model / "vae")
        weights = model / "vae" / "diffusion_pytorch_model.safetensors"
        flip_byte(weights, weights.stat().st_size - 2)


@pytest.mark.parametrize(
    ("kind", "hint"),
    [
        ("a part", "export it again"),
        ("a field", "export it again"),
        ("weights", "the files were changed after the export: export it again"),
        ("an autoencoder", "put the autoencoder back that the latents were encoded with, or export it again"),
    ],
)
def test_a_damaged_export(
    kind: str, hint: str, shell: Shell, run_dir: Path, vae_run: Path, latent_set: ShardSet, world: World
) -> None:
    """A copy of the model is exported again, the run's own by the training."""
    model = run_dir.parent / "model"
    shell.done("export", "--run-dir", run_dir, "--out", model)
    damaged(model, kind, vae_run)
    with refusal(hint) as caught:
        opens(model)
    assert "the same `synfundus train`" in caught.value.hint
    shell.done("export", "--run-dir", run_dir, "--out", model)
    assert opens(model)
    damaged(run_dir / "export", kind, vae_run)
    with refusal(hint):
        opens(run_dir)
    start(latent_set.url, run_dir, world)
    assert opens(run_dir)
    if kind == "an autoencoder":
        damaged(model, kind, vae_run)
        shutil.rmtree(model / "vae")
        shutil.copytree(vae_run / "export" / "vae", model / "vae")
        assert opens(model)


def test_a_checkpoint_to_export(shell: Shell, run_dir: Path) -> None:
    line = ("export", "--run-dir", run_dir, "--out", run_dir.parent / "model")
    told = shell.refused("there are: ", *line, "--checkpoint", "images-000000000001")
    assert told.hint == f"there are: {OLDER}, {NEWER}"
    flip_byte(run_dir / "checkpoints" / NEWER / "unet" / "diffusion_pytorch_model.safetensors", 3000)
    shell.refused("take another one", *line, "--checkpoint", NEWER)
    shell.done(*line, "--checkpoint", told.hint.split()[2].rstrip(","))


def test_checkpoints_of_an_earlier_version(shell: Shell, run_dir: Path, latent_set: ShardSet, world: World) -> None:
    """Of a run that has ended, too."""
    line = ("export", "--run-dir", run_dir, "--out", run_dir.parent / "model", "--weights", "raw")
    shutil.rmtree(run_dir / "model")
    shell.refused("resume the run with the same `synfundus train`, which writes it", *line)
    start(latent_set.url, run_dir, world)
    shell.done(*line)
    shutil.rmtree(run_dir.parent / "model")
    for name in (OLDER, NEWER):
        shutil.rmtree(run_dir / "checkpoints" / name / "unet")
        path = run_dir / "checkpoints" / name / "MANIFEST.json"
        document = json.loads(path.read_text())
        document["files"] = {file: of for file, of in document["files"].items() if not file.startswith("unet/")}
        path.write_text(json.dumps(document))
    told = shell.refused("its next checkpoint has one", *line)
    (flag,) = re.findall(r"--[\w-]+", told.hint)
    config = write_config(run_dir.parent / "run.yaml", {"train": {"loop": LOOP, "ema": AVERAGES}})
    shell.done("train", "--config", config, "--latents", latent_set.url, "--run-dir", run_dir, flag, 72)
    shell.done(*line)


def test_a_run_without_snapshots(shell: Shell, run_dir: Path, latent_set: ShardSet, world: World) -> None:
    shutil.rmtree(run_dir / "ema")
    line = ("ema", "--sigma-rel", "0.07", "--out", run_dir.parent / "model", "--run-dir")
    told = shell.refused("for the next run", *line, run_dir)
    widths, interval = re.findall(r"train\.ema\.\w+(?:=\S+)?", told.hint)
    config = write_config(run_dir.parent / "run.yaml", {"train": {"loop": LOOP}})
    given = ("--config", config, "--latents", latent_set.url, "--run-dir", run_dir.parent / "next", "--set", widths)
    shell.done("train", *given, "--set", f"{interval}=8")
    shell.done(*line, run_dir.parent / "next")


def test_a_damaged_snapshot(shell: Shell, run_dir: Path) -> None:
    line = ("ema", "--sigma-rel", "0.07", "--out", run_dir.parent / "model", "--run-dir", run_dir)
    spoilt = run_dir / "ema" / f"sigma-rel-0.0500-{OLDER}.safetensors"
    flip_byte(spoilt, spoilt.stat().st_size - 2)
    told = shell.refused("move ", *line)
    for name in re.findall(r"[\w.-]+\.(?:json|safetensors)", told.hint):
        (run_dir / "ema" / name).rename(run_dir.parent / name)
    shell.done(*line)


def test_a_width_of_an_average(shell: Shell, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from synfundus.stages.ema import job as ema

    with refusal("for example --sigma-rel 0.10") as caught:
        ema.run(tiny_config({"ema": {"run_dir": str(run_dir)}}), None, Talk())  # type: ignore[arg-type]
    shell.done("ema", "--run-dir", run_dir, *caught.value.hint.split()[2:])


def test_a_folder_everybody_may_write_to(run_dir: Path, latent_set: ShardSet, world: World) -> None:
    run_dir.chmod(0o777)
    with refusal("chmod o-w") as caught:
        start(latent_set.url, run_dir, world)
    assert caught.value.where == str(run_dir)
    run_dir.chmod(0o775)
    assert start(latent_set.url, run_dir, world)["images_seen"] == 48


def test_checkpoints_that_are_all_damaged(run_dir: Path, latent_set: ShardSet, world: World) -> None:
    for name in (OLDER, NEWER):
        (run_dir / "checkpoints" / name / "unet" / "config.json").write_text("{}")
    with refusal("move the folder away to start from the beginning") as caught:
        start(latent_set.url, run_dir, world)
    Path(caught.value.where).rename(run_dir.parent / "away")
    talk = Talk()
    assert start(latent_set.url, run_dir, world, talk=talk, loop={"budget_images": 8})["images_seen"] == 8
    assert not any("resumed" in text for text in talk.lines)


def test_a_rewind_before_the_first_checkpoint(latent_set: ShardSet, world: World, tmp_path: Path) -> None:
    hot = {"optim": {"lr": 1e30, "warmup_images": 0, "schedule": "constant"}}
    loop = {"on_nonfinite": "rewind", "checkpoint_every_images": 48}
    with refusal("lower checkpoint_every_images"):
        start(latent_set.url, tmp_path / "run", world, loop=loop, **hot)
    start(latent_set.url, tmp_path / "run", world, loop={**loop, "checkpoint_every_images": 8}, **hot)


def test_a_run_whose_memory_ran_out(shell: Shell, run_dir: Path, latent_set: ShardSet, world: World) -> None:
    """Each setting that the hint names may change in a run."""
    from synfundus.training.trainer import _explained

    error = _explained(RuntimeError("out of memory"), 8) or _explained(torch.OutOfMemoryError("out of memory"), 8)
    assert error is not None
    named = set(re.findall(r"(micro_batch_size|gradient_checkpointing|preview_every_images)", error.hint))
    ways: dict[str, Any] = {"micro_batch_size": 4, "gradient_checkpointing": True, "preview_every_images": 0}
    assert named == set(ways)
    ways |= {"prefetch_max_bytes": 2**20}  # named where a worker of the loader is lost
    for number, (name, value) in enumerate(ways.items(), start=1):
        loop = {name: value, "budget_images": 48 + 8 * (number == 1), "validation_images": 1}
        start(latent_set.url, run_dir, world, loop=loop)


def test_latents_that_are_damaged(run_dir: Path, latent_set: ShardSet, world: World) -> None:
    sound = shutil.copytree(latent_set.url, run_dir.parent / "latents")
    reader = ShardSetReader(load_shard_set(str(sound), kind="latents"), split="train")
    tar = sound / "train" / "000000.tar"
    data = tar.read_bytes()
    for sample in range(reader.shard_sizes[0]):
        (at,) = [at for name, at, *_ in reader.shard(0).index.members(sample) if name == "moments.npy"]
        flip_byte(tar, at + 200)
    reader.close()
    new = run_dir.parent / "new"
    with refusal("ledger.jsonl lists them; write the damaged shards again"):
        start(str(sound), new, world, loop={"budget_images": 96, "checkpoint_every_images": 96})
    assert "train/000000.tar" in (new / "ledger.jsonl").read_text()
    tar.write_bytes(data)
    assert start(str(sound), new, world, loop={"budget_images": 96, "checkpoint_every_images": 96})["images_seen"] == 96


def test_weights_of_another_network(shell: Shell, run_dir: Path, latent_set: ShardSet, world: World) -> None:
    new, wider = run_dir.parent / "new", {"unet": {"cross_attention_dim": 32}}
    with refusal("configure the same unet section"):
        start(latent_set.url, new, world, init_from=str(run_dir), **wider)
    with refusal("or a folder of a diffusers U-Net"):
        start(latent_set.url, run_dir.parent / "other", world, init_from=str(run_dir / "ema"))
    begin = {"loop": {"budget_images": 8, "checkpoint_every_images": 8}}
    for number, given in enumerate((run_dir, run_dir / "checkpoints" / NEWER / "unet")):
        at = run_dir.parent / f"from-{number}"
        assert start(latent_set.url, at, world, init_from=str(given), **begin)["images_seen"] == 8
        assert json.loads((at / "init.json").read_text())["source"] == str(given)
    trained = load_pipeline(run_dir / "export", device=torch.device("cpu")).fingerprint
    assert json.loads((run_dir.parent / "from-0" / "init.json").read_text())["fingerprint"] == trained
    assert trained in (run_dir.parent / "from-0" / "export" / "README.md").read_text()
    transformer = run_dir.parent / "sd3" / "transformer"
    transformer.mkdir(parents=True)
    (transformer / "config.json").write_text("{}")
    with refusal("or leave --init-from out"):
        start(latent_set.url, run_dir.parent / "plain", world, init_from=str(transformer.parent))
    assert start(latent_set.url, run_dir.parent / "plain", world, **begin)["images_seen"] == 8


def test_checkpoints_of_another_network(run_dir: Path, latent_set: ShardSet, world: World) -> None:
    document = json.loads((run_dir / "run.json").read_text())
    document["identity"]["unet"]["cross_attention_dim"] = 32
    sound = (run_dir / "run.json").read_text()
    (run_dir / "run.json").write_text(json.dumps(document))
    with refusal("use the config of the run, or another --run-dir"):
        start(latent_set.url, run_dir, world, unet={"cross_attention_dim": 32})
    (run_dir / "run.json").write_text(sound)
    assert start(latent_set.url, run_dir, world)["images_seen"] == 48


def test_a_run_that_is_another(shell: Shell, run_dir: Path, latent_set: ShardSet, world: World) -> None:
    with refusal("give another --run-dir; --run-dir alone resumes this one, with its own settings and inputs"):
        start(latent_set.url, run_dir, world, unet={"cross_attention_dim": 32})
    shell.done("train", "--run-dir", run_dir, "--dry-run")
    assert start(latent_set.url, run_dir, world)["images_seen"] == 48
    begin = {"loop": {"budget_images": 8, "checkpoint_every_images": 8}, "unet": {"cross_attention_dim": 32}}
    assert start(latent_set.url, run_dir.parent / "new", world, **begin)["images_seen"] == 8


def test_curves(shell: Shell, run_dir: Path, tmp_path: Path) -> None:
    from synfundus.config.schema import RunConfig
    from synfundus.stages.plot import job as plot

    line = ("plot", "--dry-run", "--run-dir", run_dir)
    told = shell.refused("there are ", *line, "--curve", "frobnicate")
    for name in told.hint.removeprefix("there are ").split(", "):
        shell.done(*line, "--curve", name)
    (tmp_path / "theirs.png").write_text("a holiday")
    shell.refused("give another --out", *line, "--out", tmp_path / "theirs.png")
    told = shell.refused("give --out FILE.png", *line, "--run-dir", Path(shutil.copytree(run_dir, tmp_path / "two")))
    shell.done(*line, "--run-dir", tmp_path / "two", "--out", tmp_path / told.hint.split()[2])
    with refusal("give --run-dir"):
        plot.run(RunConfig(), None, Talk())  # type: ignore[arg-type]
    with refusal("--run-dir takes the folder of a run of train or train-vae"):
        plot.run(RunConfig.model_validate({"plot": {"run_dirs": [str(tmp_path / "no")]}}), None, Talk())  # type: ignore[arg-type]
    rows = (run_dir / "metrics.jsonl").read_text()
    (run_dir / "metrics.jsonl").write_text("")
    shell.refused("wait for its first row", *line)
    (run_dir / "metrics.jsonl").write_text('{"images_seen": 8, "frobnication": 1.0}\n')
    told = shell.refused("--curve draws one by name", *line)
    shell.done(*line, "--curve", told.hint.removeprefix("there are ").partition(";")[0])
    (run_dir / "metrics.jsonl").write_text(rows)
    shell.done(*line)


def test_runs_to_watch(shell: Shell, run_dir: Path, tmp_path: Path) -> None:
    from synfundus.stages.rehearsal import require_run

    (tmp_path / "empty").mkdir()
    shell.refused("or a folder of such folders", "watch", "--once", "--run-dir", tmp_path / "empty")
    for folder in (run_dir, tmp_path):
        shell.done("watch", "--once", "--run-dir", folder)
    with refusal("--run-dir takes the folder of a run of train or train-vae"):
        require_run(str(tmp_path / "no"))
    require_run(str(run_dir))
