"""`plan-labels` from sets and tables, what `prepare` counts for it, and what `sample` does with the plan."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phantom_clinic import config_of, write_clinic
from tiny_pipeline import SCHEMA, write_tiny_pipeline
from tiny_runs import Talk
from tiny_sets import numbered_samples, tiny_config, write_numbered_set, write_phantom_set, write_set

from synfundus.artifacts.latent_set import trained_on
from synfundus.cli.app import run_command
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import LocalWorld, World
from synfundus.errors import ConfigError, DataError
from synfundus.labels.plan import read_plan
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA
from synfundus.labels.seen import LABEL_ROWS, SeenRows
from synfundus.shards.label_reading import read_label_states
from synfundus.stages.encode_latents import job as encode_latents
from synfundus.stages.plan_labels import job as plan_labels
from synfundus.stages.plan_labels.verb import VERB
from synfundus.stages.prepare import job as prepare
from synfundus.stages.rehearsal import rehearse_sampling
from synfundus.stages.sample import job as sample
from synfundus.storage.manifest import ShardSet, load_shard_set
from synfundus.storage.tarshard import TarShardReader
from synfundus.telemetry.console import SilentConsole


@pytest.fixture(scope="module")
def clinic(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared and encoded clinic, two photographs a patient, and a model."""
    root = tmp_path_factory.mktemp("clinic")
    write_clinic(root / "in", 12)
    prepare.run(config_of(root / "in", root / "images", root / "names"), world, SilentConsole())
    write_tiny_pipeline(root / "model" / "export", image_size_px=32, schema=DEFAULT_LABEL_SCHEMA)
    encode = {"data": str(root / "images"), "vae": str(root / "model"), "out": str(root / "latents")}
    encode_latents.run(tiny_config({"encode_latents": encode}), world, SilentConsole())
    return root


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """A set of an earlier version: no label states in its indices, no patients counted."""
    return write_phantom_set(tmp_path_factory.mktemp("phantoms") / "set")


def plan(source: object, out: Path, **options: Any) -> tuple[dict[str, Any], Talk]:
    console = Talk()
    section = {"source": str(source), "out": str(out), **options}
    return plan_labels.run(tiny_config({"plan_labels": section}), LocalWorld(), console), console


def drawn(config: RunConfig) -> None:
    sample.run(config, LocalWorld(), SilentConsole())


