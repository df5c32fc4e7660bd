"""A dry run ends with the code and the words of the run, and writes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from phantom_clinic import write_clinic
from tiny_pipeline import write_tiny_pipeline
from tiny_sets import encode_png, hashes, tiny_config, write_config, write_numbered_set, write_set

from synfundus.cli import run
from synfundus.cli.app import run_command
from synfundus.cli.request import Request
from synfundus.distributed.world import LocalWorld, World
from synfundus.labels.schema import LabelSchema, LabelSpec
from synfundus.stages.demo import job as demo
from synfundus.stages.phantoms import job as phantoms
from synfundus.stages.sample import job as sample
from synfundus.stages.train.start import identity_of
from synfundus.storage import documents
from synfundus.storage.manifest import ShardSet
from synfundus.telemetry.console import SilentConsole

MAPPINGS = {
    "unknown_key": "columns: {file: file}\nfrobnicate: 1\n",
    "wrong_column": "source: x\nfile: file\npatient_id: nobody\n",
}
MIRRORED = LabelSchema((LabelSpec("eye_side", 2, values=("left", "right")),))
DEVICES = ("train-vae", "encode-latents", "verify-latents", "train", "sample", "verify", "judge")
"""Verbs with --device."""
REFUSED: dict[str, str] = {
    "demo, no photographs": "demo --out {new} --source {no} --labels {no}",
    "demo, a stranger's folder": "demo --out {strange}",
    "demo, a broken mapping": "demo --out {new} --source {clinic} --labels {clinic}/labels.csv "
    "--mapping {unknown_key} --set demo.fit_to_machine=false",
    "phantoms, a stranger's folder": "phantoms --out {strange} --num-images 1",
    "phantoms, a file": "phantoms --out {strange}/thesis.txt --num-images 1",
    "prepare, no photographs": "prepare --source {no} --labels {clinic}/labels.csv --out {new}",
    "prepare, no table": "prepare --source {clinic} --labels {no} --out {new}",
    "prepare, an unknown key": "prepare --source {clinic} --labels {clinic}/labels.csv --out {new} "
    "--mapping {unknown_key}",
    "prepare, a wrong column": "prepare --source {clinic} --labels {clinic}/labels.csv --out {new} "
    "--mapping {wrong_column}",
    "prepare, other photographs": "prepare --source {strange} --labels {clinic}/labels.csv --out {new}",
    "prepare, a stranger's folder": "prepare --source {clinic} --labels {clinic}/labels.csv --out {strange}",
    "inspect, no set": "inspect --data {strange}",
    "inspect, a stranger's report": "inspect --data {images} --out {report}",
    "train-vae, no set": "train-vae --data {no} --run-dir {new}",
    "train-vae, latents": "train-vae --data {latents} --run-dir {new}",
    "train-vae, no weights": "train-vae --data {images} --run-dir {new} --init-from {strange}",
    "train-vae, a stranger's folder": "train-vae --data {images} --run-dir {strange}",
    "encode-latents, no autoencoder": "encode-latents --data {images} --vae {strange} --out {new}",
    "encode-latents, latents": "encode-latents --data {latents} --vae {strange} --out {new}",
    "verify-latents, no set": "verify-latents --latents {strange} --vae {strange}",
    "verify-latents, no autoencoder": "verify-latents --latents {latents} --vae {strange}",
    "train, no set": "train --latents {no} --run-dir {new}",
    "train, an empty folder": "train --latents {empty} --run-dir {new}",
    "train, images": "train --latents {images} --run-dir {new}",
    "train, no mirrored moments": "train --latents {latents} --run-dir {new} --set train.diffusion.flip=true",
    "train, no autoencoder": "train --latents {latents} --run-dir {new} --vae {strange}",
    "train, ranks": "train --latents {latents} --run-dir {new} --procs-per-node 3",
    "train, a path of a shell": "train --latents $SCRATCH/latents --run-dir {new}",
    "plot, no run": "plot --run-dir {no}",
    "plot, no row": "plot --run-dir {strange}",
    "watch, no run": "watch --once --run-dir {no}",
    "watch, a folder without one": "watch --once --run-dir {clinic}",
    "sample, no model": "sample --model {strange} --out {new} --num-images 1",
    "sample, an unknown label": "sample --model {model} --out {new} --num-images 1 --label frobnicate=1",
    "sample, a broken plan": "sample --model {model} --out {new} --labels {plan}",
    "sample, a stranger's folder": "sample --model {model} --out {strange} --num-images 1",
    "augment, no set": "augment --real {strange} --model {model} --fill dr_grade=50 --out {new}",
    "augment, no model": "augment --real {images} --model {strange} --fill dr_grade=50 --out {new}",
    "augment, an unknown label": "augment --real {images} --model {model} --fill frobnicate=50 --out {new} --unchecked",
    "augment, a stranger's folder": "augment --real {images} --model {model} --fill dr_grade=50 --unchecked "
    "--out {strange}",
    "edit, no model": "edit --model {strange} --image {clinic}/clinic/000.jpg --label dr_grade=3 --out {new}",
    "edit, an unknown label": "edit --model {model} --image {clinic}/clinic/000.jpg --label frobnicate=3 --out {new}",
    "edit, no photograph": "edit --model {model} --image {plan} --label dr_grade=3 --out {new}",
    "ema, no snapshots": "ema --run-dir {strange} --sigma-rel 0.1",
    "export, no model": "export --run-dir {strange} --out {new}",
    "export, a stranger's folder": "export --run-dir {model} --out {strange}",
    "forget, a stranger's folder": "forget --crosswalk {crosswalk} --patient P0 --out {strange}",
    "judge, no set": "judge --model {model} --data {strange} --out {new}",
    "judge, no model": "judge --model {strange} --data {images} --out {new}",
    "judge, no samples": "judge --samples {strange} --data {images} --out {new}",
    "judge, samples of other labels": "judge --samples {mirrored_samples} --data {images} --out {new}",
    "judge, a model of other labels": "judge --model {mirrored} --data {images} --out {new}",
    "judge, a stranger's folder": "judge --model {model} --data {images} --out {strange}",
    "judge, another request": "judge --model {model} --data {images} --out {judged} --num-images 7",
    "gallery, no samples": "gallery --set {strange} --out {new}",
    "gallery, no image set": "gallery --set {samples} --real {strange} --out {new}",
    "gallery, samples of other labels": "gallery --set {mirrored_samples} --real {images} --out {new}",
    "gallery, a stranger's folder": "gallery --set {samples} --out {strange}",
    "judge, a sampler of other models": "judge --model {flow} --data {images} --out {new} --set sample.sampler=ddim",
    "sample, a sampler of other models": "sample --model {flow} --out {new} --num-images 1 --sampler ddim",
    "sample, another request": "sample --model {model} --out {samples} --num-images 2 --seed 5",
    "sample, other labels": "sample --model {model} --out {samples} --num-images 2 --label is_gc=1",
    "phantoms, other phantoms": "phantoms --out {phantoms} --num-images 1 --seed 5",
    "prepare, another set": "prepare --source {clinic} --labels {clinic}/labels.csv --out {prepared} "
    "--crosswalk {crosswalk} --image-size 48",
    "prepare, the crosswalk of another set": "prepare --source {clinic} --labels {clinic}/labels.csv --out {new} "
    "--crosswalk {crosswalk}",
    "prepare, a stranger's crosswalk": "prepare --source {clinic} --labels {clinic}/labels.csv --out {new} "
    "--crosswalk {strange}",
    "demo, other settings": "demo --out {demo} --set demo.fit_to_machine=false --seed 5",
    "demo, other minutes": "demo --out {demo} --set demo.fit_to_machine=false --minutes 3",
    "demo, a sampler of other models": "demo --out {new} {flowing}",
    "train-vae, another run": "train-vae {tiny} --data {images} --run-dir {vae} --set train_vae.loss.kl_weight=0.5",
    "train-vae, a run of train": "train-vae {tiny} --data {images} --run-dir {run}",
    "train-vae, drawn weights of another kind": "train-vae {tiny} --data {images} --run-dir {new} --init-from drawn",
    "encode-latents, other latents": "encode-latents --data {images} --vae {vae} --out {encoded} --batch-size 5",
    "encode-latents, mirrored without a side": "encode-latents --data {sideless} --vae {vae} --out {new} --flip",
    "verify, no samples": "verify --samples {strange} --model {model}",
    "export-dicom, no samples": "export-dicom --samples {strange} --out {new}",
    "verify-latents, another autoencoder": "verify-latents --latents {encoded} --vae {model}",
    "verify-latents, other images": "verify-latents --latents {encoded} --vae {vae} --data {sideless}",
    "train, a run of train-vae": "train {tiny} --latents {encoded} --run-dir {vae}",
    "train, another run": "train {tiny} --latents {encoded} --run-dir {run} --seed 5",
    "train, nothing to start from": "train {tiny} --latents {encoded} --run-dir {new} --init-from {empty}",
    "train, a model of other latents to start from": "train {tiny} --latents {encoded} --run-dir {new} "
    "--init-from {model}",
    "train, a sampler of other models": "train --latents {encoded} --run-dir {new} {flowing} "
    "--set train.loop.preview_every_images=8",
    "train, drawn weights of another kind": "train {tiny} --latents {encoded} --run-dir {new} --init-from drawn",
    "train, a flip without a side": "train {tiny} --latents {sideless_latents} --run-dir {new} "
    "--set train.diffusion.flip=true",
}


@contextmanager
def local_world(request: Request) -> Iterator[World]:
    """A world without a process group."""
    del request
    yield LocalWorld()


def write_begun(folder: Path, images: ShardSet, latents: ShardSet) -> None:
    """Write what runs with other settings have begun or ended."""
    job = {"sample": {"model": str(folder / "model"), "out": str(folder / "samples"), "num_images": 2}}
    sample.run(tiny_config(job), LocalWorld(), SilentConsole())
    drawn = {"out": str(folder / "phantoms"), "num_images": 1, "image_size_px": 64, "workers": 0}
    phantoms.run(tiny_config({"phantoms": drawn}), LocalWorld(), SilentConsole())
    asked = {"seed": 0, "image_set_identity": images.identity, "num_images": 6, "samples": None}
    document = {**asked, "model": str(folder / "model")}
    documents.write_document(
        str(folder / "judged" / "request.json"), document, format_name="synfundus-judge", version=1
    )
    section = tiny_config().train
    own = {"init_from": None, "unet": section.unet.model_dump(mode="json")}
    run_document = {"kind": "diffusion", "identity": identity_of(section, latents, own, seed=0)}
    documents.write_document(str(folder / "run" / "run.json"), run_document, format_name="synfundus-run", version=1)
    line = "prepare --source {0}/clinic --labels {0}/clinic/labels.csv --out {0}/prepared --crosswalk {0}/crosswalk"
    assert run_command([*line.format(folder).split(), "--image-size", "64", "--workers", "0"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_joined", local_world)
        leave_out_stages(patch)
        assert run_command(["demo", "--out", str(folder / "demo"), "--set", "demo.fit_to_machine=false"]) == 0


def leave_out_stages(patch: pytest.MonkeyPatch, *kept: str) -> None:
    """Let a demo end after some of its stages."""
    patch.setattr(demo, "STAGES", [stage for stage in demo.STAGES if stage.name in kept])
    patch.setattr(demo._Demo, "finish", lambda walked: {"ok": True})


@pytest.fixture(scope="module")
def places(
    image_set: ShardSet, latent_set: ShardSet, vae_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("places")
    write_clinic(folder / "clinic", 4)
    write_numbered_set(folder / "latents", [3])
    write_tiny_pipeline(folder / "model")
    write_tiny_pipeline(folder / "mirrored", schema=MIRRORED)
    flow = {"prediction_type": "flow_velocity", "num_timesteps": 50, "shift": 1.0}
    write_tiny_pipeline(folder / "flow", schedule_settings=flow)
    sideless = LabelSchema((LabelSpec("is_gc", 2),))
    one = [("k", {"json": b'{"labels": {}}', "png": encode_png(np.zeros((64, 64, 3), dtype=np.uint8))})]
    write_set(folder / "sideless", one, shards={"train": (1,)}, schema=sideless)
    write_set(folder / "mirrored_samples", one, shards={"train": (1,)}, schema=MIRRORED, kind="samples")
    shutil.copytree(latent_set.url, folder / "sideless_latents")
    manifest = folder / "sideless_latents" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"eye_side"', '"laterality"'))
    for name in ("strange", "empty", "report"):
        (folder / name).mkdir()
    (folder / "strange" / "thesis.txt").write_text("years of work")
    (folder / "report" / "inspect.json").write_text("{}")
    (folder / "plan.csv").write_text("frobnicate\n1\n")
    for name, text in MAPPINGS.items():
        (folder / f"{name}.yaml").write_text(text)
    write_begun(folder, image_set, latent_set)
    flowing = "--set train.diffusion.prediction_type=flow_velocity --set sample.sampler=ddim"
    return {
        **{path.name: str(path) for path in folder.iterdir() if path.is_dir()},
        **{name: str(folder / name) for name in ("no", "new")},
        **{name: str(folder / f"{name}.yaml") for name in MAPPINGS},
        "images": image_set.url,
        "encoded": latent_set.url,
        "vae": str(vae_run),
        "plan": str(folder / "plan.csv"),
        "tiny": f"--config {write_config(folder / 'tiny.yaml')}",
        "flowing": flowing,
        "folder": str(folder),
    }


@pytest.mark.parametrize("case", REFUSED)
def test_a_dry_run_is_refused_as_the_run(
    case: str, places: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_joined", local_world)
    words = REFUSED[case].format_map(places).split()
    if words[0] in DEVICES:
        words += ["--device", "cpu"]
    before = hashes(Path(places["folder"]))
    dry = run_command([*words, "--dry-run"])
    said = capsys.readouterr().err
    assert hashes(Path(places["folder"])) == before
    real = run_command(words)
    assert (dry, last_error(said)) == (real, last_error(capsys.readouterr().err))
    assert dry in (2, 3, 4)
    shutil.rmtree(places["new"], ignore_errors=True)  # the demo claims its folder before it reads a mapping
    assert hashes(Path(places["folder"])) == before


def last_error(text: str) -> str:
    """Return what is said from the error on."""
    at = text.find("error (")
    assert at >= 0, text
    return text[at:]


def test_a_dry_run_that_would_run_ends_well_and_tells_what_it_found(
    places: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = {
        "prepare --source {clinic} --labels {clinic}/labels.csv --out {new}": "photographs to read",
        "train-vae --data {images} --run-dir {new} --device cpu": "96 samples",
        "inspect --data {images}": "96 samples",
        "sample --model {model} --out {new} --num-images 2 --device cpu": "2 images of",
    }
    for line, expected in lines.items():
        code = run_command([*line.format_map(places).split(), "--dry-run"])
        said = capsys.readouterr()
        assert code == 0, said.err
        assert expected in said.out
    assert not Path(places["new"]).exists()


OWN_SCHEMA = "- {name: glaucoma, num_values: 2, values: [absent, present]}\n"
OWN_MAPPING = "source: own\nfile: file\nlabels: {glaucoma: gc}\n"


@pytest.mark.parametrize(
    "line",
    [
        "demo --out {demo} --set demo.fit_to_machine=false",
        "demo {in_process} --out {own}/importer --source {own} --labels {own}/aptos.csv --importer aptos2019",
        "demo {in_process} --out {own}/schema --source {own} --labels {own}/own.csv --mapping {own}/own.yaml "
        "--set prepare.label_schema={own}/schema.yaml",
        "prepare --source {clinic} --labels {clinic}/labels.csv --out {prepared} --crosswalk {crosswalk} "
        "--image-size 64",
    ],
)
def test_a_dry_run_is_accepted_as_the_run(
    line: str,
    places: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "_joined", local_world)
    leave_out_stages(monkeypatch, *(["prepare"] if "--source" in line else []))
    own = tmp_path / "own"
    shutil.copytree(Path(places["clinic"]) / "clinic", own)
    (own / "aptos.csv").write_text("id_code,diagnosis\n000,2\n001,0\n")
    (own / "own.csv").write_text("file,gc\n000.jpg,present\n001.jpg,absent\n")
    (own / "own.yaml").write_text(OWN_MAPPING)
    (own / "schema.yaml").write_text(OWN_SCHEMA)
    in_process = "--set demo.fit_to_machine=false --set prepare.workers=0"
    words = line.format_map({**places, "own": str(own), "in_process": in_process}).split()
    dry = run_command([*words, "--dry-run"])
    shown = capsys.readouterr()
    assert (dry, run_command(words)) == (0, 0), shown.err + capsys.readouterr().err
    if words[0] == "prepare":
        assert f"{places['crosswalk']} (the crosswalk: keep it, never pass it on)" in shown.out
        assert "warning: the crosswalk" in shown.out, "it lies beside the set"
