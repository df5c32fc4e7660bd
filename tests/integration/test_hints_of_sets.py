"""Hints about sets, samples, networks, locations and caches are true: each is followed, and the error is gone."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from foreign_models import SD15, dc_f32
from tiny_pipeline import tiny_autoencoder, write_tiny_pipeline
from tiny_sets import phantom_samples, tiny_config, write_set
from told import Shell, refusal

from synfundus.artifacts.claim import Claim
from synfundus.artifacts.latent_set import open_latent_sets
from synfundus.artifacts.samples.stores import PngStore
from synfundus.config.photographs import InspectConfig
from synfundus.config.training import LoopConfig, TrainVaeConfig
from synfundus.distributed.lost_ranks import join_error
from synfundus.distributed.world import LocalWorld, World
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA, LabelSchema, LabelSpec
from synfundus.models import compilation
from synfundus.models.adapted_unet import adapted_config
from synfundus.models.linear_path import LinearPath
from synfundus.models.weight_files import find_weights
from synfundus.shards.shard_plan import shares
from synfundus.stages import training_setup
from synfundus.stages.encode_latents import job as encode_latents
from synfundus.stages.inspect import job as inspect
from synfundus.stages.judge.job import _shared_labels
from synfundus.stages.judge.samples import read_samples
from synfundus.stages.reading import flip_problem
from synfundus.stages.sample import job as sample
from synfundus.stages.train_vae.start import check_start
from synfundus.storage import documents, filesystem, writer_lock
from synfundus.storage.cache.object_cache import ObjectCache
from synfundus.storage.local_folder import WRITER_NAME
from synfundus.storage.locations import parse_weighted
from synfundus.storage.manifest import ShardSet, load_shard_set
from synfundus.storage.s3 import store_connection
from synfundus.storage.writer_lock import one_writer, write_alone
from synfundus.telemetry.console import SilentConsole


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model; not to be written to."""
    return write_tiny_pipeline(tmp_path_factory.mktemp("model") / "export").parent