def refused(source: object, out: Path, **options: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        plan(source, out, **options)
    return caught.value


def rows_in(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_prepare_counts_the_patients_of_the_train_split_by_label_row(clinic: Path) -> None:
    images = load_shard_set(str(clinic / "images"), kind="images")
    patient = {row["key"]: row["patient_id"] for row in rows_in(clinic / "names" / "crosswalk.csv") if row["key"]}
    readers = [
        TarShardReader(images.shard_url(entry), index_sha256=entry.index_sha256)
        for entry in images.split_shards("train")
    ]
    keys = [key for reader in readers for key in reader.index.keys]
    states = read_label_states(images, splits=("train",))
    expected = SeenRows.of(states, [patient[key] for key in keys])
    counted = SeenRows.of_document(images.properties[LABEL_ROWS], len(images.label_schema.labels))
    assert counted.states.tolist() == expected.states.tolist()
    assert counted.patients.tolist() == expected.patients.tolist()
    assert np.allclose(counted.shares, expected.shares)
    assert counted.shares.sum() == pytest.approx(images.properties["num_patients"]["train"])
    assert counted.patients.sum() > images.properties["num_patients"]["train"], "two rows each"


def test_latents_and_a_model_know_what_nobody_has(clinic: Path) -> None:
    images, latents = (load_shard_set(str(clinic / name), kind=name) for name in ("images", "latents"))
    assert latents.properties["photographs"][LABEL_ROWS] == images.properties[LABEL_ROWS]
    grades = read_label_states(images, splits=("train",))[:, 0]
    never = trained_on(latents)["never"]
    assert never["values"].get("dr_grade", []) == [grade for grade in range(5) if grade + 1 not in grades]
    assert never["values"]["is_gc"] == [0, 1], "known of none"
    earlier = {name: value for name, value in latents.properties["photographs"].items() if name != LABEL_ROWS}
    without = ShardSet("set", "latents", latents.label_schema, (), properties={"photographs": earlier})
    assert "never" not in trained_on(without)


def test_mirrored_photographs_show_the_other_eye() -> None:
    schema, side = DEFAULT_LABEL_SCHEMA, DEFAULT_LABEL_SCHEMA.names.index("eye_side")
    states = np.full((3, len(schema.labels)), 1, dtype=np.int16)
    told = {"source": "a", "num_patients": {"train": 3}, "values": {}, "drawn": False}
    photographs = {**told, LABEL_ROWS: SeenRows.of(states).to_document()}
    latents = ShardSet("set", "latents", schema, (), properties={"photographs": photographs})
    assert states[0, side] == 1
    assert "eye_side" in trained_on(latents)["never"]["values"]
    assert "eye_side" not in trained_on(latents, flip=True)["never"]["values"]


@pytest.mark.parametrize("kind", ["images", "latents"])
def test_a_plan_from_a_set_is_marked_shown_and_the_same_again(clinic: Path, tmp_path: Path, kind: str) -> None:
    summary, console = plan(clinic / kind, tmp_path / "plan.csv", num_images=50)
    assert summary["num_images"] == sum(summary["seen"].values()) == len(rows_in(tmp_path / "plan.csv")) == 50
    assert summary["seen"]["few"] == 50, "nobody's labels are those of 20 patients"
    assert {row["seen"] for row in rows_in(tmp_path / "plan.csv")} == {"few"}
    data = (tmp_path / "plan.csv").read_bytes()
    plan(clinic / kind, tmp_path / "plan.csv", num_images=50)
    assert (tmp_path / "plan.csv").read_bytes() == data
    assert not any("photographs are counted" in line for line in console.lines)


def test_a_dry_run_shows_the_tables_and_writes_nothing(
    clinic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan.csv"
    command = ["plan-labels", "--from", str(clinic / "images"), "--fill-to", "9", "--balance", "dr_grade"]
    command += ["--out", str(out)]
    assert run_command([*command, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert not out.exists()
    assert run_command(command) == 0
    said = capsys.readouterr().err
    grades = [line for line in said.splitlines() if line.strip().startswith("dr_grade  ")]
    assert len(grades) == 6
    for line in (line for line in grades if "unknown" not in line and not line.rstrip().endswith(" 0")):
        assert int(line.split()[-1]) >= 9, "real and planned together"
    for line in (*grades, f"next: synfundus sample --model MODEL --labels {out} --out SAMPLES"):
        assert line.startswith("next:") or line in shown
        assert line in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"joint": True, "independent": True, "num_images": 5}, "--joint and --independent"),
        ({"fill_to": 5, "num_images": 5}, "leave --num-images out"),
        ({"fill_to": 5, "independent": True}, "leave --independent out"),
        ({"balance": ["dr_grade"]}, "--num-images is missing"),
        ({"balance": ["is_fundus"], "unreadable": 0.1, "num_images": 5}, "leave one out"),
    ],
)
def test_contradictions_are_refused(given: dict[str, Any], said: str) -> None:
    section = tiny_config({"plan_labels": given}).plan_labels
    assert VERB.problems is not None
    (problem,) = VERB.problems(section, False)
    assert said in problem


def test_a_set_of_an_earlier_version_counts_photographs(phantoms: ShardSet, tmp_path: Path) -> None:
    summary, console = plan(phantoms.url, tmp_path / "plan.csv", num_images=200, where={"eye_side": "left"})
    assert any("photographs are counted instead" in line for line in console.lines)
    assert summary["seen"]["never"] == summary["seen"]["never_together"] == 0
    read = read_plan((tmp_path / "plan.csv").read_bytes(), phantoms.label_schema, where="plan.csv")
    side = phantoms.label_schema.names.index("eye_side")
    assert set(read.states[:, side].tolist()) == {2}


def test_rows_written_by_hand_are_marked_and_refused_by_sample(
    clinic: Path, phantoms: ShardSet, tmp_path: Path
) -> None:
    mine, out = tmp_path / "mine.csv", tmp_path / "plan.csv"
    states = read_label_states(phantoms, splits=("train",))
    common = int(np.bincount(states[:, 0])[1:].argmax())
    mine.write_text(f"name,dr_grade,is_em,is_rvo\na,{common},,\nb,0,1,1\nc,,,\n")
    summary, console = plan(mine, out, seen_in=phantoms.url)
    assert any("not read: name" in line for line in console.lines)
    assert [row["dr_grade"] for row in rows_in(out)] == [str(common), "0", ""], "in their order"
    marks = [row["seen"] for row in rows_in(out)]
    assert marks[0] == marks[2] == "yes"
    assert marks[1] in ("never", "never_together")
    assert summary["seen"][marks[1]] == 1
    section = {"model": str(clinic / "model"), "out": str(tmp_path / "samples"), "labels": str(out), "num_steps": 1}
    for refuse in (drawn, lambda given: rehearse_sampling(given.sample)):
        with pytest.raises(ConfigError, match=r"1 of 3 images .* row 3: dr_grade=0, is_em=1, is_rvo=1") as caught:
            refuse(tiny_config({"sample": section}))
        assert caught.value.hint.startswith("take such rows out, or give --allow-unseen")
    assert not (tmp_path / "samples").exists()
    taken = [line for line in out.read_text().splitlines() if "never" not in line]
    (tmp_path / "taken.csv").write_text("\n".join(taken) + "\n")
    rehearse_sampling(tiny_config({"sample": {**section, "labels": str(tmp_path / "taken.csv")}}).sample)
    console = Talk()
    sample.run(tiny_config({"sample": {**section, "allow_unseen": True}}), LocalWorld(), console)
    assert any("row 3" in line and "is a guess" in line for line in console.lines)
    assert len(rows_in(tmp_path / "samples" / "metadata.csv")) == 3


def test_a_table_with_patients_is_compared_with_itself_and_one_without_is_not_marked(tmp_path: Path) -> None:
    rows = [f"P{one // 2},{one % 2},1" for one in range(40)] + [f"Q{one // 3},1,0" for one in range(57)]
    table, out = tmp_path / "labels.csv", tmp_path / "plan.csv"
    table.write_text("\n".join(["patient_id,is_gc,eye_side", *rows]))
    summary, _ = plan(table, out, num_images=970)
    read = read_plan(out.read_bytes(), DEFAULT_LABEL_SCHEMA, where="plan.csv")
    marks = {(row["is_gc"], row["eye_side"]): row["seen"] for row in rows_in(out)}
    assert marks == {("0", "1"): "yes", ("1", "1"): "yes", ("1", "0"): "few"}, "19 patients with three photographs each"
    assert summary["seen"]["few"] == 570 == np.isin(read.index, [read.marks.index("few")]).sum()
    table.write_text("is_gc,eye_side\n1,0\n")
    summary, console = plan(table, tmp_path / "unmarked.csv")
    assert summary["seen"] == {}
    assert any("Give --seen-in SET" in line for line in console.lines)
    assert "seen" not in rows_in(tmp_path / "unmarked.csv")[0]


def test_what_the_refusals_say_is_true(clinic: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "plan.csv", tmp_path / "other.csv"
    other.write_text("is_gc\n1\n")
    assert refused(clinic / "images", other, num_images=3).hint == "give another --out"
    assert refused(clinic / "images", out).hint == "give --num-images, or --fill-to"
    assert plan(clinic / "images", out, num_images=3)[0]["num_images"] == 3
    assert refused(clinic / "images", out, num_images=3, where={"is_gc": 1}).hint == "give another --where"
    assert refused(clinic / "images", out, num_images=3, where={"dr_grade": 7}).hint == "give another --where"
    assert plan(clinic / "images", out, num_images=3, where={"is_gc": None})[0]["num_images"] == 3
    assert refused(clinic / "images", out, fill_to=1).hint == "give a larger --fill-to, or --num-images"
    assert plan(clinic / "images", out, fill_to=20)[0]["num_images"] > 0
    numbered = write_numbered_set(tmp_path / "numbered", [3])
    assert plan(numbered.url, out, num_images=2)[0]["num_images"] == 2, "nothing is known of these"
    with pytest.raises(DataError, match=r"no shard set|there is no"):
        plan(tmp_path, out, num_images=2)


def test_generated_images_are_no_training_set(clinic: Path, tmp_path: Path) -> None:
    section = {"model": str(clinic / "model"), "out": str(tmp_path / "samples"), "num_images": 2, "num_steps": 1}
    sample.run(tiny_config({"sample": {**section, "format": "shards"}}), LocalWorld(), SilentConsole())
    error = refused(tmp_path / "samples", tmp_path / "plan.csv", num_images=2)
    assert error.hint == "give the image or latent set that the model was trained on"
    assert plan(clinic / "latents", tmp_path / "plan.csv", num_images=2)[0]["num_images"] == 2


def test_sets_of_other_labels_are_not_compared(clinic: Path, tmp_path: Path) -> None:
    extensions = ("json", "moments.npy")
    other = write_set(
        *(tmp_path / "other", numbered_samples(3)),
        shards={"train": (3,)},
        extensions=extensions,
        kind="latents",
        schema=SCHEMA,
    )
    error = refused(clinic / "images", tmp_path / "plan.csv", num_images=2, seen_in=other.url)
    assert "have other labels" in error.message
    assert error.hint == "leave --seen-in out, or give the set of the training"
    assert plan(clinic / "images", tmp_path / "plan.csv", num_images=2, seen_in=str(clinic / "latents"))[0]["seen"]
