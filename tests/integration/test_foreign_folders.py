"""No verb deletes or replaces what it did not make: it refuses such a folder and leaves it as it is."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from phantom_clinic import write_clinic
from photographs import retina
from PIL import Image
from tiny_pipeline import tiny_denoiser, write_tiny_pipeline
from tiny_samples import draw_samples
from tiny_sets import phantom_samples, tiny_config, write_set

from synfundus.artifacts.ema_snapshots import write_snapshot
from synfundus.distributed.world import LocalWorld, World
from synfundus.errors import ConfigError, SynfundusError
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA
from synfundus.stages import Summary
from synfundus.stages.augment import job as augment
from synfundus.stages.demo import job as demo
from synfundus.stages.edit import job as edit
from synfundus.stages.ema import job as ema
from synfundus.stages.encode_latents import job as encode_latents
from synfundus.stages.export import job as export
from synfundus.stages.export_dicom import job as export_dicom
from synfundus.stages.forget import job as forget
from synfundus.stages.gallery import job as gallery
from synfundus.stages.inspect import job as inspect
from synfundus.stages.judge import job as judge
from synfundus.stages.phantoms import job as phantoms
from synfundus.stages.plot import job as plot
from synfundus.stages.prepare import job as prepare
from synfundus.stages.progress import job as progress
from synfundus.stages.sample import job as sample
from synfundus.stages.train import job as train
from synfundus.stages.train_vae import job as train_vae
from synfundus.storage import filesystem
from synfundus.storage.cache.object_cache import ObjectCache
from synfundus.telemetry.console import SilentConsole
from synfundus.training.ema import Profile

SIZE = 64
Contents = dict[str, bytes]

STRANGERS: dict[str, Contents] = {
    "a thesis": {"thesis.tex": b"three years"},
    "a hidden folder": {".git/HEAD": b"ref: refs/heads/main"},
    "names of ours": {
        "config.yaml": b"lr: 1",
        "images/000000.png": b"a photograph",
        "labels.csv": b"file",
        "model_index.json": b"{}",
        "unet/config.json": b"{}",
        "stages/phantoms.json": b"{}",
        "train/000000.tar": b"a tar",
        "work/plan.txt": b"x",
    },
    "documents of other programs": dict.fromkeys(
        ("run.json", "request.json", "manifest.json", "phantoms.json", "owner.json", "stages/request.json"), b"{}"
    ),
}
"""What may lie in a folder that a user names by mistake."""


@dataclass(frozen=True)
class Inputs:
    """What the verbs read; not to be written to."""

    root: Path
    photographs: Path
    images: Path
    latents: Path
    run: Path
    samples: Path


@pytest.fixture(scope="module")
def inputs(world: World, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    root = tmp_path_factory.mktemp("inputs")
    found = Inputs(root, root / "photographs", root / "images", root / "latents", root / "run", root / "samples")
    write_clinic(found.photographs, 3)
    sizes = {"image_size_px": SIZE, "crop": "none"}
    samples = phantom_samples(6, image_size_px=SIZE)
    write_set(found.images, samples, shards={"train": (4,), "val": (2,)}, properties=sizes)
    write_tiny_pipeline(found.run / "export")
    write_tiny_pipeline(root / "other-run" / "export", schema=DEFAULT_LABEL_SCHEMA, image_size_px=SIZE)
    (found.run / "run.json").write_text('{"kind": "diffusion"}')
    (found.run / "metrics.jsonl").write_text('{"images_seen": 8, "loss": 1.0}\n')
    weights = {name: tensor.float() for name, tensor in tiny_denoiser().state_dict().items()}
    for width in (0.05, 0.1):
        write_snapshot(str(found.run), weights, Profile(8, width), LocalWorld())
    do("encode-latents", found, str(found.latents), world)
    draw_samples(found.run, found.samples, 2)
    Image.fromarray(np.asarray(retina())).resize((256, 256)).save(root / "photograph.png")
    return found


VERBS: Mapping[str, tuple[ModuleType, Callable[[Inputs, str], dict[str, Any]]]] = {
    "phantoms": (phantoms, lambda _, out: {"phantoms": {"out": out, "num_images": 1, "image_size_px": SIZE}}),
    "prepare": (prepare, lambda inputs, out: preparation(inputs, out, f"{inputs.root}-names")),
    "prepare --crosswalk": (prepare, lambda inputs, out: preparation(inputs, f"{inputs.root}-set", out)),
    "train-vae": (train_vae, lambda inputs, out: {"train_vae": {"data": str(inputs.images), "run_dir": out}}),
    "encode-latents": (
        encode_latents,
        lambda inputs, out: {"encode_latents": {"data": str(inputs.images), "vae": str(inputs.run), "out": out}},
    ),
    "train": (
        train,
        lambda inputs, out: {"train": {"latents": [str(inputs.latents)], "run_dir": out, "vae": str(inputs.run)}},
    ),
    "sample": (sample, lambda inputs, out: {"sample": {"model": str(inputs.run), "out": out, "num_images": 1}}),
    "export": (export, lambda inputs, out: {"export": {"run_dir": str(inputs.run), "out": out}}),
    "export-dicom": (
        export_dicom,
        lambda inputs, out: {"export_dicom": {"samples": str(inputs.samples), "out": out, "workers": 0}},
    ),
    "ema": (
        ema,
        lambda inputs, out: {"ema": {"run_dir": str(inputs.run), "sigma_rel": 0.07, "out": out}},
    ),
    "forget": (
        forget,
        lambda inputs, out: {"forget": {"crosswalk": f"{inputs.root}-names", "patient": "P0", "out": out}},
    ),
    "judge": (
        judge,
        lambda inputs, out: {"judge": {"model": str(inputs.run), "data": str(inputs.images), "out": out}},
    ),
    "augment": (
        augment,
        lambda inputs, out: {
            "augment": {
                **{"real": str(inputs.images), "model": str(inputs.root / "other-run"), "out": out},
                **{"fill": {"dr_grade": 9}, "unchecked": True},
            }
        },
    ),
    "edit": (
        edit,
        lambda inputs, out: {
            "edit": {
                **{"model": str(inputs.run), "image": str(inputs.root / "photograph.png"), "out": out},
                **{"label": {"dr_grade": 3}, "num_steps": 2},
            }
        },
    ),
    "progress": (
        progress,
        lambda inputs, out: {
            "progress": {"model": str(inputs.run), "out": out, "label": {"dr_grade": "0..4"}, "frames": 2}
        },
    ),
    "gallery": (gallery, lambda inputs, out: {"gallery": {"samples": str(inputs.root / "samples"), "out": out}}),
    "demo": (demo, lambda _, out: {"demo": {"out": out}}),
}


def preparation(inputs: Inputs, out: str, crosswalk: str) -> dict[str, Any]:
    source = str(inputs.photographs)
    places = {"source": source, "labels": f"{source}/labels.csv", "out": out, "crosswalk": crosswalk}
    return {"prepare": {**places, "image_size_px": SIZE, "workers": 0}}


def do(verb: str, inputs: Inputs, out: str, world: World) -> Summary:
    module, settings = VERBS[verb]
    summary: Summary = module.run(tiny_config(settings(inputs, out)), world, SilentConsole())
    return summary


def contents(folder: Path) -> Contents:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write(folder: Path, files: Contents) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def refused(verb: str, inputs: Inputs, out: str, world: World) -> SynfundusError:
    with pytest.raises(SynfundusError) as caught:
        do(verb, inputs, out, world)
    assert caught.value.exit_code in (2, 3), "a user's mistake"
    assert caught.value.where, "it says where"
    return caught.value


@pytest.mark.parametrize("stranger", STRANGERS)
@pytest.mark.parametrize("verb", VERBS)
def test_a_folder_of_somebody_else_is_refused_and_stays(
    verb: str, stranger: str, inputs: Inputs, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = write(tmp_path / "theirs", STRANGERS[stranger])
    (tmp_path / "link").symlink_to(out)
    monkeypatch.chdir(out)
    for name in (str(out), str(tmp_path / "link"), "."):
        error = refused(verb, inputs, name, world)
        if stranger == "a thesis":
            assert isinstance(error, ConfigError)
            assert error.message == "the folder holds something else: thesis.tex"
            assert "move away what is there" in error.hint
    assert contents(tmp_path) == {f"theirs/{name}": data for name, data in STRANGERS[stranger].items()}


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_no_folder_is_refused(verb: str, inputs: Inputs, world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for name in ("file", "link", "nowhere"):
        error = refused(verb, inputs, str(tmp_path / name), world)
        assert "is a file, not a folder" in error.message
        assert error.where == str(tmp_path / name)
    assert contents(tmp_path) == {"file": b"x", "link": b"x"}


@pytest.mark.parametrize("verb", VERBS)
def test_the_inputs_and_what_they_lie_in_are_refused(verb: str, inputs: Inputs, world: World, tmp_path: Path) -> None:
    copy = shutil.copytree(inputs.root, tmp_path / "copy")
    own = Inputs(copy, copy / "photographs", copy / "images", copy / "latents", copy / "run", copy / "samples")
    before = contents(copy)
    for place in (copy, own.photographs, own.images, own.run, own.run / "ema", own.run / "export" / "vae"):
        refused(verb, own, str(place), world)
    if verb != "encode-latents":  # which finds them complete
        refused(verb, own, str(own.latents), world)
    if verb != "export":  # which finds it there
        refused(verb, own, str(own.run / "export"), world)
    assert contents(copy) == before


@pytest.mark.parametrize("verb", VERBS)
def test_objects_of_somebody_else_are_refused_and_stay(verb: str, inputs: Inputs, world: World, s3_bucket: str) -> None:
    filesystem.write_bytes(f"{s3_bucket}/thesis.tex", b"three years")
    filesystem.write_bytes(f"{s3_bucket}/data/1.bin", b"1")
    bucket = s3_bucket.rpartition("/")[0]
    before = filesystem.list_files(bucket)
    for out in (s3_bucket, f"{s3_bucket}/", bucket, f"{s3_bucket}/data"):
        assert "something else" in refused(verb, inputs, out, world).message
    assert "is a file" in refused(verb, inputs, f"{s3_bucket}/thesis.tex", world).message
    assert filesystem.list_files(bucket) == before


@pytest.mark.parametrize("verb", ["export", "ema"])
def test_a_model_is_replaced_as_a_whole_but_not_with_what_was_put_into_it(
    verb: str, inputs: Inputs, world: World, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    first = do(verb, inputs, str(model), world)
    made = contents(model)
    (model / "unet" / "older.safetensors").write_bytes(b"of an earlier version")
    (tmp_path / "link").symlink_to(model)
    assert do(verb, inputs, str(tmp_path / "link"), world)["fingerprint"] == first["fingerprint"]
    assert (tmp_path / "link").is_symlink()
    assert contents(model) == made
    for name in ("notes.md", ".git/HEAD", "unet/notes.txt", "diffusers/notes.txt"):
        write(model, {name: b"theirs"})
        assert "something else" in refused(verb, inputs, str(model), world).message
        assert contents(model) == {**made, name: b"theirs"}
        shutil.rmtree(model / ".git", ignore_errors=True)
        (model / name).unlink(missing_ok=True)
    write(model, {"MODEL_CARD.md": b"of an earlier version"})  # which wrote no README.md: that one is theirs
    assert "something else: README.md" in refused(verb, inputs, str(model), world).message
    (model / "README.md").unlink()
    do(verb, inputs, str(model), world)
    assert contents(model) == made


@pytest.mark.parametrize("verb", ["export", "ema"])
def test_a_model_of_another_run_is_not_replaced(verb: str, inputs: Inputs, world: World, tmp_path: Path) -> None:
    other = shutil.copytree(inputs.run, tmp_path / "other")
    (other / "run.json").write_text('{"kind": "diffusion", "seed": 1}')
    write_tiny_pipeline(other / "export", seed=1)
    model = tmp_path / "model"
    do(verb, inputs, str(model), world)
    made = contents(model)
    error = refused(verb, replace(inputs, run=other), str(model), world)
    assert "another model is here" in error.message
    assert json.loads(made["synfundus.json"])["fingerprints"]["model"][:12] in error.message
    assert contents(model) == made
    shutil.rmtree(model)  # as the hint says
    do(verb, replace(inputs, run=other), str(model), world)
    assert contents(model) != made


def test_another_average_of_the_run_is_not_replaced(inputs: Inputs, tmp_path: Path) -> None:
    def average(width: float) -> Summary:
        section = {"run_dir": str(inputs.run), "sigma_rel": width, "out": str(tmp_path / "model")}
        return ema.run(tiny_config({"ema": section}), LocalWorld(), SilentConsole())

    average(0.07)
    made = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"ema_sigma_rel 0\.07 there, 0\.08 here") as caught:
        average(0.08)
    assert "another model is here" in caught.value.message
    assert contents(tmp_path) == made
    average(0.07)
    shutil.rmtree(tmp_path / "model")  # as the hint says
    average(0.08)


def test_the_model_a_run_keeps_is_its_own(inputs: Inputs, world: World, tmp_path: Path) -> None:
    other = shutil.copytree(inputs.run, tmp_path / "other")
    (tmp_path / "link").symlink_to(other / "export")
    before = contents(other)
    for out in (other / "export", tmp_path / "link"):
        for verb in ("export", "ema"):
            assert "a run keeps its own model here" in refused(verb, inputs, str(out), world).message
    assert contents(other) == before
    assert do("export", inputs, str(inputs.run / "export"), world)["out"] == str(inputs.run / "export"), "there already"


def test_shards_without_a_crosswalk_that_names_their_folder_are_not_ours(
    inputs: Inputs, world: World, tmp_path: Path
) -> None:
    source, names, out = str(inputs.photographs), tmp_path / "names", tmp_path / "set"
    settings = {"source": source, "labels": f"{source}/labels.csv", "out": str(out), "crosswalk": str(names)}
    config = tiny_config({"prepare": {**settings, "image_size_px": SIZE, "workers": 0}})
    write(out, {"train/000000.tar": b"a tar of webdataset"})
    with pytest.raises(ConfigError, match="something else: train"):
        prepare.run(config, LocalWorld(), SilentConsole())
    assert contents(tmp_path) == {"set/train/000000.tar": b"a tar of webdataset"}
    shutil.rmtree(out)
    assert prepare.run(config, LocalWorld(), SilentConsole())["num_samples"] == 3
    (out / "manifest.json").unlink()
    assert prepare.run(config, LocalWorld(), SilentConsole())["num_samples"] == 3, "ours, of a run that was stopped"


def test_a_crosswalk_may_begin_with_a_secret(inputs: Inputs, world: World, tmp_path: Path) -> None:
    names = write(tmp_path / "names", {"secret.key": b"5a" * 32})
    settings = preparation(inputs, str(tmp_path / "set"), str(names))
    assert prepare.run(tiny_config(settings), world, SilentConsole())["num_samples"] == 3


def test_a_plot_replaces_plots_alone(inputs: Inputs, tmp_path: Path) -> None:
    def draw(name: str) -> Summary:
        config = tiny_config({"plot": {"run_dirs": [str(inputs.run)], "out": str(tmp_path / name)}})
        return plot.run(config, LocalWorld(), SilentConsole())

    for _ in range(2):
        draw("curves.png")
    made = (tmp_path / "curves.png").read_bytes()
    Image.new("RGB", (9, 9)).save(tmp_path / "holiday.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "holiday.png")
    before = contents(tmp_path)
    for name in ("holiday.png", "folder.png", "link.png"):
        with pytest.raises(ConfigError, match="did not write") as caught:
            draw(name)
        assert caught.value.where == str(tmp_path / name)
    assert contents(tmp_path) == before
    assert before["curves.png"] == made


def test_inspect_replaces_its_own_report_and_sheet_alone(inputs: Inputs, tmp_path: Path) -> None:
    def look(out: Path) -> Summary:
        config = tiny_config({"inspect": {"data": str(inputs.images), "out": str(out)}})
        return inspect.run(config, LocalWorld(), SilentConsole())

    write(tmp_path / "a", STRANGERS["a thesis"])
    for _ in range(2):
        assert look(tmp_path / "a")["ok"]
    assert sorted(contents(tmp_path / "a")) == ["contact_sheet.png", "inspect.json", "thesis.tex"]
    for name in ("contact_sheet.png", "inspect.json"):
        out = write(tmp_path / name, {name: b"{}"})
        with pytest.raises(ConfigError, match="did not write") as caught:
            look(out)
        assert caught.value.where == f"{out}/{name}"
        assert contents(out) == {name: b"{}"}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_cache_is_kept_in_a_folder_of_its_own(stranger: str, tmp_path: Path) -> None:
    theirs = write(tmp_path / "theirs", STRANGERS[stranger])
    with pytest.raises(ConfigError, match="something else") as caught:
        ObjectCache(theirs, 1000)
    assert "--cache-dir" in caught.value.hint
    assert contents(theirs) == STRANGERS[stranger]


def test_a_cache_removes_copies_of_its_own_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 900)
    sums = "9d5ed678fe57bcca610140957afab571"
    theirs = {f"objects/{name}": b"x" * 900 for name in ("film.part", "film.json", "film.copy", f"{sums}.json")}
    folder = write(tmp_path / "cache", theirs)
    (folder / "locks").mkdir()
    cache = ObjectCache(folder, 1000)
    for size in (800, 900):
        (tmp_path / f"{size}").write_bytes(b"x" * size)
        with cache.open(str(tmp_path / f"{size}"), sha256=hashlib.sha256(b"x" * size).hexdigest()):
            pass
    assert theirs.items() <= contents(folder).items()
    assert len(list((folder / "objects").glob("*.copy"))) == 2, "theirs and the newer one of ours"