def test_an_autoencoder(shell: Shell, image_set: ShardSet, vae_run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    line = ("encode-latents", "--data", image_set.url, "--out", tmp_path / "out", "--device", "cpu", "--dry-run")
    told = shell.refused("give a finished run of train-vae, or a folder of", *line, "--vae", tmp_path / "empty")
    assert "AutoencoderDC" in told.hint
    dc_f32().save_pretrained(tmp_path / "dc")
    for folder in (vae_run, vae_run / "export" / "vae", tmp_path / "dc"):
        shell.done(*line, "--vae", folder)


def test_values_that_are_missing(shell: Shell, image_set: ShardSet, vae_run: Path, tmp_path: Path) -> None:
    with refusal("give --data, or set encode_latents.data in the config") as caught:
        encode_latents.run(tiny_config(), LocalWorld(), SilentConsole())
    _, flag, _, _, key, *_ = caught.value.hint.replace(",", "").split()
    line = ("encode-latents", "--vae", vae_run, "--out", tmp_path / "out", "--device", "cpu", "--dry-run")
    shell.done(*line, flag, image_set.url)
    (tmp_path / "run.yaml").write_text(f"{key.partition('.')[0]}: {{{key.partition('.')[2]}: {image_set.url}}}\n")
    shell.done(*line, "--config", tmp_path / "run.yaml")


def test_recomputed_activations_of_an_autoencoder(tmp_path: Path) -> None:
    dc_f32().save_pretrained(tmp_path / "dc")

    def begun(*, checkpointing: bool) -> None:
        loop = LoopConfig(gradient_checkpointing=checkpointing, micro_batch_size=1)
        check_start(TrainVaeConfig(init_from=str(tmp_path / "dc"), loop=loop), str(tmp_path / "run"))

    with refusal("turn it off and use a smaller train_vae.loop.micro_batch_size"):
        begun(checkpointing=True)
    begun(checkpointing=False)


def test_latents_to_train_on(shell: Shell, latent_set: ShardSet, vae_run: Path, tmp_path: Path) -> None:
    line = ("train", "--run-dir", tmp_path / "run", "--device", "cpu", "--dry-run", "--set", "train.unet.dropout=0")
    given = ("--set", f"train.latents=[{latent_set.url}]")
    with refusal("give --latents, or set train.latents"):
        open_latent_sets(())
    shell.done(*line, "--latents", latent_set.url)
    shell.done(*line, *given)
    plain = changed(latent_set, tmp_path / "plain", flip=False)
    flip = ("--set", "train.diffusion.flip=true")
    shell.refused("encode them with --flip, or turn train.diffusion.flip off", *line, "--latents", plain, *flip)
    shell.done(*line, "--latents", latent_set.url, *flip)  # encoded with --flip
    shell.done(*line, "--latents", plain, "--set", "train.diffusion.flip=false")
    two = ("--latents", latent_set.url, "--latents")
    smaller = changed(latent_set, tmp_path / "smaller", image_size_px=32)
    shell.refused("encode both with the same autoencoder and size", *line, *two, smaller)
    shell.done(*line, *two, plain)
    with refusal("give it a larger weight, or leave the set out"):
        shares([1.0, 1e-9], 1000)
    assert shares([1.0, 0.1], 1000)[1] > 0
    assert shares([1.0], 1000) == [1000]
    told = shell.refused("check the path; a set without a manifest is incomplete", *line, "--latents", tmp_path)
    assert "run the command that writes it again" in told.hint
    told = shell.refused("give a set that `synfundus encode-latents` has written", *line, "--latents", vae_run)
    assert "this is a run" in told.said
    shell.done(*line, "--latents", plain)


def test_latents_that_do_not_name_their_sources(
    shell: Shell, latent_set: ShardSet, image_set: ShardSet, vae_run: Path, tmp_path: Path
) -> None:
    latents = tmp_path / "latents"
    shutil.copytree(latent_set.url, latents, ignore=shutil.ignore_patterns("sources.json"))
    hint = "copy it from the folder that they were encoded into, or give --vae (train), --data (verify-latents)"
    train = ("train", "--run-dir", tmp_path / "run", "--device", "cpu", "--dry-run", "--latents", latents)
    limit = ("--set", "verify_latents.min_psnr_db=0.1", "--set", "verify_latents.num_samples=4")
    verify = ("verify-latents", "--device", "cpu", *limit, "--latents", latents, "--vae", vae_run)
    for line in (train, verify):
        assert shell.refused(hint, *line).code == 3
    shell.done(*train, "--vae", vae_run)
    shell.done(*verify, "--data", image_set.url)
    shutil.copy(Path(latent_set.url) / "sources.json", latents)
    shell.done(*train)


def changed(latents: ShardSet, folder: Path, **properties: Any) -> Path:
    """Copy a set whose manifest says something else of it."""
    copy = Path(shutil.copytree(latents.url, folder))
    document = json.loads((copy / "manifest.json").read_text())
    document["properties"] |= properties
    (copy / "manifest.json").write_text(json.dumps(document))
    return copy


def encoded(images: str, vae: Path, out: Path, world: World, **section: Any) -> ShardSet:
    given = {"data": images, "vae": str(vae), "out": str(out), **section}
    encode_latents.run(tiny_config({"encode_latents": given}), world, SilentConsole())
    return load_shard_set(str(out), kind="latents")


def test_latents_of_another_autoencoder(shell: Shell, vae_run: Path, model: Path, world: World, tmp_path: Path) -> None:
    images = write_set(tmp_path / "images", phantom_samples(4), shards={"train": (3,), "val": (1,)})
    latents = encoded(images.url, vae_run, tmp_path / "latents", world)
    line = ("verify-latents", "--device", "cpu", "--set", "verify_latents.min_psnr_db=0.1", "--vae")
    hint = "give the autoencoder the latents were made with, or encode them again with this one"
    shell.refused(hint, *line, model, "--latents", latents.url)
    shell.done(*line, vae_run, "--latents", latents.url)
    again = encoded(images.url, model, tmp_path / "again", world)
    shell.done(*line, model, "--latents", again.url)
    with refusal("give another --out"):
        encoded(images.url, model, Path(shutil.copytree(images.url, tmp_path / "taken")), world)


def test_images_without_a_side(shell: Shell, vae_run: Path, tmp_path: Path) -> None:
    plain = LabelSchema(tuple(spec for spec in DEFAULT_LABEL_SCHEMA.labels if spec.name != "eye_side"))
    samples = []
    for key, members in phantom_samples(2):
        labels = json.loads(members["json"])["labels"]
        labels.pop("eye_side", None)
        samples.append((key, {**members, "json": json.dumps({"labels": labels}).encode()}))
    line = ("encode-latents", "--vae", vae_run, "--out", tmp_path / "out", "--device", "cpu", "--data")
    without = write_set(tmp_path / "without", samples, shards={"train": (2,)}, schema=plain)
    told = shell.refused("put a label eye_side of two values", *line, without.url, "--flip")
    assert told.hint.endswith("or leave --flip out")
    shell.done(*line, without.url)
    shutil.rmtree(tmp_path / "out")
    with_it = write_set(tmp_path / "with", samples, shards={"train": (2,)})
    assert flip_problem(with_it.label_schema) is None
    shell.done(*line, with_it.url, "--flip")


def test_moments_that_are_too_large() -> None:
    def planned(factor: int, size: int) -> dict[str, Any]:
        images: Any = SimpleNamespace(properties={"image_size_px": size}, identity="")
        autoencoder: Any = SimpleNamespace(downsample_factor=factor, latent_channels=32)
        section = tiny_config().encode_latents
        return encode_latents._properties(section, images, autoencoder, "", tf32=False)

    with refusal("use an autoencoder with a higher downsampling factor, or smaller images"):
        planned(1, 2**13)
    planned(32, 2**13)
    planned(1, 2**8)


def test_an_image_size_that_an_autoencoder_cannot_take() -> None:
    autoencoder = tiny_autoencoder()
    with refusal("use an image size that is a multiple of ") as caught, torch.no_grad():
        autoencoder.encode(torch.zeros(1, 3, 30, 30))
    factor = int(caught.value.hint.rpartition(" ")[2])
    with torch.no_grad():
        autoencoder.encode(torch.zeros(1, 3, 8 * factor, 8 * factor))


def test_images_that_vary_too_little() -> None:
    def fitted(channels: int) -> None:
        greys: Iterable[torch.Tensor] = [torch.full((2, 3, 8, 8), value) for value in (-0.5, 0.0, 0.5)]
        LinearPath(patch_size_px=4, latent_channels=channels).fit(greys)

    with refusal("use fewer latent channels"):
        fitted(4)
    fitted(1)


def test_a_foreign_network(tmp_path: Path) -> None:
    with refusal("use another image size, or an autoencoder that shrinks less"):
        adapted_config(SD15, latent_shape=(4, 9, 9), dropout=0.0)
    with refusal("use a U-Net with the layout of Stable Diffusion 1.x, 2.x or XL"):
        adapted_config({**SD15, "attention_type": "gated"}, latent_shape=(4, 8, 8), dropout=0.0)
    adapted_config(SD15, latent_shape=(4, 8, 8), dropout=0.0)
    with refusal("give a local diffusers folder (") as caught:
        find_weights(tmp_path, kind="U-Net")
    config, weights = re.findall(r"[\w.]+\.(?:json|safetensors)", caught.value.hint)
    (tmp_path / config).write_text("{}")
    (tmp_path / "diffusion_pytorch_model.bin").touch()
    with refusal("use the safetensors of the same model"):
        find_weights(tmp_path, kind="U-Net")
    (tmp_path / weights).touch()
    assert find_weights(tmp_path, kind="U-Net").names == (weights,)


def test_compilation_where_there_is_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "missing_for_compilation", lambda *_: "a C++ compiler")
    with refusal("install it, or leave compile off"):
        training_setup.check_compilation(LoopConfig(compile=True), LocalWorld())
    training_setup.check_compilation(LoopConfig(compile=False), LocalWorld())
    training_setup.check_compilation(LoopConfig(), LocalWorld())
    monkeypatch.setattr(compilation, "missing_for_compilation", lambda *_: None)
    monkeypatch.setattr(torch, "compile", lambda *_, **__: 1 / 0)
    with refusal("or turn it off"):
        training_setup.check_compilation(LoopConfig(compile=True), LocalWorld())


