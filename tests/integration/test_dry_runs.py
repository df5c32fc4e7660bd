"""A dry run ends with the code and the words of the run, and writes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from phantom_clinic import write_clinic
from tiny_pipeline import write_tiny_pipeline
from tiny_sets import hashes, write_numbered_set

from synfundus.cli import run
from synfundus.cli.app import run_command
from synfundus.cli.request import Request
from synfundus.distributed.world import LocalWorld, World
from synfundus.storage.manifest import ShardSet

MAPPINGS = {
    "unknown_key": "columns: {file: file}\nfrobnicate: 1\n",
    "wrong_column": "source: x\ncolumns: {file: file, patient_id: nobody}\n",
}
DEVICES = ("train-vae", "encode-latents", "verify-latents", "train", "sample")
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
    "sample, no model": "sample --model {strange} --out {new} --num-images 1",
    "sample, an unknown label": "sample --model {model} --out {new} --num-images 1 --label frobnicate=1",
    "sample, a broken plan": "sample --model {model} --out {new} --labels {plan}",
    "sample, a stranger's folder": "sample --model {model} --out {strange} --num-images 1",
    "ema, no snapshots": "ema --run-dir {strange} --sigma-rel 0.1",
    "export, no model": "export --run-dir {strange} --out {new}",
    "export, a stranger's folder": "export --run-dir {model} --out {strange}",
}


@pytest.fixture(scope="module")
def places(image_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("places")
    write_clinic(folder / "clinic", 4)
    write_numbered_set(folder / "latents", [3])
    write_tiny_pipeline(folder / "model")
    for name in ("strange", "empty", "report"):
        (folder / name).mkdir()
    (folder / "strange" / "thesis.txt").write_text("years of work")
    (folder / "report" / "inspect.json").write_text("{}")
    (folder / "plan.csv").write_text("frobnicate\n1\n")
    for name, text in MAPPINGS.items():
        (folder / f"{name}.yaml").write_text(text)
    names = ("clinic", "latents", "model", "strange", "empty", "report", "no", "new")
    files = {name: str(folder / f"{name}.yaml") for name in MAPPINGS}
    return {
        **{name: str(folder / name) for name in names},
        **files,
        "images": image_set.url,
        "plan": str(folder / "plan.csv"),
        "folder": str(folder),
    }


@contextmanager
def local_world(request: Request) -> Iterator[World]:
    """A world without a process group."""
    del request
    yield LocalWorld()


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
