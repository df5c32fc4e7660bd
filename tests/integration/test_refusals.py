"""Things that were not made for each other are refused, and the message names both sides."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_processes import run_cli
from tiny_runs import Talk
from tiny_sets import UNEVEN_SHARDS, phantom_samples, tiny_config, write_config, write_phantom_set, write_set

from synfundus.artifacts.autoencoder_folder import find_autoencoder, open_autoencoder
from synfundus.artifacts.latent_set import open_latent_sets
from synfundus.artifacts.model_export import resave_pipeline
from synfundus.artifacts.model_folder import find_pipeline, load_pipeline, named_model
from synfundus.config.diffusion import DiffusionConfig
from synfundus.distributed.world import LocalWorld, World
from synfundus.errors import CheckpointError, ConfigError, DataError, ManifestMismatch, SynfundusError
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA, LabelSchema
from synfundus.stages.encode_latents import job as encode_latents
from synfundus.stages.reading import check_flip
from synfundus.stages.sample import job as sample
from synfundus.stages.train import job as train
from synfundus.stages.train.start import objective_differences, scale_differences
from synfundus.stages.train_vae import job as train_vae
from synfundus.storage.manifest import ShardSet, load_shard_set
from synfundus.telemetry.console import Console, SilentConsole
from synfundus.telemetry.run_files import read_run
from synfundus.training.validation import judged_on

FEWER_LABELS = LabelSchema(DEFAULT_LABEL_SCHEMA.labels[:4])


def encode(images: ShardSet, vae: Path, out: Path) -> ShardSet:
    given = {"data": images.url, "vae": str(vae), "out": str(out)}
    encode_latents.run(tiny_config({"encode_latents": given}), LocalWorld(), SilentConsole())
    return load_shard_set(str(out), kind="latents")


def other_schema(latents: ShardSet, folder: Path, label: str, **change: Any) -> ShardSet:
    """Copy a latent set and change a label in its manifest."""
    shutil.copytree(latents.url, folder)
    document = json.loads((folder / "manifest.json").read_text())
    (spec,) = (spec for spec in document["label_schema"] if spec["name"] == label)
    spec |= change
    (folder / "manifest.json").write_text(json.dumps(document))
    return load_shard_set(str(folder), kind="latents")


def start(
    latents: ShardSet, run_dir: Path, world: World, console: Console | None = None, **train_section: Any
) -> dict[str, Any]:
    loop = {"budget_images": 16, "validation_images": 4}
    section = {"latents": latents.url, "run_dir": str(run_dir), "loop": loop, **train_section}
    return train.run(tiny_config({"train": section}), world, console or SilentConsole())


def refusal(expected: type[SynfundusError], act: Callable[[], object], *words: str) -> SynfundusError:
    with pytest.raises(expected) as caught:
        act()
    for word in words:
        shown = word[:12] if re.fullmatch("[0-9a-f]{64}", word) else word
        assert shown in caught.value.message, (word, caught.value.message)
    return caught.value


@pytest.fixture(scope="module")
def other_autoencoder(vae_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An autoencoder that differs in one weight; (folder, fingerprint)."""
    folder = tmp_path_factory.mktemp("vae") / "other"
    autoencoder, _ = open_autoencoder(find_autoencoder(str(vae_run)), device=torch.device("cpu"), dtype=torch.float32)
    with torch.no_grad():
        next(autoencoder.network.parameters()).add_(0.01)
    autoencoder.save_pretrained(folder)
    return folder, open_autoencoder(folder, device=torch.device("cpu"), dtype=torch.float32)[1]


@pytest.fixture(scope="module")
def other_autoencoder_latents(
    image_set: ShardSet, other_autoencoder: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
) -> ShardSet:
    return encode(image_set, other_autoencoder[0], tmp_path_factory.mktemp("latents") / "codec")


