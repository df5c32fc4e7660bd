"""Guidance by a weaker model: an earlier checkpoint of the run, or another export on the same latents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipeline import SCHEDULE, SCHEMA, write_tiny_pipeline
from tiny_runs import train_here
from tiny_sets import tiny_config

from synfundus.artifacts.model_folder import load_pipeline
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import LocalWorld, World
from synfundus.errors import CheckpointError, ConfigError, ManifestMismatch
from synfundus.labels.schema import LabelSchema
from synfundus.stages import Summary
from synfundus.stages.export import job as export
from synfundus.stages.sample import job as sample
from synfundus.stages.sample.verb import VERB
from synfundus.stages.verify import job as verify
from synfundus.stages.verify.verb import VERB as VERIFY
from synfundus.storage.manifest import ShardSet
from synfundus.telemetry.console import SilentConsole

EARLY, LAST = 320, 400


@pytest.fixture(scope="module")
def run(latent_set: ShardSet, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went to its end, with checkpoints on the way; not to be written to."""
    folder = tmp_path_factory.mktemp("guided") / "run"
    train_here(latent_set, folder, world)
    return folder


def config_of(model: Path, out: Path, **section: Any) -> RunConfig:
    given = {"model": str(model), "out": str(out), "num_images": 3, "batch_size": 2, "num_steps": 3, "sampler": "ddim"}
    return RunConfig.model_validate({"sample": given | section, "launch": {"device": "cpu"}})


def drawn(model: Path, out: Path, **section: Any) -> tuple[list[bytes], dict[str, Any]]:
    """Draw images; return them without their marks, and what is recorded."""
    sample.run(config_of(model, out, **section), LocalWorld(), SilentConsole())
    return [path.read_bytes() for path in sorted((out / "images").iterdir())], json.loads(
        (out / "PROVENANCE.json").read_text()
    )


def test_a_run_is_guided_by_its_own_earlier_checkpoint(run: Path, tmp_path: Path) -> None:
    label = {"is_gc": 1}
    plain, _ = drawn(run, tmp_path / "plain", label=label, guidance_scale=1.0)
    guided, said = drawn(run, tmp_path / "guided", label=label, guidance_scale=3.0, guide_model=f"{run}@{EARLY}")
    assert guided != plain
    settings = {"export": {"run_dir": str(run), "out": str(tmp_path / "early"), "checkpoint": f"images-{EARLY:012d}"}}
    export.run(tiny_config(settings), LocalWorld(), SilentConsole())
    early = load_pipeline(tmp_path / "early", device=torch.device("cpu"))
    assert said["guide_fingerprint"] == early.fingerprint != said["model_fingerprint"]
    assert early.fingerprint[:64] in (tmp_path / "guided" / "README.md").read_text()
    exported, _ = drawn(run, tmp_path / "same", label=label, guidance_scale=3.0, guide_model=str(tmp_path / "early"))
    assert exported == guided
    for other in ({"guide_model": f"{run}@{LAST}"}, {}):
        section = {"label": label, "guidance_scale": 3.0, **other}
        with pytest.raises(ConfigError, match="guide_fingerprint"):
            drawn(run, tmp_path / "guided", **section)
        with pytest.raises(ConfigError, match="guide_fingerprint"):
            VERB.compare(config_of(run, tmp_path / "guided", **section).sample, 0)  # type: ignore[misc]
    VERB.compare(
        config_of(run, tmp_path / "guided", label=label, guidance_scale=3.0, guide_model=f"{run}@{EARLY}").sample, 0
    )  # type: ignore[misc]


def test_guidance_by_the_model_itself_is_none(run: Path, tmp_path: Path) -> None:
    plain, _ = drawn(run, tmp_path / "plain", guidance_scale=1.0)
    guided, _ = drawn(run, tmp_path / "guided", guidance_scale=3.0, guide_model=f"{run}@{LAST}")
    assert guided == plain


