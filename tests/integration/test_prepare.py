from __future__ import annotations

import csv
import gc
import io
import json
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from photographs import photograph, retina
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tiny_runs import Talk

from synfundus.config.schema import RunConfig
from synfundus.distributed.world import LocalWorld
from synfundus.errors import ConfigError, DataError
from synfundus.phantoms.draw import LABEL_NAMES, draw_phantom
from synfundus.stages import Summary
from synfundus.stages.prepare import job as prepare
from synfundus.stages.prepare import shards as preparation_shards
from synfundus.storage.manifest import ShardSet, load_shard_set
from synfundus.storage.tarshard import TarShardReader, write_shard
from synfundus.telemetry.console import SilentConsole

SIZE = 64
Row = dict[str, str]


def phantom_image(index: int) -> Image.Image:
    return Image.fromarray(draw_phantom(seed=11, index=index, image_size_px=96).pixels)


def bomb() -> bytes:
    def chunk(name: bytes, payload: bytes) -> bytes:
        return struct.pack(">I", len(payload)) + name + payload + struct.pack(">I", zlib.crc32(name + payload))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def write_table(path: Path, rows: list[Row], columns: tuple[str, ...] = ("file", "patient_id", *LABEL_NAMES)) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)


def write_clinic(folder: Path, number: int = 24) -> list[Row]:
    """Write phantoms of number / 3 patients and their table; returns the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(number):
        phantom_image(index).save(folder / f"DOE_JANE_{index:03d}.png")
        rows.append({"file": f"DOE_JANE_{index:03d}.png", "patient_id": f"MRN-{index // 3:04d}", "dr_grade": "1"})
    write_table(folder / "labels.csv", rows)
    return rows


def config_of(folder: Path, out: Path, **options: Any) -> RunConfig:
    section = {
        "source": str(folder),
        "labels": str(folder / "labels.csv"),
        "out": str(out),
        "image_size_px": SIZE,
        "workers": 0,
        **options,
    }
    return RunConfig.model_validate({"prepare": section})


def run(config: RunConfig) -> Summary:
    return prepare.run(config, LocalWorld(), SilentConsole())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def samples_of(shard_set: ShardSet) -> Iterator[tuple[str, str, dict[str, bytes]]]:
    """Yield (split, key, members) of every sample."""
    for shard in shard_set.shards:
        reader = TarShardReader(shard_set.shard_url(shard), index_sha256=shard.index_sha256)
        for number, key in enumerate(reader.index.keys):
            yield shard.split, key, reader.read(number)
        reader.close()


def names_of(out: Path) -> Path:
    """Return where the crosswalk of a set lies that was given no place."""
    return out.parent.parent / "synfundus-crosswalks" / f"{out.parent.name}.{out.name}"


def crosswalk_of(out: Path) -> list[Row]:
    with (names_of(out) / "crosswalk.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def with_the_secret_of(crosswalk: Path, other: Path) -> str:
    """Make a crosswalk for another set of the same photographs that gives the same keys."""
    other.mkdir()
    (other / "secret.key").write_bytes((crosswalk / "secret.key").read_bytes())
    return str(other)


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@contextmanager
def refused(kind: type[Exception], message: str) -> Iterator[None]:
    with pytest.raises(kind) as caught:
        yield
    assert message in str(caught.value)


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that goes wrong in practice, and eighteen photographs that are fine."""
    folder = tmp_path_factory.mktemp("messy")
    rows = write_clinic(folder, 12)

    def add(name: str, data: bytes | None, patient: str, **labels: str) -> None:
        if data is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        rows.append({"file": name, "patient_id": patient, **labels})

    def save(image: Image.Image, kind: str, **options: Any) -> bytes:
        stream = io.BytesIO()
        image.save(stream, format=kind, **options)
        return stream.getvalue()

    good = phantom_image(40)
    exif = Image.Exif()
    exif[0x010E] = "DOE^JANE 1950"
    info = PngInfo()
    info.add_text("PatientName", "DOE^JANE 1950")
    grey = np.asarray(good.convert("L")).astype(np.uint16) * 257
    wide = b"".join(b"\0" + row.astype(">u2").tobytes() for row in grey)
    header = struct.pack(">IIBBBBB", 96, 96, 16, 0, 0, 0, 0)
    deep = io.BytesIO()
    Image.fromarray(grey).save(deep, format="PNG")
    assert deep.getvalue()[16:29] == header
    assert wide
    add("good/cmyk.jpg", save(good.convert("CMYK"), "JPEG", quality=95), "A")
    add("good/deep.png", deep.getvalue(), "A")
    add("good/exif.jpg", save(good, "JPEG", exif=exif, comment=b"DOE^JANE 1950", quality=95), "B")
    add("good/text.png", save(good, "PNG", pnginfo=info, exif=exif), "B", eye_side="1", is_gc="0")
    add("good/scan.tif", save(phantom_image(44), "TIFF", description="DOE^JANE 1950"), "C")
    add("good/retina.webp", save(Image.fromarray(retina()[::4, ::4]), "WEBP"), "C")
    whole = save(phantom_image(41), "JPEG")
    add("bad/cut.jpg", whole[: len(whole) // 2], "D")
    add("bad/text.png", b"this is not a picture\n" * 40, "D")
    add("bad/bomb.png", bomb(), "D")
    add("bad/black.png", save(Image.new("RGB", (96, 96)), "PNG"), "E")
    add("bad/cat.png", save(Image.fromarray(photograph("cat")), "PNG"), "E")
    add("bad/empty.png", b"", "E")
    add("bad/gone.png", None, "F")
    add("bad/value.png", save(phantom_image(42), "PNG"), "F", dr_grade="7")
    add("../escape.png", None, "F")
    add("good/copy.png", (folder / "DOE_JANE_000.png").read_bytes(), "G")
    add("DOE_JANE_001.png", None, "G")
    (folder / "stranger.png").write_bytes(save(phantom_image(43), "PNG"))
    (folder / "readme.txt").write_text("no photograph")
    write_table(folder / "labels.csv", rows)
    return folder


@pytest.fixture(scope="module")
def messy_set(messy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    out = tmp_path_factory.mktemp("messy-set") / "set"
    return out, run(config_of(messy, out))


def test_everything_good_is_in_and_everything_else_is_named(messy_set: tuple[Path, Summary]) -> None:
    out, summary = messy_set
    crosswalk = crosswalk_of(out)
    assert {row["source"]: row["reason"] for row in crosswalk if row["reason"]} == {
        "bad/cut.jpg": "truncated",
        "bad/text.png": "not_an_image",
        "bad/bomb.png": "too_many_pixels",
        "bad/black.png": "all_black",
        "bad/cat.png": "no_field_of_view",
        "bad/empty.png": "empty_file",
        "bad/gone.png": "missing_file",
        "bad/value.png": "unknown_label_value",
        "../escape.png": "unsafe_name",
        "good/copy.png": "duplicate_of",
        "DOE_JANE_001.png (line 30)": "duplicate_row",
        "stranger.png": "not_in_table",
    }
    good = {row["source"] for row in crosswalk if not row["reason"]}
    assert good == {f"DOE_JANE_{i:03d}.png" for i in range(12)} | {
        f"good/{name}" for name in ("cmyk.jpg", "deep.png", "exif.jpg", "text.png", "scan.tif", "retina.webp")
    }
    assert summary["num_inputs"] == 12 + 17 + 1 == summary["num_samples"] + sum(summary["rejects"].values())


def test_broken_links_and_hidden_pictures_are_in_a_count(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "set"
    rows = write_clinic(folder, 4)
    (folder / "DOE_JANE_003.png").unlink()
    for name in ("DOE_JANE_003.png", "new.jpg", "other", "notes.txt"):
        (folder / name).symlink_to(tmp_path / "not mounted" / name)
    for name in (".trash/a.png", ".trash/b/c.jpg", "x/.d.png", "._DOE_JANE_000.png", ".trash/notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    config, talk = config_of(folder, out), Talk()
    summary = prepare.run(config, LocalWorld(), talk)
    assert summary["num_inputs"] == len(rows) + 1 == summary["num_samples"] + sum(summary["rejects"].values())
    assert summary["rejects"] == {"broken_link": 2}
    assert {row["source"] for row in crosswalk_of(out) if row["reason"]} == {"DOE_JANE_003.png", "new.jpg"}
    said = [line for line in talk.lines if "broken links" in line or "hidden pictures" in line]
    assert [line.split(":")[1].strip() for line in said] == ["4 broken links", "3 hidden pictures"]
    assert not any("DOE" in line for line in talk.lines)
    again = Talk()
    assert prepare.run(config, LocalWorld(), again)["num_samples"] == 3
    assert any("the set is complete" in line for line in again.lines)


def test_manifest_rejects_and_samples_agree(messy_set: tuple[Path, Summary]) -> None:
    out, _ = messy_set
    shard_set = load_shard_set(str(out), kind="images")
    rejects = lines(out / "rejects.jsonl")
    assert shard_set.num_samples() == 18 == len(list(samples_of(shard_set)))
    assert len(rejects) == 12 == sum(shard_set.rejects.values())
    assert all(set(row) == {"key", "stage", "reason"} for row in rejects)
    assert shard_set.properties["num_inputs"] == 30
    named = {row["key"]: row["source"] for row in crosswalk_of(out)}
    reasons = {named[row["key"]]: row["reason"] for row in rejects}
    assert reasons["bad/cut.jpg"] == "truncated"
    details = {row["source"]: row["detail"] for row in lines(names_of(out) / "rejects.jsonl")}
    assert "30000 x 30000" in details["bad/bomb.png"] or "900000000" in details["bad/bomb.png"]
    assert details["bad/value.png"].endswith("dr_grade: column dr_grade = '7'")
    assert details["good/copy.png"] == "same file as DOE_JANE_000.png; other labels; other patient"


def test_no_name_and_no_metadata_is_in_the_set(messy_set: tuple[Path, Summary]) -> None:
    out, _ = messy_set
    for name, data in all_bytes(out).items():
        # whole planted texts: three or four letters of one turn up in hashes and compressed pixels by chance
        for secret in (
            b"DOE^JANE",
            b"DOE_JANE",
            b"JANE 1950",
            b"MRN-00",
            b"PatientName",
            b"cmyk.jpg",
            b"Exif\0\0",
            str(out).encode(),
        ):
            assert secret not in data, (name, secret)
    for _, key, members in samples_of(load_shard_set(str(out), kind="images")):
        with Image.open(io.BytesIO(members["png"])) as image:
            assert image.info == {}
            assert (image.mode, image.size) == ("RGB", (SIZE, SIZE))
        document = json.loads(members["json"])
        assert set(document) == {"labels", "eye_side", "source", "size_px", "sha256_image"}
        assert key.isalnum()


def test_labels_reach_their_sample(messy_set: tuple[Path, Summary]) -> None:
    out, _ = messy_set
    sources = {row["key"]: row["source"] for row in crosswalk_of(out)}
    documents = {
        sources[key]: json.loads(members["json"])
        for _, key, members in samples_of(load_shard_set(str(out), kind="images"))
    }
    labels = documents["good/text.png"]["labels"]
    assert set(labels) == set(LABEL_NAMES)
    assert (labels["eye_side"], labels["is_gc"], labels["dr_grade"]) == (1, 0, None)
    assert documents["good/text.png"]["eye_side"] == 1
    assert documents["DOE_JANE_003.png"]["labels"]["dr_grade"] == 1


def test_the_same_picture_in_any_encoding_gives_the_same_image(tmp_path: Path) -> None:
    good = phantom_image(40)
    grey = Image.fromarray(np.asarray(good.convert("L")).astype(np.uint16) * 257)
    files: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "plain.png": (good, {}),
        "scan.tif": (good, {}),
        "photo.jpg": (good, {"quality": 95}),
        "cmyk.jpg": (good.convert("CMYK"), {"quality": 95}),
        "deep.png": (grey, {}),
    }
    images = {}
    for name, (picture, options) in files.items():
        folder = tmp_path / name
        folder.mkdir()
        picture.save(folder / name, **options)
        write_table(folder / "labels.csv", [{"file": name, "patient_id": "P"}])
        run(config_of(folder, tmp_path / f"{name}.set"))
        ((_, _, members),) = samples_of(load_shard_set(str(tmp_path / f"{name}.set"), kind="images"))
        images[name] = np.asarray(Image.open(io.BytesIO(members["png"]))).astype(int)
    reference = images["plain.png"]
    np.testing.assert_array_equal(images["scan.tif"], reference)
    for name in ("photo.jpg", "cmyk.jpg"):
        assert np.abs(images[name] - reference).mean() < 4
    lightness = np.asarray(Image.fromarray(reference.astype(np.uint8)).convert("L")).astype(int)
    assert np.abs(images["deep.png"].mean(axis=2) - lightness).mean() < 2


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_plain_webdataset_reads_every_tar(messy_set: tuple[Path, Summary]) -> None:
    out, _ = messy_set
    tars = sorted(str(path) for path in out.rglob("*.tar"))
    found = []
    for tar in tars:
        for sample in webdataset.WebDataset(tar, shardshuffle=False).decode("rgb8"):
            assert sample["png"].shape == (SIZE, SIZE, 3)
            assert set(sample["json"]["labels"]) == set(LABEL_NAMES)
            found.append(sample["__key__"])
    gc.collect()  # webdataset leaves its files to the collector; let it warn here, where that is expected
    assert sorted(found) == sorted(row["key"] for row in crosswalk_of(out) if not row["reason"])


def test_the_crosswalk_is_outside_the_set_and_private(messy_set: tuple[Path, Summary]) -> None:
    out, summary = messy_set
    crosswalk = Path(summary["crosswalk"])
    assert crosswalk == names_of(out)
    assert out.parent not in crosswalk.parents, "whoever packs the folder of outputs does not take it along"
    assert sorted(path.name for path in crosswalk.iterdir()) == [
        *("crosswalk.csv", "flags.jsonl", "look_alikes.jsonl", "looks.npy", "owner.json", "rejects.jsonl", "secret.key")
    ]
    assert stat.S_IMODE(crosswalk.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in crosswalk.iterdir()} == {0o600}


def test_no_patient_is_in_two_splits(tmp_path: Path) -> None:
    write_clinic(tmp_path / "in", 30)
    run(config_of(tmp_path / "in", tmp_path / "set", splits=(0.6, 0.2, 0.2)))
    rows = crosswalk_of(tmp_path / "set")
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row["patient_id"], set()).add(row["split"])
    assert len(splits) == 10
    assert all(len(found) == 1 for found in splits.values())
    shard_set = load_shard_set(str(tmp_path / "set"), kind="images")
    assert [shard_set.num_samples(split) for split in ("train", "val", "test")] == [18, 6, 6]
    assert shard_set.properties["num_patients"] == {"train": 6, "val": 2, "test": 2}
    split_of = {row["key"]: row["split"] for row in rows}
    assert all(split_of[key] == split for split, key, _ in samples_of(shard_set))


def test_burned_in_text_is_gone(tmp_path: Path) -> None:
    plain, written = tmp_path / "plain", tmp_path / "written"
    for folder in (plain, written):
        folder.mkdir()
        write_table(folder / "labels.csv", [{"file": "a.png", "patient_id": "P"}])
    index = next(i for i in range(99) if draw_phantom(seed=11, index=i, image_size_px=96).truth.camera == "full")
    image = phantom_image(index)
    pixels = np.asarray(image).copy()
    image.save(plain / "a.png")
    pixels[88:94, 2:26:2] = 255
    pixels[2:7, 72:94:3] = (255, 255, 0)
    Image.fromarray(pixels).save(written / "a.png")
    images = []
    for folder in (plain, written):
        run(config_of(folder, folder.with_suffix(".set"), splits=(1.0, 0.0, 0.0)))
        ((_, _, members),) = samples_of(load_shard_set(str(folder.with_suffix(".set")), kind="images"))
        images.append(np.asarray(Image.open(io.BytesIO(members["png"]))).astype(int))
    grid = np.arange(SIZE) + 0.5 - SIZE / 2
    outside = np.hypot(grid[:, None], grid[None]) > SIZE / 2 * 0.985
    assert not images[1][outside].any()
    assert np.abs(images[0] - images[1]).max() <= 12  # the circle may move by a hundredth of a pixel


@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_the_set_does_not_depend_on_processes_or_ranks(tmp_path: Path, image_format: str) -> None:
    write_clinic(tmp_path / "in", 24)
    options = {"image_format": image_format, "shard_max_samples": 4}
    run(config_of(tmp_path / "in", tmp_path / "a", workers=0, crosswalk=str(tmp_path / "x"), **options))
    other = with_the_secret_of(tmp_path / "x", tmp_path / "y")
    run(config_of(tmp_path / "in", tmp_path / "b", workers=2, crosswalk=other, **options))
    first, second = all_bytes(tmp_path / "a"), all_bytes(tmp_path / "b")
    assert sum(name.endswith(".tar") for name in first) >= 6
    assert first == second


def test_two_ranks_share_the_work_and_write_the_same_set(tmp_path: Path) -> None:
    write_clinic(tmp_path / "in", 36)
    single = config_of(tmp_path / "in", tmp_path / "a", crosswalk=str(tmp_path / "x"), shard_max_samples=4)
    shared = config_of(tmp_path / "in", tmp_path / "b", crosswalk=str(tmp_path / "y"), shard_max_samples=4)
    run(single)
    with_the_secret_of(tmp_path / "x", tmp_path / "y")
    # alone in its collectives, rank 0 of 2 comes as far as its own half
    with refused(DataError, "chunk 1 was not prepared"):
        prepare.run(shared, LocalWorld(rank=0, size=2), SilentConsole())
    chunks = tmp_path / "y" / "work" / "chunks"
    assert [path.name for path in sorted(chunks.glob("*.done.json"))] == [
        "000000.done.json",
        "000002.done.json",
        "000004.done.json",
    ]
    # What rank 0 left is kept: a single process does only the other half.
    before = {path: path.stat().st_mtime_ns for path in chunks.glob("*.tar")}
    with refused(DataError, "shard train/000001.tar is missing"):
        run_alone_then_as_rank_0_of_2(shared)
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "b").rglob("*.tar")}
    assert 0 < len(shards) < len(list((tmp_path / "a").rglob("*.tar")))
    run(shared)
    assert all(path.stat().st_mtime_ns == then for path, then in shards.items())
    assert all_bytes(tmp_path / "a") == all_bytes(tmp_path / "b")


def run_alone_then_as_rank_0_of_2(config: RunConfig) -> None:
    """Prepare what chunks are left, and the shards of rank 0 of 2."""

    class JoinedLater:
        """A world that a second rank joins after the first stage."""

        rank, local_rank, local_size, device = 0, 0, 1, "cpu"

        def __init__(self) -> None:
            self.size = 1

        def barrier(self) -> None:
            self.size = 2

        def all_gather(self, value: Any) -> list[Any]:
            return [value]

    prepare.run(config, JoinedLater(), SilentConsole())  # type: ignore[arg-type]


def test_a_fresh_crosswalk_gives_other_keys(tmp_path: Path) -> None:
    write_clinic(tmp_path / "in", 6)
    keys = []
    for name in ("a", "b"):
        run(config_of(tmp_path / "in", tmp_path / name))
        keys.append({row["key"] for row in crosswalk_of(tmp_path / name)})
    assert not keys[0] & keys[1]


def test_a_complete_set_is_left_alone(tmp_path: Path) -> None:
    write_clinic(tmp_path / "in", 9)
    config = config_of(tmp_path / "in", tmp_path / "set")
    first = run(config)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}
    again = run(config)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")} == before
    assert (again["identity"], again["num_samples"], again["images_per_s"]) == (first["identity"], 9, 0.0)


