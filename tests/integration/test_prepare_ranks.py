"""`prepare` at scale: ranks, kills, look-alikes, importers, object stores, lost workers."""

from __future__ import annotations

import csv
import io
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import lost_photographs
import numpy as np
import pytest
from dicom_files import photograph_file
from phantom_clinic import SECRET, config_of, keyed_crosswalk, picture, write_clinic, write_table
from PIL import Image
from rank_processes import run_cli, run_cli_killed_at
from written_text import write_text

from synfundus.config.schema import RunConfig
from synfundus.distributed.world import LocalWorld, World
from synfundus.errors import ConfigError, CorruptShard, DataError, StorageError
from synfundus.phantoms.draw import draw_phantom
from synfundus.photographs.ingest import PlannedSample
from synfundus.photographs.photograph_task import PhotographTask, PreparedPhotograph, prepare_photograph
from synfundus.photographs.preparation import Unusable
from synfundus.seeding import keyed_generator
from synfundus.stages import Summary
from synfundus.stages.prepare import chunks as preparation_chunks
from synfundus.stages.prepare import job as prepare
from synfundus.storage import filesystem
from synfundus.storage.manifest import load_shard_set
from synfundus.storage.tarshard import TarShardReader
from synfundus.telemetry.console import SilentConsole

T = TypeVar("T")


def run(config: RunConfig, world: World | None = None) -> Summary:
    return prepare.run(config, world or LocalWorld(), SilentConsole())


def all_bytes(url: Path | str) -> dict[str, bytes]:
    """Read a folder; the one file that says where its set lies is left out."""
    names = [name for name in filesystem.list_files(str(url)) if name != "owner.json"]
    return {name: filesystem.read_bytes(filesystem.join(str(url), name)) for name in names}


def lines(url: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in filesystem.read_bytes(str(url)).splitlines()]


@dataclass
class _Meeting:
    """What ranks that are threads share."""

    barrier: threading.Barrier
    values: list[Any]


@dataclass
class ThreadWorld:
    """A rank that is a thread: real collectives without the start of a process."""

    rank: int
    size: int
    meeting: _Meeting
    local_rank: int = 0
    local_size: int = 1
    device: Literal["cpu", "cuda"] = "cpu"

    def barrier(self) -> None:
        self.meeting.barrier.wait()

    def all_gather(self, value: T) -> list[T]:
        self.meeting.values[self.rank] = value
        self.barrier()
        values = list(self.meeting.values)
        self.barrier()
        return values

    def sum(self, values: Any) -> list[float]:
        return [float(sum(column)) for column in zip(*self.all_gather(list(values)), strict=True)]

    def any(self, flag: bool) -> bool:
        return any(self.all_gather(flag))

    def gather(self, vector: Any) -> Any:
        raise NotImplementedError("no tensors are gathered here")