def sampled(model: Path, out: Path, **section: Any) -> dict[str, Any]:
    given = {"model": str(model), "out": str(out), "num_images": 2, "contact_sheet_images": 0, **section}
    return sample.run(tiny_config({"sample": given}), LocalWorld(), SilentConsole())


def test_images_that_are_missing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for form, hint in (("png", "existing images are kept"), ("shards", "finished shards are kept")):
        out = tmp_path / form
        with monkeypatch.context() as patch:
            patch.setattr(PngStore, "write", lambda *_: None)
            patch.setattr("synfundus.artifacts.samples.stores.ShardStore.merge", lambda *_: [])
            with refusal(f"run the same command again: {hint}"):
                sampled(model, out, format=form)
        assert sampled(model, out, format=form)["num_images"] == 2


def test_a_folder_of_other_samples(model: Path, tmp_path: Path) -> None:
    sampled(model, tmp_path / "out")
    with refusal("give another --out, or the settings and inputs it was begun with"):
        sampled(model, tmp_path / "out", num_steps=3)
    sampled(model, tmp_path / "out")
    sampled(model, tmp_path / "new", num_steps=3)


def test_a_document_of_another_version(model: Path, tmp_path: Path) -> None:
    claim = Claim("request.json", "synfundus-test", 2, others="another")
    path = tmp_path / "a" / "request.json"
    for content, hint in (
        ('{"format": "synfundus-test", "schema_version": 1}', "use the synfundus version that wrote it"),
        ('{"format": "theirs"}', "give another --out"),
    ):
        documents.write_document(str(path), {}, format_name="synfundus-test", version=2)
        path.write_text(content)
        with refusal(hint):
            claim.read(str(path.parent))
    documents.write_document(str(path), {}, format_name="synfundus-test", version=2)  # written again
    assert claim.read(str(path.parent)) is not None
    assert claim.read(str(tmp_path / "another")) is None
    del model