@pytest.fixture(scope="module")
def other_size_latents(vae_run: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("latents")
    return encode(write_phantom_set(folder / "images", image_size_px=96), vae_run, folder / "size")


@pytest.fixture(scope="module")
def other_labels_images(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("images")
    count = sum(sum(sizes) for sizes in UNEVEN_SHARDS.values())
    samples = []
    for key, members in phantom_samples(count):
        labels = json.loads(members["json"])["labels"]
        kept = {name: labels.get(name) for name in FEWER_LABELS.names}
        samples.append((key, {**members, "json": json.dumps({"labels": kept}).encode()}))
    return write_set(folder / "images", samples, shards=UNEVEN_SHARDS, schema=FEWER_LABELS)


@pytest.fixture(scope="module")
def other_labels_latents(
    other_labels_images: ShardSet, vae_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> ShardSet:
    return encode(other_labels_images, vae_run, tmp_path_factory.mktemp("latents") / "labels")


@pytest.fixture(scope="module")
def trained(latent_set: ShardSet, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    start(latent_set, run_dir, world)
    return run_dir


def short(latents: ShardSet) -> str:
    return str(latents.properties["autoencoder_fingerprint"])[:12]


class TestTrain:
    def test_an_autoencoder_the_latents_are_not_of(
        self, latent_set: ShardSet, other_autoencoder: tuple[Path, str], world: World, tmp_path: Path
    ) -> None:
        folder, fingerprint = other_autoencoder
        refusal(
            ManifestMismatch,
            lambda: start(latent_set, tmp_path / "run", world, vae=str(folder)),
            *(short(latent_set), fingerprint[:12]),
        )
        assert not (tmp_path / "run").exists(), "a start that is refused leaves no mark"

    def test_an_autoencoder_that_was_trained_on_since(
        self, image_set: ShardSet, vae_run: Path, other_autoencoder: tuple[Path, str], world: World, tmp_path: Path
    ) -> None:
        shutil.copytree(find_autoencoder(str(vae_run)), tmp_path / "vae")
        latents = encode(image_set, tmp_path / "vae", tmp_path / "latents")
        shutil.rmtree(tmp_path / "vae")
        shutil.copytree(other_autoencoder[0], tmp_path / "vae")
        refusal(
            ManifestMismatch, lambda: start(latents, tmp_path / "run", world), short(latents), other_autoencoder[1][:12]
        )

    @pytest.mark.parametrize("kind", ["autoencoder", "size", "labels"])
    def test_other_latents_in_the_folder_of_a_run(
        self, kind: str, latent_set: ShardSet, trained: Path, world: World, request: pytest.FixtureRequest
    ) -> None:
        other: ShardSet = request.getfixturevalue(f"other_{kind}_latents")
        error = refusal(
            ConfigError, lambda: start(other, trained, world), "another run", latent_set.identity, other.identity
        )
        assert str(trained) in error.where

    def test_a_model_to_start_from_that_is_of_another_autoencoder(
        self, latent_set: ShardSet, other_autoencoder_latents: ShardSet, trained: Path, world: World, tmp_path: Path
    ) -> None:
        refusal(
            ManifestMismatch,
            lambda: start(other_autoencoder_latents, tmp_path / "run", world, init_from=str(trained)),
            *(short(latent_set), short(other_autoencoder_latents)),
        )
        assert not (tmp_path / "run").exists(), "a start that is refused leaves no mark"

    def test_a_model_to_start_from_that_is_of_another_size(
        self, other_size_latents: ShardSet, trained: Path, world: World, tmp_path: Path
    ) -> None:
        refusal(
            ManifestMismatch,
            lambda: start(other_size_latents, tmp_path / "run", world, init_from=str(trained)),
            *("(4, 8, 8)", "(4, 12, 12)"),
        )

    def test_a_model_to_start_from_that_has_other_labels(
        self, other_labels_latents: ShardSet, trained: Path, world: World, tmp_path: Path
    ) -> None:
        refusal(
            ManifestMismatch,
            lambda: start(other_labels_latents, tmp_path / "run", world, init_from=str(trained)),
            *("other labels", "only in the first: eye_side"),
        )

    def test_a_model_to_start_from_that_fits_is_taken(
        self, latent_set: ShardSet, trained: Path, world: World, tmp_path: Path
    ) -> None:
        talk = Talk()
        assert start(latent_set, tmp_path / "run", world, talk, init_from=str(trained))["images_seen"] == 16
        assert not any("objective" in line for line in talk.lines)
        assert [line for line in talk.lines if "start" in line and str(trained) in line] == [
            f"starts from the weights of model {named_model(f'{trained}/export')[0][:12]} in {trained}/export"
        ]

    def test_a_model_to_start_from_with_another_objective_is_taken_with_a_warning_that_names_both(
        self, latent_set: ShardSet, trained: Path
    ) -> None:
        given = load_pipeline(find_pipeline(str(trained)), device=torch.device("cpu"))
        tiny = tiny_config().train.diffusion
        assert objective_differences(given, tiny) == []
        assert scale_differences(given, tiny, latent_set) == []
        flow = DiffusionConfig(prediction_type="flow_velocity")
        noise = DiffusionConfig(prediction_type="epsilon", beta_schedule="linear")
        assert objective_differences(given, flow) == ["prediction_type 'v_prediction' there, 'flow_velocity' here"]
        told = objective_differences(given, noise)
        assert told[0] == "prediction_type 'v_prediction' there, 'epsilon' here"
        assert "zero_terminal_snr True there, False here" in told
        wider = replace(given, latent_std=tuple(2 * value for value in given.latent_std))
        assert "latents are divided by" in scale_differences(wider, tiny, latent_set)[0]

    def test_a_run_that_began_from_other_weights_of_the_same_place_is_refused(
        self, latent_set: ShardSet, trained: Path, world: World, tmp_path: Path
    ) -> None:
        place, run_dir = tmp_path / "model", tmp_path / "run"
        shutil.copytree(trained / "export", place)
        assert start(latent_set, run_dir, world, init_from=str(place))["images_seen"] == 16
        given = load_pipeline(place, device=torch.device("cpu"))
        with torch.no_grad():
            next(given.denoiser.parameters()).add_(1.0)
        resave_pipeline(place, given, run="")
        assert start(latent_set, run_dir, world, init_from=str(place))["images_seen"] == 16, "it has a checkpoint"
        shutil.rmtree(run_dir / "checkpoints")
        with pytest.raises(ConfigError, match=r"began from weights [0-9a-f]{12}, at their place are now") as refused:
            start(latent_set, run_dir, world, init_from=str(place))
        assert refused.value.hint == "put those back that it began from, or give another --run-dir"
        assert start(latent_set, tmp_path / "other", world, init_from=str(place))["images_seen"] == 16

    def test_a_model_to_start_from_whose_grade_is_now_a_plain_label(
        self, latent_set: ShardSet, trained: Path, world: World, tmp_path: Path
    ) -> None:
        nominal = other_schema(latent_set, tmp_path / "latents", "dr_grade", ordinal=False)
        refusal(
            ManifestMismatch,
            lambda: start(nominal, tmp_path / "run", world, init_from=str(trained)),
            *("other labels", "dr_grade is ordinal in the first, nominal in the second"),
        )

    def test_labels_whose_values_mean_something_else(
        self, latent_set: ShardSet, trained: Path, world: World, tmp_path: Path
    ) -> None:
        mirrored = other_schema(latent_set, tmp_path / "latents", "eye_side", values=["left", "right"])
        refusal(
            ManifestMismatch,
            lambda: start(mirrored, tmp_path / "run", world, init_from=str(trained)),
            *("other labels", "eye_side = 0 is right in the first, left in the second"),
        )
        refusal(
            ManifestMismatch,
            lambda: open_latent_sets([mirrored.url, latent_set.url]),
            *("other labels", "eye_side = 0 is left in the first, right in the second"),
        )
        named = other_schema(latent_set, tmp_path / "named", "eye_side", values=["right", "left"])
        assert open_latent_sets([named.url, latent_set.url]).combined.num_samples() == 2 * latent_set.num_samples()

    @pytest.mark.parametrize(
        ("change", "words"),
        [({"name": "laterality"}, "no label is called eye_side"), ({"num_values": 3}, "eye_side has 3 values, not 2")],
    )
    def test_a_flip_whose_labels_cannot_follow(
        self, latent_set: ShardSet, world: World, tmp_path: Path, change: dict[str, Any], words: str
    ) -> None:
        latents = other_schema(latent_set, tmp_path / "latents", "eye_side", **change)
        error = refusal(
            ConfigError, lambda: start(latents, tmp_path / "run", world, diffusion={"flip": True}), "flip", words
        )
        assert "train.diffusion.flip" in error.hint
        assert not (tmp_path / "run").exists()
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "run.json").write_text("{}")  # a run begun before this was refused goes on
        talk = Talk()
        check_flip(latents, str(tmp_path / "run"), talk)
        assert words in talk.lines[0]

    def test_mirrored_moments_of_images_without_a_side(
        self, other_labels_images: ShardSet, vae_run: Path, tmp_path: Path
    ) -> None:
        given = {"data": other_labels_images.url, "vae": str(vae_run), "out": str(tmp_path / "out"), "flip": True}
        config = tiny_config({"encode_latents": given})
        error = refusal(
            ConfigError,
            lambda: encode_latents.run(config, LocalWorld(), SilentConsole()),
            "no label is called eye_side",
        )
        assert "leave --flip out" in error.hint
        assert not (tmp_path / "out").exists()

    def test_figures_of_a_run_without_a_val_split_are_said_to_be_of_training_images(
        self, latent_set: ShardSet, world: World, tmp_path: Path
    ) -> None:
        shutil.copytree(latent_set.url, tmp_path / "latents")
        manifest = tmp_path / "latents" / "manifest.json"
        document = json.loads(manifest.read_text())
        document["shards"] = [shard for shard in document["shards"] if shard["split"] == "train"]
        manifest.write_text(json.dumps(document))
        talk, of = Talk(), "training images (no val split)"
        start(load_shard_set(str(tmp_path / "latents"), kind="latents"), tmp_path / "run", world, talk)
        assert any("no val split" in line for line in talk.lines if line.startswith("warning"))
        assert f"| validation loss on {of} |" in (tmp_path / "run" / "export" / "README.md").read_text()
        view = read_run(str(tmp_path / "run"))
        assert view.judged_on == of
        assert 0 < view.validation[-1]["validation_loss_all_labels"] != view.validation[-1]["validation_loss"]
        assert judged_on((latent_set,), patients=True) == "held-out patients"
        assert judged_on((latent_set,), patients=False) == "held-out images"

    def test_latents_of_other_sizes_and_labels_can_be_trained_on_in_a_folder_of_their_own(
        self, other_size_latents: ShardSet, other_labels_latents: ShardSet, world: World, tmp_path: Path
    ) -> None:
        assert start(other_size_latents, tmp_path / "size", world)["images_seen"] == 16
        assert start(other_labels_latents, tmp_path / "labels", world)["images_seen"] == 16

    def test_other_settings_in_the_folder_of_a_run_are_named_with_both_values(
        self, latent_set: ShardSet, trained: Path, world: World
    ) -> None:
        config = tiny_config(
            {
                "train": {
                    "latents": latent_set.url,
                    "run_dir": str(trained),
                    "diffusion": {"flip": True},
                    "unet": {"cross_attention_dim": 32},
                }
            }
        )
        refusal(
            ConfigError,
            lambda: train.run(config, world, SilentConsole()),
            *("diffusion.flip is False there, True here", "unet.cross_attention_dim is 16 there, 32 here"),
        )

    def test_the_folder_of_an_autoencoder_run(self, latent_set: ShardSet, vae_run: Path, world: World) -> None:
        refusal(ConfigError, lambda: start(latent_set, vae_run, world), "kind is 'vae' there, 'diffusion' here")

    def test_images_where_latents_are_needed(self, image_set: ShardSet, world: World, tmp_path: Path) -> None:
        refusal(
            DataError,
            lambda: start(image_set, tmp_path / "run", world),
            "this is a set of images, a set of latents is needed",
        )

    def test_a_flip_without_mirrored_moments(
        self, other_autoencoder_latents: ShardSet, world: World, tmp_path: Path
    ) -> None:
        given = {"latents": other_autoencoder_latents.url, "run_dir": str(tmp_path / "run")}
        config = tiny_config({"train": {**given, "diffusion": {"flip": True}}})
        error = refusal(ConfigError, lambda: train.run(config, world, SilentConsole()), "no mirrored moments")
        assert "--flip" in error.hint

    def test_a_manifest_that_names_another_size_than_its_samples_have(
        self, latent_set: ShardSet, world: World, tmp_path: Path
    ) -> None:
        shutil.copytree(latent_set.url, tmp_path / "latents")
        manifest = tmp_path / "latents" / "manifest.json"
        document = json.loads(manifest.read_text())
        document["properties"]["moments_shape"] = [8, 16, 16]
        manifest.write_text(json.dumps(document))
        claimed = replace(latent_set, url=str(tmp_path / "latents"))
        refusal(DataError, lambda: start(claimed, tmp_path / "run", world), "(8, 8, 8)", "(8, 16, 16)")


class TestTrainVae:
    def test_other_images_in_the_folder_of_a_run(
        self, image_set: ShardSet, vae_run: Path, world: World, tmp_path: Path
    ) -> None:
        other = write_phantom_set(tmp_path / "images", seed=9)
        config = tiny_config({"train_vae": {"data": other.url, "run_dir": str(vae_run)}})
        refusal(
            ConfigError,
            lambda: train_vae.run(config, world, SilentConsole()),
            *("data is", image_set.identity, other.identity),
        )


class TestSample:
    def sample(self, model: Path, out: Path) -> dict[str, Any]:
        config = tiny_config({"sample": {"model": str(model), "out": str(out), "num_images": 2}})
        return sample.run(config, LocalWorld(), SilentConsole())

    def test_an_autoencoder_the_model_was_not_trained_with(
        self, trained: Path, latent_set: ShardSet, other_autoencoder: tuple[Path, str], tmp_path: Path
    ) -> None:
        shutil.copytree(trained / "export", tmp_path / "model")
        shutil.rmtree(tmp_path / "model" / "vae")
        shutil.copytree(other_autoencoder[0], tmp_path / "model" / "vae")
        refusal(
            ManifestMismatch,
            lambda: self.sample(tmp_path / "model", tmp_path / "out"),
            *(short(latent_set), other_autoencoder[1][:12]),
        )

    @pytest.mark.parametrize("part", ["unet", "conditioner"])
    def test_parts_of_a_model_with_other_labels(
        self, part: str, trained: Path, other_labels_latents: ShardSet, world: World, tmp_path: Path
    ) -> None:
        start(other_labels_latents, tmp_path / "run", world)
        shutil.copytree(trained / "export", tmp_path / "model")
        shutil.rmtree(tmp_path / "model" / part)
        shutil.copytree(tmp_path / "run" / "export" / part, tmp_path / "model" / part)
        mine = json.loads((trained / "export" / "synfundus.json").read_text())["fingerprints"]["model"]
        refusal(ManifestMismatch, lambda: self.sample(tmp_path / "model", tmp_path / "out"), mine[:12])

    @pytest.mark.parametrize(
        ("change", "words"), [({"latent_shape": [4, 16, 16]}, "(4, 16, 16)"), ({"image_size_px": 512}, "512")]
    )
    def test_a_document_of_another_size(
        self, change: dict[str, Any], words: str, trained: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(trained / "export", tmp_path / "model")
        path = tmp_path / "model" / "synfundus.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        refusal(ManifestMismatch, lambda: self.sample(tmp_path / "model", tmp_path / "out"), words)

    def test_an_autoencoder_where_a_model_is_needed(self, vae_run: Path, tmp_path: Path) -> None:
        refusal(CheckpointError, lambda: self.sample(vae_run, tmp_path / "out"), "this is an autoencoder")


def test_on_the_command_line_a_mismatch_is_one_panel_with_exit_code_3(
    latent_set: ShardSet, other_autoencoder: tuple[Path, str], tmp_path: Path
) -> None:
    config = write_config(tmp_path / "run.yaml")
    ended = run_cli(
        *("train", "--config", config, "--latents", latent_set.url),
        *("--run-dir", tmp_path / "run", "--vae", other_autoencoder[0]),
    )
    assert ended.returncode == ManifestMismatch.exit_code == 3
    assert short(latent_set) in ended.output
    assert other_autoencoder[1][:12] in ended.output
    assert "Traceback" not in ended.output