def run_as_threads(config: RunConfig, size: int) -> list[Summary | BaseException]:
    """Run as ``size`` ranks; returns what each came to."""
    meeting = _Meeting(threading.Barrier(size, timeout=120), [None] * size)
    outcomes: list[Any] = [None] * size

    def one(rank: int) -> None:
        try:
            outcomes[rank] = run(config, ThreadWorld(rank, size, meeting))
        except Exception as error:  # noqa: BLE001 - the test looks at it
            outcomes[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "in"
    write_clinic(folder, 40)
    return folder


@pytest.fixture(scope="module")
def whole(clinic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of the clinic, without workers and without a kill."""
    folder = tmp_path_factory.mktemp("whole")
    run(config_of(clinic, folder / "set", keyed_crosswalk(folder / "names")))
    assert len(list((folder / "set").rglob("*.tar"))) >= 6
    return folder


@pytest.mark.parametrize(("ranks", "workers"), [(2, 0), (3, 0), (1, 2)])
def test_ranks_and_processes_do_not_show_in_the_bytes(
    clinic: Path, whole: Path, tmp_path: Path, ranks: int, workers: int
) -> None:
    config = config_of(clinic, tmp_path / "set", keyed_crosswalk(tmp_path / "names"), workers=workers)
    outcomes = run_as_threads(config, ranks)
    assert all(isinstance(outcome, dict) for outcome in outcomes), outcomes
    assert all_bytes(tmp_path / "set") == all_bytes(whole / "set")
    assert all_bytes(tmp_path / "names") == all_bytes(whole / "names")


def command(clinic: Path, folder: Path, *more: str) -> list[str]:
    return [
        *("prepare", "--source", str(clinic), "--labels", str(clinic / "labels.csv"), "--out", str(folder / "set")),
        *("--crosswalk", str(folder / "names"), "--image-size", "64", "--set", "prepare.shard_max_samples=8", *more),
    ]


def test_two_processes_of_a_job_write_the_same_set(clinic: Path, whole: Path, tmp_path: Path) -> None:
    keyed_crosswalk(tmp_path / "names")
    run_cli(*command(clinic, tmp_path, "--procs-per-node", "2", "--workers", "1")).check()
    assert all_bytes(tmp_path / "set") == all_bytes(whole / "set")
    assert all_bytes(tmp_path / "names") == all_bytes(whole / "names")


def test_a_dry_run_counts_and_writes_nothing(clinic: Path, tmp_path: Path) -> None:
    text = run_cli(*command(clinic, tmp_path, "--dry-run")).check().output
    assert "43 inputs, 42 of them photographs to read, of 22 patients" in text
    assert "rejects so far: 1 missing_file" in text
    assert list(tmp_path.iterdir()) == []


def test_a_fault_of_rank_0_reaches_every_rank(clinic: Path, tmp_path: Path) -> None:
    config = config_of(clinic, tmp_path / "set", tmp_path / "names", labels=str(tmp_path / "none.csv"))
    outcomes = run_as_threads(config, 3)
    assert all(isinstance(outcome, ConfigError) for outcome in outcomes), outcomes


KILLS = (
    "after:chunks/000002.done",
    "write:shards/train-000001.done",
    "write:work/request.json",
    "write:chunks/000001.plan",
    "write:chunks/000001.thumbnails",
    "write:chunks/000003.done",
    "after:look_alikes.jsonl",
    "write:shards/val-000000.plan",
    "after:shards/train-000002.done",
    "write:names/crosswalk.csv",
    "write:set/rejects.jsonl",
    "write:set/manifest.json",
    "after:set/manifest.json",
)


@pytest.mark.parametrize(
    ("points", "workers"), [(KILLS[:2], "0"), pytest.param(KILLS, "2", marks=pytest.mark.slow)], ids=["short", "all"]
)
def test_a_run_killed_in_any_stage_goes_on_to_the_same_bytes(
    clinic: Path,
    whole: Path,
    tmp_path: Path,
    points: tuple[str, ...],
    workers: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    passed = 0
    for number, point in enumerate(points):
        folder = tmp_path / str(number)
        keyed_crosswalk(folder / "names")
        line = command(clinic, folder, "--workers", workers)
        run_cli_killed_at(point, *line)
        ended = run_cli(*line)
        same = all_bytes(folder / "set") == all_bytes(whole / "set")
        passed += ended.returncode == 0 and same and all_bytes(folder / "names") == all_bytes(whole / "names")
    if len(points) == len(KILLS):
        with capsys.disabled():
            print("\n" + json.dumps({"name": "prepare_kills", "passed": passed, "of": len(points)}))
    assert passed == len(points)


def test_an_image_damaged_on_the_way_is_noticed_and_prepared_again(clinic: Path, whole: Path, tmp_path: Path) -> None:
    config = config_of(clinic, tmp_path / "set", keyed_crosswalk(tmp_path / "names"))
    chunks = tmp_path / "names" / "work" / "chunks"

    class Damage(SilentConsole):
        """Damages a chunk when the shards are about to be written."""

        def progress(self, description: str, **options: Any) -> Any:
            if description == "writing shards":
                tar = chunks / "000001.tar"
                _, (offset, size, _) = json.loads((chunks / "000001.done.json").read_text())["looked_at"][3]["spans"]
                data = bytearray(tar.read_bytes())
                data[offset + size // 2] ^= 1
                tar.write_bytes(data)
            return super().progress(description, **options)

    with pytest.raises(DataError, match="does not match its checksum"):
        prepare.run(config, LocalWorld(), Damage())
    assert not (chunks / "000001.done.json").exists()
    run(config)
    assert all_bytes(tmp_path / "set") == all_bytes(whole / "set")


def test_shards_of_an_earlier_plan_are_written_again(
    clinic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk that comes out differently the second time (a worker died over a photograph) changes the shards."""
    config = config_of(clinic, tmp_path / "set", keyed_crosswalk(tmp_path / "names"))

    def stop(*_: Any) -> None:
        raise StorageError("the machine went down")

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "finished_entries", stop)
        with pytest.raises(StorageError, match="went down"):
            run(config)
    for path in (tmp_path / "names" / "work" / "chunks").glob("*.done.json"):
        path.unlink()
    real = prepare_photograph

    def without_some(task: PhotographTask) -> PreparedPhotograph | Unusable:
        if task.sample.source.endswith(("1.jpg", "3.jpg", "5.jpg", "6.jpg", "8.jpg")):
            return Unusable(task.sample, "work", "killed_the_worker", "twice")
        return real(task)

    monkeypatch.setattr(preparation_chunks, "prepare_photograph", without_some)
    run(config)
    run(config_of(clinic, tmp_path / "fresh", keyed_crosswalk(tmp_path / "fresh-names")))
    assert all_bytes(tmp_path / "set") == all_bytes(tmp_path / "fresh")


def jpeg(image: Image.Image, quality: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def copies_of(image: Image.Image) -> dict[str, Image.Image]:
    """Return the ways in which a photograph comes again."""
    pixels = np.asarray(image)
    moved = np.roll(np.pad(pixels, ((2, 2), (2, 2), (0, 0))), (1, -2), axis=(0, 1))
    return {
        "smaller": image.resize((150, 150), Image.Resampling.LANCZOS),
        "moved": Image.fromarray(moved),
        "brighter": Image.fromarray(np.clip(pixels * 1.08, 0, 255).astype(np.uint8)),
        "mirrored": Image.fromarray(np.ascontiguousarray(pixels[:, ::-1])),
    }


def test_look_alikes_of_other_patients_are_kept_together_and_reported(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    rows = write_clinic(folder, 24, size=200)
    (folder / "again").mkdir()
    planted = {}
    for index, (name, image) in enumerate(copies_of(picture(6, 200)).items()):
        (folder / "again" / f"{name}.jpg").write_bytes(jpeg(image, 70))
        rows.append({"file": f"again/{name}.jpg", "patient_id": f"X{index}"})
        planted[f"again/{name}.jpg"] = f"X{index}"
    for index in range(12):  # more photographs of the strangers, which have to come along
        picture(100 + index, 200).save(folder / "again" / f"{index}.png")
        rows.append({"file": f"again/{index}.png", "patient_id": f"X{index % 4}"})
    write_table(folder, rows)
    summary = run(config_of(folder, tmp_path / "set", tmp_path / "names", splits=(0.4, 0.3, 0.3)))
    with (tmp_path / "names" / "crosswalk.csv").open(newline="") as stream:
        crosswalk = list(csv.DictReader(stream))
    splits: dict[str, set[str]] = {}
    for row in crosswalk:
        if not row["reason"]:
            family = "X" if row["patient_id"] in {"P3", *planted.values()} else row["patient_id"]
            splits.setdefault(family, set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert len(set().union(*splits.values())) == 3
    found = lines(tmp_path / "names" / "look_alikes.jsonl")
    assert {row["source"] for row in found} | {row["other_source"] for row in found} == {*planted, "clinic/006.jpg"}
    assert summary["look_alikes"]["groups"] == summary["look_alikes"]["groups_across_patients"] == 1
    assert summary["look_alikes"]["photographs"] == 5
    manifest = (tmp_path / "set" / "manifest.json").read_text()
    assert "again/" not in manifest
    assert "P3" not in manifest


def test_a_set_is_compared_with_one_that_was_made_before(clinic: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    picture(4).save(folder / "known.png")  # the clinic has it as a JPEG
    picture(200).save(folder / "new.png")
    write_table(folder, [{"file": "known.png", "patient_id": "A"}, {"file": "new.png", "patient_id": "B"}])
    summary = run(config_of(folder, tmp_path / "set", tmp_path / "names", compare_with=[str(whole / "names")]))
    assert summary["look_alikes"]["in_other_sets"] == 1
    (row,) = lines(tmp_path / "names" / "look_alikes.jsonl")
    assert (row["kind"], row["source"], row["mirrored"]) == ("elsewhere", "known.png", False)
    with (whole / "names" / "crosswalk.csv").open(newline="") as stream:
        sources = {line["key"]: line["source"] for line in csv.DictReader(stream)}
    assert sources[row["other_key"]] == "clinic/004.jpg"
    with (tmp_path / "names" / "crosswalk.csv").open(newline="") as stream:
        assert {row["source"]: row["split"] for row in csv.DictReader(stream)}["known.png"] == row["other_split"]
    with pytest.raises(ConfigError, match="perceptual hashes of a set"):
        run(config_of(folder, tmp_path / "set2", tmp_path / "names2", compare_with=[str(clinic)]))


def test_photographs_of_another_set_go_into_the_split_they_have_there(tmp_path: Path) -> None:
    write_clinic(tmp_path / "first", 30)
    run(config_of(tmp_path / "first", tmp_path / "a", tmp_path / "a-names", splits=(0.4, 0.3, 0.3)))
    folder = tmp_path / "second"
    folder.mkdir()
    rows = []
    for index in range(40):  # the first thirty are known there; every second patient has one of them and a new one
        picture(index if index < 30 else 200 + index).save(folder / f"{index}.png")
        rows.append({"file": f"{index}.png", "patient_id": f"N{index % 20}"})
    write_table(folder, rows)
    options = {"compare_with": [str(tmp_path / "a-names")], "splits": (0.4, 0.3, 0.3)}
    summary = run(config_of(folder, tmp_path / "b", tmp_path / "b-names", **options))
    assert summary["look_alikes"]["in_other_sets"] == 29, "number 28 is a blurred disc with nothing to recognise it by"
    there: dict[str, dict[str, str]] = {}
    here: dict[str, dict[str, str]] = {}
    for name, found in (("a-names", there), ("b-names", here)):
        with (tmp_path / name / "crosswalk.csv").open(newline="") as stream:
            found.update({row["key"]: row for row in csv.DictReader(stream)})
    patients: dict[str, set[str]] = {}
    for row in here.values():
        patients.setdefault(row["patient_id"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in patients.values())
    pairs = lines(tmp_path / "b-names" / "look_alikes.jsonl")
    assert all(pair["other_split"] == there[pair["other_key"]]["split"] for pair in pairs)
    torn = {pair["key"] for pair in pairs if pair["split"] != pair["other_split"]}
    assert len(torn) == summary["look_alikes"]["in_another_split_there"]
    wishes: dict[str, set[str]] = {}
    for pair in pairs:
        wishes.setdefault(pair["patient_id"], set()).add(pair["other_split"])
    assert {here[key]["patient_id"] for key in torn} == {who for who, wish in wishes.items() if len(wish) > 1}
    assert sum(len(wish) == 1 for wish in wishes.values()) >= 10


def test_a_crosswalk_of_another_set_is_refused_and_stays_as_it_is(clinic: Path, tmp_path: Path) -> None:
    names = tmp_path / "names"
    names.mkdir(mode=0o750)
    run(config_of(clinic, tmp_path / "a", names))
    assert names.stat().st_mode & 0o777 == 0o750, "a folder that is there keeps its rights"
    before = {path.name: path.read_bytes() for path in names.iterdir()}
    with pytest.raises(DataError, match=r"belongs to the set .*/a, not to .*/b"):
        run(config_of(clinic, tmp_path / "b", names))
    assert {path.name: path.read_bytes() for path in names.iterdir()} == before
    (tmp_path / "a").rename(tmp_path / "moved")
    with pytest.raises(DataError, match="belongs to the set"):
        run(config_of(clinic, tmp_path / "b", names))
    assert run(config_of(clinic, tmp_path / "moved", names))["num_samples"] > 0


def test_what_the_store_has_in_another_form_is_a_named_reject(
    clinic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[[str], bytes] = filesystem.read_bytes

    def failing(url: str) -> bytes:
        if url.endswith("007.jpg"):
            raise CorruptShard("the object does not match its hash after 3 readings", where=url)
        return real(url)

    monkeypatch.setattr(filesystem, "read_bytes", failing)
    assert run(config_of(clinic, tmp_path / "set", tmp_path / "names"))["rejects"]["damaged_in_store"] == 1


def test_blanks_of_other_scripts_are_read_from_a_store(tmp_path: Path, s3_bucket: str) -> None:
    rows = []
    for index, name in enumerate(("a\u3000b.png", "c\u00a0d.png", "e\u202fPM.png", "ä.png")):
        stream = io.BytesIO()
        picture(index).save(stream, "PNG")
        filesystem.write_bytes(f"{s3_bucket}/in/{name}", stream.getvalue())
        rows.append({"file": name, "patient_id": f"P{index}"})
    write_table(tmp_path, rows)
    filesystem.write_bytes(f"{s3_bucket}/in/labels.csv", (tmp_path / "labels.csv").read_bytes())
    assert run(config_of(f"{s3_bucket}/in", tmp_path / "set", tmp_path / "names"))["num_samples"] == 4


def test_a_name_that_no_store_takes_is_a_named_reject() -> None:
    sample = PlannedSample("key", "f\x07g.png", "P", {}, 100)
    task = PhotographTask(sample, "s3://bucket/in", 64, "png", 10**6, "x", "off")
    lost = prepare_photograph(task)
    assert isinstance(lost, Unusable)
    assert (lost.stage, lost.reason) == ("files", "unsafe_name")


def test_everything_may_lie_in_an_object_store(clinic: Path, whole: Path, tmp_path: Path, s3_bucket: str) -> None:
    names = f"{s3_bucket}/names"
    filesystem.upload_folder(clinic, f"{s3_bucket}/in")
    filesystem.write_bytes(f"{names}/secret.key", SECRET.encode())
    config = config_of(f"{s3_bucket}/in", f"{s3_bucket}/set", names, workers=2)
    run(config)
    assert all_bytes(f"{s3_bucket}/set") == all_bytes(whole / "set")
    assert all_bytes(names) == all_bytes(whole / "names")
    # and it can be compared with, from a store to a disk
    compared = config_of(clinic, tmp_path / "set", tmp_path / "names", compare_with=[names])
    assert (
        run(compared)["look_alikes"]["in_other_sets"] == load_shard_set(f"{s3_bucket}/set", kind="images").num_samples()
    )


def test_an_importer_reads_the_table_and_counts_are_recorded(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(6):
        picture(index).save(folder / f"{index:06x}.png")
    table = "".join(f"{index:06x},{index % 3}\n" for index in range(6))
    (folder / "labels.csv").write_text("id_code,diagnosis\n" + table)
    config = config_of(folder, tmp_path / "set", tmp_path / "names", importer="aptos2019")
    run(config)
    properties = load_shard_set(str(tmp_path / "set"), kind="images").properties
    assert properties["importer"] == "aptos2019"
    counts = properties["label_counts"]["values"]
    assert counts["dr_grade"] == {"0": 2, "1": 2, "2": 2, "3": 0, "4": 0, "unknown": 0}
    assert counts["is_gc"]["unknown"] == 6
    with pytest.raises(ConfigError, match="both define the columns"):
        run(RunConfig(prepare=config.prepare.model_copy(update={"mapping": "m.yaml"})))
    with pytest.raises(ConfigError, match="none is given"):
        run(RunConfig(prepare=config.prepare.model_copy(update={"labels": None, "out": str(tmp_path / "b")})))


def test_a_set_without_a_table_needs_none(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for index, name in enumerate(("g0001.jpg", "n0001.jpg", "n0002.jpg")):
        picture(index).save(folder / name)
    config = config_of(folder, tmp_path / "set", tmp_path / "names", importer="refuge", labels=None)
    summary = run(config)
    assert summary["num_samples"] == 3
    counts = load_shard_set(str(tmp_path / "set"), kind="images").properties["label_counts"]["values"]["is_gc"]
    assert (counts["1"], counts["0"]) == (1, 2)


@pytest.mark.parametrize(
    ("name", "limit_s", "reason"), [("killer", 600.0, "killed_the_worker"), ("sleeper", 4.0, "took_too_long")]
)
def test_a_photograph_that_takes_its_worker_down_is_a_named_reject(
    clinic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, limit_s: float, reason: str
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    rows = []
    for index in range(6):
        file = f"{name if index == 2 else index}.png"
        picture(index).save(folder / file)
        rows.append({"file": file, "patient_id": "DOE"})
    write_table(folder, rows)
    monkeypatch.setattr(preparation_chunks, "prepare_photograph", lost_photographs.prepare_or_die)
    said: list[str] = []

    class Listening(SilentConsole):
        def warning(self, text: str) -> None:
            said.append(text)

    config = config_of(folder, tmp_path / "set", tmp_path / "names", workers=2, photograph_limit_s=limit_s)
    summary = prepare.run(config, LocalWorld(), Listening())
    assert summary["rejects"] == {reason: 1}
    assert summary["num_samples"] == 5
    (reject,) = lines(tmp_path / "names" / "rejects.jsonl")
    assert (reject["source"], reject["patient"], reject["stage"]) == (f"{name}.png", "DOE", "work")
    assert len([text for text in said if reason in text and reject["key"] in text]) == 1
    for text in said:
        assert name not in text.replace(reason, "")
        assert "DOE" not in text


def test_no_name_of_a_file_is_in_an_error_of_the_store(
    clinic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[[str], bytes] = filesystem.read_bytes

    def failing(url: str) -> bytes:
        if url.endswith("007.jpg"):
            raise StorageError("cannot read: Input/output error", where=url)
        return real(url)

    monkeypatch.setattr(filesystem, "read_bytes", failing)
    with pytest.raises(StorageError) as caught:
        run(config_of(clinic, tmp_path / "set", tmp_path / "names"))
    assert "007" not in str(caught.value).replace(str(tmp_path), "")


def test_a_flag_is_counted_in_the_set_and_named_outside_it(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    phantom = draw_phantom(seed=31, index=1, image_size_px=512)
    written = write_text(phantom.pixels, phantom.truth, keyed_generator(2, "flag"), place="disc", sizes_px=(26, 33))
    Image.fromarray(written.pixels).save(folder / "written.png")
    picture(2, 512).save(folder / "plain.png")
    write_table(folder, [{"file": f"{name}.png", "patient_id": name} for name in ("written", "plain")])
    summary = run(config_of(folder, tmp_path / "set", tmp_path / "names"))
    assert summary["num_samples"] == 2
    assert load_shard_set(str(tmp_path / "set"), kind="images").properties["flags"] == {"text_in_image": 1}
    (flagged,) = lines(tmp_path / "names" / "flags.jsonl")
    assert (flagged["source"], flagged["flags"]) == ("written.png", ["text_in_image"])
    summary = run(config_of(folder, tmp_path / "strict", tmp_path / "strict-names", burned_text="quarantine"))
    assert (summary["num_samples"], summary["rejects"]) == (1, {"text_in_image": 1})


def test_a_dicom_file_says_which_eye_where_the_table_does_not(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for index, side in enumerate(("L", "R", "L")):
        data = photograph_file(np.asarray(picture(index)), ImageLaterality=side)
        (folder / f"{index}.dcm").write_bytes(data)
    rows = [{"file": f"{index}.dcm", "patient_id": str(index)} for index in range(3)]
    write_table(folder, [*rows[:2], {**rows[2], "eye_side": "0"}])  # the table has the last word
    run(config_of(folder, tmp_path / "set", tmp_path / "names"))
    shard_set = load_shard_set(str(tmp_path / "set"), kind="images")
    assert shard_set.properties["label_counts"]["values"]["eye_side"] == {"0": 2, "1": 1, "unknown": 0}
    sides = {}
    for shard in shard_set.shards:
        reader = TarShardReader(shard_set.shard_url(shard), index_sha256=shard.index_sha256)
        for number in range(len(reader)):
            document = json.loads(reader.read(number)["json"])
            sides[reader.index.key(number)] = (document["labels"]["eye_side"], document["eye_side"])
        reader.close()
    with (tmp_path / "names" / "crosswalk.csv").open(newline="") as stream:
        found = {row["source"]: sides[row["key"]] for row in csv.DictReader(stream)}
    assert found == {"0.dcm": (1, 1), "1.dcm": (0, 0), "2.dcm": (0, 0)}