def test_samples_to_judge(shell: Shell, image_set: ShardSet, model: Path, tmp_path: Path) -> None:
    with refusal("give a complete folder written by `sample`, with ") as caught:
        read_samples(str(tmp_path), DEFAULT_LABEL_SCHEMA)
    sampled(model, tmp_path / "samples")
    assert (tmp_path / "samples" / caught.value.hint.rpartition(" ")[2]).is_file()
    assert len(read_samples(str(tmp_path / "samples"), DEFAULT_LABEL_SCHEMA)) == 2
    foreign = write_tiny_pipeline(tmp_path / "foreign", schema=LabelSchema((LabelSpec("frobnication", 2),)))
    with refusal("give the --data the model was trained with"):
        _shared_labels(str(foreign), image_set)
    with refusal("give the --data the model was trained with"):
        read_samples(str(tmp_path / "samples"), LabelSchema((LabelSpec("is_gc", 3),)))
    assert _shared_labels(str(model), image_set)


def test_reports_of_inspect(shell: Shell, image_set: ShardSet, tmp_path: Path) -> None:
    with refusal("give --data"):
        inspect.run(tiny_config(), LocalWorld(), SilentConsole())
    line = ("inspect", "--data", image_set.url, "--images", 0, "--out")
    for name in ("inspect.json", "contact_sheet.png"):
        theirs = tmp_path / name.partition(".")[0]
        theirs.mkdir()
        (theirs / name).write_text("{}")
        shell.refused("give another --out", *line, theirs)
    shell.done(*line, tmp_path / "ours")
    assert InspectConfig().data is None


def test_locations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with refusal("use one of ") as caught:
        filesystem.exists("gs://bucket/x")
    for protocol in caught.value.hint.removeprefix("use one of ").removesuffix(", or a path").split(", "):
        filesystem.protocol_of(f"{protocol}:///x" if protocol == "file" else f"{protocol}://bucket/x")
    with refusal("write /path, file:///path or s3://bucket/path") as caught:
        filesystem.exists("file://x/y")
    for place in re.split(r", | or ", caught.value.hint.removeprefix("write ")):
        filesystem.protocol_of(place)
    with refusal("write s3://bucket/path") as caught:
        filesystem.exists("s3://a b/x")
    filesystem.protocol_of(caught.value.hint.split()[1])
    with refusal("if it is a file name, write ./~nobody-of-this-name") as caught:
        filesystem.exists("~nobody-of-this-name")
    (tmp_path / "~nobody-of-this-name").touch()
    assert filesystem.exists(caught.value.hint.rpartition(" ")[2])
    for name in ("a", "a:2"):
        (tmp_path / name).mkdir()
    with refusal("write a:2:1 for the first; for the second rename the first") as caught:
        parse_weighted("a:2")
    assert parse_weighted(caught.value.hint.split()[1]) == ("a:2", 1.0)
    (tmp_path / "a:2").rename(tmp_path / "b")
    assert parse_weighted("a:2") == ("a", 2.0)


@pytest.fixture
def content(s3_bucket: str) -> str:
    """An object of a store."""
    filesystem.write_bytes(f"{s3_bucket}/x", b"content")
    return f"{s3_bucket}/x"


def read(url: str) -> bytes:
    """Read as a new process, with what the environment says now."""
    filesystem.configure(None)
    return filesystem.read_bytes(url)


def test_credentials_in_places_that_are_shown(content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hint = "give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    with refusal(hint) as caught:
        read(content.replace("s3://", "s3://key:secret@"))
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", os.environ["AWS_ENDPOINT_URL"].replace("//", "//key:secret@"))
        with refusal(hint):
            read(content)
    assert all(name in os.environ for name in re.findall(r"AWS_\w+", caught.value.hint))
    assert read(content) == b"content"


def test_keys_and_buckets_of_a_store(content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "wrong")
            with refusal("check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"):
                read(content)
    with refusal("check the bucket's name and AWS_ENDPOINT_URL"):
        read("s3://no-such-bucket-here/x")
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "not an address")
        with refusal("check AWS_ENDPOINT_URL"):
            read(content)
    assert read(content) == b"content"


