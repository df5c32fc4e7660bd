"""The separate pass that stores posterior moments: the same bytes however it is run."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_processes import run_cli, run_ranks_with_fault
from tiny_sets import UNEVEN_SHARDS, flip_byte, hashes, tiny_config, write_config

from synfundus.artifacts.autoencoder_folder import find_autoencoder, open_autoencoder
from synfundus.artifacts.latent_set import SOURCES_NAME, load_sources
from synfundus.distributed.world import LocalWorld, World
from synfundus.errors import ConfigError, CorruptShard, DataError
from synfundus.models.autoencoder import LatentAutoencoder
from synfundus.models.pixels import pixels_to_tensor
from synfundus.shards.reader import ShardSetReader, decode_npy
from synfundus.shards.source import ImageDecoder
from synfundus.stages.encode_latents import job as encode_latents
from synfundus.storage import filesystem
from synfundus.storage.manifest import ShardSet, load_shard_set
from synfundus.telemetry.console import SilentConsole, SilentProgress


def encode(
    image_set: ShardSet,
    vae_run: Path,
    out: Path,
    *,
    world: World | None = None,
    console: SilentConsole | None = None,
    **section: Any,
) -> dict[str, Any]:
    given = {"data": image_set.url, "vae": str(vae_run), "out": str(out), **section}
    return encode_latents.run(tiny_config({"encode_latents": given}), world or LocalWorld(), console or SilentConsole())


def shard_hashes(folder: Path) -> dict[str, str]:
    """Hash what does not say where the images lie."""
    return {name: value for name, value in hashes(folder).items() if name != SOURCES_NAME}


@pytest.fixture(scope="module")
def alone(image_set: ShardSet, vae_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The latents one rank makes."""
    out = tmp_path_factory.mktemp("alone") / "latents"
    encode(image_set, vae_run, out)
    return out


@pytest.mark.parametrize("size", [2, 3, 5, 9])
def test_any_number_of_ranks_gives_the_same_bytes(
    image_set: ShardSet, vae_run: Path, alone: Path, tmp_path: Path, size: int
) -> None:
    out = tmp_path / "latents"
    with pytest.raises(DataError, match="is missing"):  # rank 0 claims the folder, and nobody waits for the others
        encode(image_set, vae_run, out, world=LocalWorld(rank=0, size=size))
    for rank in range(size - 1, 0, -1):
        with pytest.raises(DataError, match="no shard set"):  # in one process nobody waits for rank 0 to publish
            encode(image_set, vae_run, out, world=LocalWorld(rank=rank, size=size))
    encode(image_set, vae_run, out, world=LocalWorld(rank=0, size=size))
    assert hashes(out) == hashes(alone)