def test_an_unfinished_set_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clinic(tmp_path / "in", 24)
    whole = config_of(tmp_path / "in", tmp_path / "whole", crosswalk=str(tmp_path / "x"), shard_max_samples=4)
    halted = config_of(tmp_path / "in", tmp_path / "halted", crosswalk=str(tmp_path / "y"), shard_max_samples=4)
    run(whole)
    with_the_secret_of(tmp_path / "x", tmp_path / "y")
    real, calls = write_shard, []

    def failing(*args: Any, **options: Any) -> Any:
        calls.append(args[0])
        if len(calls) == 4:
            raise OSError("the machine went down")
        return real(*args, **options)

    monkeypatch.setattr(preparation_shards, "write_shard", failing)
    with pytest.raises(OSError, match="went down"):
        run(halted)
    assert not (tmp_path / "halted" / "manifest.json").exists()
    run(halted)
    assert len(calls) == len(set(calls)) + 1  # only the shard that failed was written again
    assert all_bytes(tmp_path / "halted") == all_bytes(tmp_path / "whole")


def test_what_an_unfinished_run_over_other_inputs_left_is_redone(tmp_path: Path) -> None:
    rows = write_clinic(tmp_path / "in", 12)
    config = config_of(tmp_path / "in", tmp_path / "set", shard_max_samples=4)
    with refused(DataError, "was not prepared"):
        prepare.run(config, LocalWorld(rank=0, size=2), SilentConsole())
    write_table(tmp_path / "in" / "labels.csv", [{**row, "dr_grade": "3"} for row in rows[:-1]])
    run(config)
    documents = [json.loads(m["json"]) for _, _, m in samples_of(load_shard_set(str(tmp_path / "set"), kind="images"))]
    assert [document["labels"]["dr_grade"] for document in documents] == [3] * 11
    tars = list((tmp_path / "set").rglob("*.tar"))
    assert len(tars) == len(load_shard_set(str(tmp_path / "set"), kind="images").shards)