def test_settings_of_a_parent_process(monkeypatch: pytest.MonkeyPatch, s3_bucket: str) -> None:
    name = store_connection.SETTINGS_VARIABLE
    with refusal("unset this variable; settings come from the section `storage` of the config") as caught:
        store_connection._parse("nonsense")
    assert caught.value.where == name
    monkeypatch.delenv(name, raising=False)
    filesystem.write_bytes(f"{s3_bucket}/x", b"content")


def test_a_folder_nobody_may_write_to(tmp_path: Path) -> None:
    def write() -> None:
        with filesystem.storage_errors("write", str(tmp_path)):
            raise PermissionError(13, "no")

    with refusal("check the permissions or credentials"):
        write()
    with refusal("give another --out, or move away what is there"):
        Claim("request.json", "f", 1, others="").read(str(make(tmp_path / "theirs", "thesis.tex")))
    (tmp_path / "theirs" / "thesis.tex").rename(tmp_path / "thesis.tex")
    assert Claim("request.json", "f", 1, others="").read(str(tmp_path / "theirs")) is None
    assert filesystem.space_advice("cannot write: No space left on device, 0 bytes are free") == "free some space"
    assert filesystem.space_advice("cannot write: Input/output error") == "check the disk or the store"


def make(folder: Path, name: str) -> Path:
    folder.mkdir()
    (folder / name).touch()
    return folder


def copied(cache: ObjectCache, path: Path) -> bytes:
    data = path.read_bytes()
    with cache.open(str(path), sha256=hashlib.sha256(data).hexdigest(), size=len(data)) as stream:
        return stream.read()


def test_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "cache"
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"1" * 600)
    second.write_bytes(b"2" * 600)
    with refusal("raise storage.cache_max_bytes"):
        copied(ObjectCache(place, 500), first)
    cache = ObjectCache(place, 700)
    assert copied(cache, first) == first.read_bytes()
    monkeypatch.setattr(ObjectCache, "_free_bytes", lambda _: 100)
    with refusal("free some space, or put storage.cache_dir on a larger disk"):
        copied(ObjectCache(tmp_path / "full", 7000), second)
    monkeypatch.undo()
    assert copied(ObjectCache(tmp_path / "full", 7000), second) == second.read_bytes()
    place.chmod(0o777)
    with refusal("use your own folder, with chmod 700"):
        ObjectCache(place, 700)
    place.chmod(0o700)
    ObjectCache(place, 700)
    (tmp_path / "file").touch()
    with refusal("check the disk, or run without storage.cache_dir"):
        ObjectCache(tmp_path / "file" / "cache", 700)


def test_a_folder_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    with one_writer(60.0):
        write_alone(str(folder))
        (folder / "work").touch()
        note = json.loads((folder / WRITER_NAME).read_text())
    path = folder / WRITER_NAME
    with one_writer():
        path.write_text(json.dumps({**note, "host": "node2", "machine": "another"}))
        with refusal("or when you remove ") as caught:
            write_alone(str(folder), flag="--run-dir")
        assert "or give another --run-dir" in caught.value.hint
        write_alone(str(tmp_path / "another"))
        Path(caught.value.hint.rpartition("remove ")[2]).unlink()
        write_alone(str(folder))
    with one_writer():
        path.write_text(json.dumps({**note, "schema_version": 99}))
        with refusal("if none is, remove this file") as caught:
            write_alone(str(folder))
        Path(caught.value.where).unlink()
        write_alone(str(folder))
    with one_writer():
        path.write_text(json.dumps({**note, "pid": 2**22 + 1}))
        with monkeypatch.context() as patch:
            patch.setattr(writer_lock, "_TRY_S", 0.0)
            patch.setattr(writer_lock, "_replace", lambda *_: False)
            with refusal("start one at a time; if there is none, remove ") as caught:
                write_alone(str(folder))
        Path(caught.value.hint.rpartition("remove ")[2]).unlink()
        write_alone(str(folder))


def test_a_rendezvous_port_that_is_taken() -> None:
    error = join_error(RuntimeError("EADDRINUSE: address already in use"), rank=0, master="here:1")
    assert error.hint.startswith("start the command again, with another MASTER_PORT")
    assert all("MASTER_PORT" in path.read_text() for path in jobs() if path.name in ("ldm.sh", "vae.sh"))


def jobs() -> list[Path]:
    return sorted((Path(__file__).resolve().parents[2] / "slurm").glob("*.sh"))