def test_two_processes_give_the_same_bytes(image_set: ShardSet, vae_run: Path, alone: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.yaml")
    run_cli(
        *("encode-latents", "--config", config, "--data", image_set.url, "--vae", vae_run),
        *("--out", tmp_path / "latents", "--procs-per-node", "2"),
    ).check()
    assert hashes(tmp_path / "latents") == hashes(alone)


@pytest.mark.slow
def test_a_rank_that_is_done_waits_longer_than_a_collective_may_take(
    image_set: ShardSet, vae_run: Path, alone: Path, tmp_path: Path
) -> None:
    """Over hours ranks drift apart; the one that is done must not end the job of the other."""
    config = write_config(tmp_path / "run.yaml", {"launch": {"collective_timeout_s": 25}})
    command = ("encode-latents", "--config", config, "--data", image_set.url, "--vae", vae_run)
    for ended in run_ranks_with_fault(
        "hang:40:synfundus.stages.encode_latents.shard_encoder:ShardEncoder.encode:1",
        *(1, *command, "--out", tmp_path / "latents"),
        world_size=2,
        patience_s=5,
    ):
        ended.check()
    assert hashes(tmp_path / "latents") == hashes(alone)


def test_the_number_of_threads_changes_no_byte(image_set: ShardSet, vae_run: Path, alone: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (2, 3):
            torch.set_num_threads(threads)
            encode(image_set, vae_run, tmp_path / str(threads))
            assert hashes(tmp_path / str(threads)) == hashes(alone)
    finally:
        torch.set_num_threads(before)


class Stopping(SilentConsole):
    """Stops the pass after some images, as Ctrl-C would."""

    def __init__(self, after: int) -> None:
        self.left = after

    @contextmanager
    def progress(self, description: str, *, total: int, unit: str, start: int = 0) -> Iterator[SilentProgress]:
        console = self

        class Bar(SilentProgress):
            def advance(self, amount: int = 1, **fields: str) -> None:
                console.left -= amount
                if console.left < 0:
                    raise KeyboardInterrupt

        yield Bar()


@pytest.mark.parametrize("after", [0, 33, 60, 90])
def test_a_pass_that_was_stopped_goes_on_and_ends_with_the_same_bytes(
    image_set: ShardSet, vae_run: Path, alone: Path, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "latents"
    with pytest.raises(KeyboardInterrupt):
        encode(image_set, vae_run, out, console=Stopping(after))
    assert not (out / "manifest.json").exists()
    done = sum(1 for _ in out.rglob("*.tar"))
    encoded: list[int] = []
    original = LatentAutoencoder.encode

    def count(self: LatentAutoencoder, pixels: torch.Tensor) -> torch.Tensor:
        encoded.append(len(pixels))
        return original(self, pixels)

    monkeypatch.setattr(LatentAutoencoder, "encode", count)
    encode(image_set, vae_run, out)
    assert hashes(out) == hashes(alone)
    sizes = [size for split in UNEVEN_SHARDS.values() for size in split]
    assert sum(encoded) == sum(sizes[done:]), "a finished shard was encoded again, or an unfinished one was not"


def test_a_shard_that_lost_its_end_after_it_was_finished_is_made_again(
    image_set: ShardSet, vae_run: Path, alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "latents"
    with pytest.raises(KeyboardInterrupt):
        encode(image_set, vae_run, out, console=Stopping(60))
    tar = out / "train" / "000000.tar"
    tar.write_bytes(tar.read_bytes()[:-100])
    encode(image_set, vae_run, out)
    assert hashes(out) == hashes(alone)


def test_a_set_knows_its_autoencoder_from_every_folder(
    image_set: ShardSet, vae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(vae_run.parent)
    encode(image_set, Path(vae_run.name), tmp_path / "latents")
    assert load_sources(str(tmp_path / "latents")).autoencoder_url == str(vae_run)


def test_a_finished_set_is_left_alone(
    image_set: ShardSet, vae_run: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hashes(alone)
    monkeypatch.setattr(LatentAutoencoder, "encode", None)
    summary = encode(image_set, vae_run, alone)
    assert hashes(alone) == before
    assert summary["num_samples"] == 96
    assert summary["identity"] == before["manifest.json"]


def read_all(shard_set: ShardSet, split: str) -> list[tuple[str, dict[str, bytes]]]:
    reader = ShardSetReader(shard_set, split=split)
    found = [reader.read(shard, number) for shard, size in enumerate(reader.shard_sizes) for number in range(size)]
    reader.close()
    return found


def test_the_moments_are_the_encoders_in_fp16_and_the_documents_are_unchanged(
    image_set: ShardSet, latent_set: ShardSet, vae_run: Path
) -> None:
    autoencoder, fingerprint = open_autoencoder(
        find_autoencoder(str(vae_run)), device=torch.device("cpu"), dtype=torch.float32
    )
    decode = ImageDecoder(schema=image_set.label_schema, image_size_px=64)
    assert latent_set.properties["autoencoder_fingerprint"] == fingerprint
    assert latent_set.properties["image_set_identity"] == image_set.identity
    for split in ("train", "val", "test"):
        images, latents = read_all(image_set, split), read_all(latent_set, split)
        assert [key for key, _ in images] == [key for key, _ in latents]
        for (key, image), (_, latent) in list(zip(images, latents, strict=True))[::5]:
            assert latent["json"] == image["json"]
            pixels = pixels_to_tensor(decode(key, image, "x")["pixels"][None])
            for member, source in (("moments.npy", pixels), ("flip.npy", pixels.flip(-1))):
                with torch.no_grad():
                    expected = autoencoder.encode(source)[0].numpy()
                stored = decode_npy(latent[member], where="x")
                assert stored.dtype == np.float16
                np.testing.assert_allclose(stored, expected, rtol=2e-3, atol=2e-3)


def test_the_statistics_are_those_of_the_latents_a_training_draws(latent_set: ShardSet) -> None:
    stored = [decode_npy(members["moments.npy"], where="x") for _, members in read_all(latent_set, "train")]
    mean, logvar = np.split(np.stack(stored).astype(np.float64), 2, axis=1)
    variance = mean.var((0, 2, 3)) + np.exp(logvar).mean((0, 2, 3))
    assert latent_set.properties["latent_mean"] == pytest.approx(mean.mean((0, 2, 3)).tolist())
    assert latent_set.properties["latent_std"] == pytest.approx(np.sqrt(variance).tolist())


def test_the_encoder_is_frozen_and_in_evaluation_mode(
    image_set: ShardSet, vae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[bool, bool, bool]] = set()
    original = LatentAutoencoder.encode

    def spy(self: LatentAutoencoder, pixels: torch.Tensor) -> torch.Tensor:
        trainable = any(parameter.requires_grad for parameter in self.parameters())
        training = any(module.training for module in self.modules())
        seen.add((training, trainable, torch.is_grad_enabled()))
        return original(self, pixels)

    monkeypatch.setattr(LatentAutoencoder, "encode", spy)
    encode(image_set, vae_run, tmp_path / "latents")
    assert seen == {(False, False, False)}


def damaged_copy(image_set: ShardSet, folder: Path, places: Sequence[tuple[str, int]]) -> ShardSet:
    """Copy an image set and flip a byte of the given samples."""
    shutil.copytree(image_set.url, folder)
    copy = load_shard_set(str(folder), kind="images")
    for split, sample in places:
        reader = ShardSetReader(copy, split=split)
        start, _ = reader.shard(0).index.span(sample)
        flip_byte(folder / split / "000000.tar", start + 3)
        reader.close()
    return copy


def test_damaged_images_are_rejected_by_name_and_everything_else_is_encoded(
    image_set: ShardSet, vae_run: Path, alone: Path, tmp_path: Path
) -> None:
    damaged = damaged_copy(image_set, tmp_path / "images", [("train", 4), ("train", 30), ("val", 0)])
    summary = encode(damaged, vae_run, tmp_path / "latents", max_bad_fraction=0.04)
    assert summary["num_samples"] == 93
    assert summary["rejects"] == {"checksum": 3}
    rows = [json.loads(line) for line in (tmp_path / "latents" / "rejects.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == ["train/000000.tar#4", "train/000000.tar#30", "val/000000.tar#0"]
    assert all(row["stage"] == "encode" and "checksum" in row["reason"] for row in rows)
    latents = load_shard_set(str(tmp_path / "latents"), kind="latents")
    good = dict(read_all(load_shard_set(str(alone), kind="latents"), "train"))
    found = dict(read_all(latents, "train"))
    missing = sorted(set(good) - set(found))
    assert [key.rsplit("-", 1)[1] for key in missing] == ["000004", "000030"]
    for key, members in found.items():
        expected = decode_npy(good[key]["moments.npy"], where="x").astype(np.float32)
        got = decode_npy(members["moments.npy"], where="x").astype(np.float32)
        np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-3)


def test_a_damaged_index_rejects_its_shard_and_no_other(image_set: ShardSet, vae_run: Path, tmp_path: Path) -> None:
    copy = damaged_copy(image_set, tmp_path / "images", [])
    flip_byte(tmp_path / "images" / "train" / "000001.idx.npz", 50)
    summary = encode(copy, vae_run, tmp_path / "latents", max_bad_fraction=0.2)
    assert summary["num_samples"] == 96 - 17
    assert summary["rejects"] == {"index": 17}


def test_too_many_images_that_cannot_be_used_make_no_set_and_are_looked_at_again(
    image_set: ShardSet, vae_run: Path, alone: Path, tmp_path: Path
) -> None:
    copy = damaged_copy(image_set, tmp_path / "images", [])
    tar, away, out = tmp_path / "images" / "train" / "000001.tar", tmp_path / "away", tmp_path / "latents"
    tar.rename(away)
    with pytest.raises(
        DataError, match=r"17 of 96 images cannot be used, more than .*max_bad_fraction = 0\.001"
    ) as caught:
        encode(copy, vae_run, out)
    assert "train/000001.tar#0: a file of the shard is missing" in caught.value.message
    assert "inspect --verify" in caught.value.hint
    assert not (out / "manifest.json").exists()
    away.rename(tar)
    assert encode(copy, vae_run, out)["rejects"] == {}
    assert shard_hashes(out) == shard_hashes(alone)


def test_what_cannot_be_read_for_a_moment_is_read_at_the_end(
    image_set: ShardSet, vae_run: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, met = ShardSetReader.read, Counter[tuple[int, int]]()

    def read_with_faults(self: ShardSetReader, shard: int, sample: int) -> tuple[str, dict[str, bytes]]:
        """Lose a whole shard at the first look, and a sample of another at both of two looks."""
        met[(shard, sample)] += 1
        if shard == 1 and met[(shard, sample)] == 1:
            raise CorruptShard("a file of the shard is missing", reason="missing")
        if (shard, sample) == (2, 3) and met[(shard, sample)] <= 2:
            raise CorruptShard("Input/output error", reason="unreadable")
        return read(self, shard, sample)

    monkeypatch.setattr(ShardSetReader, "read", read_with_faults)
    with pytest.raises(DataError, match=r"1 of 96 images cannot be used.*train/000002.tar#3: Input/output error"):
        encode(image_set, vae_run, tmp_path / "latents")
    assert encode(image_set, vae_run, tmp_path / "latents")["rejects"] == {}
    assert hashes(tmp_path / "latents") == hashes(alone)


def test_a_second_look_that_sees_less_changes_nothing(
    image_set: ShardSet, vae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, met = ShardSetReader.read, Counter[tuple[int, int]]()

    def read_with_faults(self: ShardSetReader, shard: int, sample: int) -> tuple[str, dict[str, bytes]]:
        met[(shard, sample)] += 1
        if (shard, sample) == (1, 5) or (shard == 1 and met[(shard, sample)] == 2):
            raise CorruptShard("Input/output error", reason="unreadable")
        return read(self, shard, sample)

    monkeypatch.setattr(ShardSetReader, "read", read_with_faults)
    summary = encode(image_set, vae_run, tmp_path / "latents", max_bad_fraction=0.02)
    assert (summary["num_samples"], summary["rejects"]) == (95, {"unreadable": 1})


def test_moments_that_no_reader_would_take_are_refused_before_anything_is_encoded(
    image_set: ShardSet, vae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode_latents, "MAX_NPY_BYTES", 1500)
    with pytest.raises(ConfigError, match=r"moments of \[8, .* take \d+ bytes, more than a member"):
        encode(image_set, vae_run, tmp_path / "latents")


def test_images_of_a_store_are_encoded_to_the_same_bytes(
    image_set: ShardSet, vae_run: Path, alone: Path, tmp_path: Path, s3_bucket: str
) -> None:
    filesystem.upload_folder(Path(image_set.url), f"{s3_bucket}/images", last=["manifest.json"])
    encode(load_shard_set(f"{s3_bucket}/images", kind="images"), vae_run, tmp_path / "latents")
    assert shard_hashes(tmp_path / "latents") == shard_hashes(alone)


def test_another_content_of_out_is_refused_naming_both_sides(
    image_set: ShardSet, vae_run: Path, tmp_path: Path, world: World
) -> None:
    other = tmp_path / "vae"
    autoencoder, mine = open_autoencoder(
        find_autoencoder(str(vae_run)), device=torch.device("cpu"), dtype=torch.float32
    )
    with torch.no_grad():
        next(autoencoder.network.parameters()).add_(0.01)
    autoencoder.save_pretrained(other)
    _, theirs = open_autoencoder(other, device=torch.device("cpu"), dtype=torch.float32)
    finished, unfinished = tmp_path / "finished", tmp_path / "unfinished"
    encode(image_set, vae_run, finished)
    with pytest.raises(KeyboardInterrupt):
        encode(image_set, vae_run, unfinished, console=Stopping(40))
    for out in (finished, unfinished):
        with pytest.raises(ConfigError, match="latents of something else") as caught:
            encode(image_set, other, out)
        assert f"is {mine[:12]!r} there, {theirs[:12]!r} here" in caught.value.message
        with pytest.raises(ConfigError, match="flip is False there, True here"):
            encode(image_set, vae_run, out, flip=True)
        with pytest.raises(ConfigError, match="encoder_batch_size is 8 there, 4 here"):
            encode(image_set, vae_run, out, batch_size=4)


def test_moments_that_fp16_cannot_hold_are_an_error_and_nothing_is_published(
    image_set: ShardSet, vae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = LatentAutoencoder.encode
    for factor in (1e9, float("nan")):

        def diverged(self: LatentAutoencoder, pixels: torch.Tensor, factor: float = factor) -> torch.Tensor:
            return original(self, pixels) * factor

        monkeypatch.setattr(LatentAutoencoder, "encode", diverged)
        with pytest.raises(DataError, match="do not fit fp16") as caught:
            encode(image_set, vae_run, tmp_path / "latents")
        assert caught.value.where == str(tmp_path / "latents")
        assert not (tmp_path / "latents" / "manifest.json").exists()