def test_out_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    write_clinic(tmp_path / "in", 6)
    out = tmp_path / "set"
    run(config_of(tmp_path / "in", out))
    with refused(ConfigError, "image_size_px is 64 there, 96 here"):
        run(config_of(tmp_path / "in", out, image_size_px=96))
    (tmp_path / "in" / "DOE_JANE_000.png").write_bytes(b"changed")
    with refused(ConfigError, "the photographs or their labels have changed"):
        run(config_of(tmp_path / "in", out))
    with refused(ConfigError, "not its crosswalk"):
        run(config_of(tmp_path / "in", out, crosswalk=str(tmp_path / "elsewhere")))
    with refused(ConfigError, "holds something else: thesis.tex"):
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "thesis.tex").touch()
        run(config_of(tmp_path / "in", tmp_path / "home"))
    with refused(ConfigError, "is a file"):
        run(config_of(tmp_path / "in", tmp_path / "in" / "labels.csv"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": None}, "--source is missing"),
        ({"labels": None}, "--labels is missing"),
        ({"out": None}, "--out is missing"),
        ({"source": "/nowhere/at/all"}, "the folder of photographs does not exist"),
        ({"labels": "/nowhere/at/all.csv"}, "the label table does not exist"),
        ({"mapping": "/nowhere/at/all.yaml"}, "the mapping does not exist"),
        ({"label_schema": "/nowhere/at/all.yaml"}, "the label schema does not exist"),
        ({"crosswalk": "OUT/inside"}, "is inside the set"),
        ({"crosswalk": "OUT"}, "is inside the set"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, str | None], message: str
) -> None:
    write_clinic(tmp_path / "in", 3)
    changes = {name: value and value.replace("OUT", str(tmp_path / "set")) for name, value in options.items()}
    section = config_of(tmp_path / "in", tmp_path / "set").prepare.model_copy(update=changes)
    with refused(ConfigError, message):
        run(RunConfig(prepare=section))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_table_of_other_names_is_refused_with_a_hint(tmp_path: Path) -> None:
    rows = write_clinic(tmp_path / "in", 3)
    write_table(tmp_path / "in" / "labels.csv", [{**row, "file": row["file"][:-4]} for row in rows])
    with refused(DataError, "file_pattern"):
        run(config_of(tmp_path / "in", tmp_path / "set"))


def test_a_folder_without_a_usable_photograph_is_refused_but_explained(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (80, 80)).save(tmp_path / "in" / "black.png")
    write_table(tmp_path / "in" / "labels.csv", [{"file": "black.png", "patient_id": "P"}])
    with refused(DataError, 'none of 1 inputs is usable: {"all_black": 1}'):
        run(config_of(tmp_path / "in", tmp_path / "set"))
    assert not (tmp_path / "set" / "manifest.json").exists()
    (reject,) = lines(names_of(tmp_path / "set") / "rejects.jsonl")
    assert (reject["source"], reject["reason"]) == ("black.png", "all_black")


def test_a_mapping_and_a_schema_of_ones_own(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "scans").mkdir(parents=True)
    phantom_image(0).convert("RGB").save(folder / "scans" / "T1.jpg", quality=95)
    phantom_image(4).convert("RGB").save(folder / "scans" / "T2.jpg", quality=95)
    (folder / "labels.csv").write_text("challenge_id;class;who\nT1;RG;1\nT2;U;2\n")
    (folder / "map.yaml").write_text(
        "source: AIROGS\nfile: challenge_id\nfile_pattern: 'scans/{file}.jpg'\npatient_id: who\n"
        "labels: {glaucoma: {column: class, values: {RG: 1, NRG: 0, U: null}}}\n"
    )
    (folder / "schema.yaml").write_text("- {name: glaucoma, num_values: 2}\n")
    own = {"mapping": str(folder / "map.yaml"), "label_schema": str(folder / "schema.yaml"), "splits": (1.0, 0.0, 0.0)}
    run(config_of(folder, tmp_path / "set", **own))
    shard_set = load_shard_set(str(tmp_path / "set"), kind="images")
    assert shard_set.label_schema.names == ("glaucoma",)
    documents = [json.loads(members["json"]) for _, _, members in samples_of(shard_set)]
    assert sorted(str(document["labels"]["glaucoma"]) for document in documents) == ["1", "None"]
    assert {document["source"] for document in documents} == {"AIROGS"}
    assert {document["eye_side"] for document in documents} == {None}