def rehearsed(model: Path, guide: str, tmp_path: Path) -> str:
    """Refused by the dry run and by the run alike; returns the message."""
    section = config_of(model, tmp_path / "out", guide_model=guide)
    messages = []
    for act in (
        lambda: VERB.dry_run(section.sample, 0),  # type: ignore[misc]
        lambda: sample.run(section, LocalWorld(), SilentConsole()),
    ):
        with pytest.raises((ManifestMismatch, CheckpointError)) as caught:
            act()
        messages.append(f"{caught.value.message} {caught.value.hint}")
    assert messages[0] == messages[1]
    assert not (tmp_path / "out").exists()
    return messages[0]


def test_a_guide_of_other_latents_labels_noise_or_autoencoder_is_refused(tmp_path: Path) -> None:
    model = write_tiny_pipeline(tmp_path / "model")
    other_labels = LabelSchema(tuple(reversed(SCHEMA.labels)))
    for number, (word, changes) in enumerate(
        {
            "spread of the latents [2.0, 0.6] instead of [2.0, 0.5]": {"latent_std": (2.0, 0.6)},
            "mean of the latents": {"latent_mean": (0.0, 0.0)},
            "noise schedule": {"schedule_settings": SCHEDULE | {"zero_terminal_snr": False}},
            "labels (": {"schema": other_labels},
            "autoencoder": {"seed": 7},
        }.items()
    ):
        guide = write_tiny_pipeline(tmp_path / f"guide-{number}", **changes)  # type: ignore[arg-type]
        said = rehearsed(model, str(guide), tmp_path)
        assert word in said, said
    fitting = write_tiny_pipeline(
        tmp_path / "fitting", denoiser=load_pipeline(model, device=torch.device("cpu")).denoiser
    )
    drawn(model, tmp_path / "out", guide_model=str(fitting))  # as the hint says: on the same latents


def test_a_checkpoint_that_is_not_there_is_named_with_those_that_are(run: Path, tmp_path: Path) -> None:
    assert f"images-{EARLY:012d}" in rehearsed(run, f"{run}@77", tmp_path)
    assert "images-000000000077" in rehearsed(run, f"{tmp_path / 'nothing'}@77", tmp_path)


def test_a_guide_and_negative_labels_exclude_each_other(run: Path, tmp_path: Path) -> None:
    both = {"guide_model": f"{run}@{EARLY}", "negative_label": {"is_gc": 1}}
    section = config_of(run, tmp_path / "out", **both)
    assert "--negative-label exclude each other" in "".join(VERB.problems(section.sample, True))  # type: ignore[misc]
    with pytest.raises(ConfigError, match="exclude each other") as caught:
        sample.run(section, LocalWorld(), SilentConsole())
    assert "leave out --guide-model or --negative-label" in caught.value.hint
    assert not (tmp_path / "out").exists()
    for number, left_out in enumerate(both):
        kept = {name: value for name, value in both.items() if name != left_out}
        drawn(run, tmp_path / str(number), **kept)


def test_a_guided_set_is_verified_with_its_guide_alone(run: Path, tmp_path: Path) -> None:
    drawn(run, tmp_path / "guided", guidance_scale=3.0, guide_model=f"{run}@{EARLY}")

    def check(**options: str) -> Summary:
        section = {"samples": str(tmp_path / "guided"), "model": str(run), "num_images": 1, **options}
        config = RunConfig.model_validate({"verify": section, "launch": {"device": "cpu"}})
        VERIFY.dry_run(config.verify, 0)  # type: ignore[misc]
        return verify.run(config, LocalWorld(), SilentConsole())

    with pytest.raises(ManifestMismatch, match=r"drawn with guide [0-9a-f]{12}, here is no guide") as refused:
        check()
    assert refused.value.hint == "give the --guide-model that led them"
    found = check(guide_model=f"{run}@{EARLY}")
    assert (found["ok"], found["num_equal"]) == (True, found["num_compared"])
