"""Do stored moments decode to the photographs they came from?"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import Talk
from tiny_sets import tiny_config, write_phantom_set

from synfundus.artifacts.autoencoder_folder import find_autoencoder, open_autoencoder
from synfundus.distributed.world import LocalWorld
from synfundus.errors import DataError, ManifestMismatch, SynfundusError
from synfundus.stages.encode_latents import job as encode_latents
from synfundus.stages.verify_latents import job as verify_latents
from synfundus.storage.manifest import ShardSet
from synfundus.telemetry.console import SilentConsole


def verify(latents: str, vae: Path, **section: Any) -> dict[str, Any]:
    given = {"latents": latents, "vae": str(vae), "num_samples": 12, "min_psnr_db": 10.0, **section}
    return verify_latents.run(tiny_config({"verify_latents": given}), LocalWorld(), SilentConsole())


def test_latents_decode_to_their_images(latent_set: ShardSet, vae_run: Path) -> None:
    found = verify(latent_set.url, vae_run)
    assert found["samples"] == 12
    assert 15.0 < found["worst_psnr_db"] <= found["psnr_db"] < 60.0
    assert found["vessel_images"] > 0
    assert -1 <= found["vessel_correlation"] <= 1
    assert found["energy_16_32"] > 0
    assert found == verify(latent_set.url, vae_run), "the choice of samples is keyed by the seed"


def test_lost_vessels_are_warned_of(latent_set: ShardSet, vae_run: Path) -> None:
    talk = Talk()
    given = {"latents": latent_set.url, "vae": str(vae_run), "num_samples": 12, "min_psnr_db": 10.0}
    found = verify_latents.run(tiny_config({"verify_latents": given}), LocalWorld(), talk)
    assert found["vessel_correlation"] < 0.5
    assert any(line.startswith("warning: vessels are lost") for line in talk.lines)


def test_images_that_lie_elsewhere_by_now_are_named_on_the_command_line(
    latent_set: ShardSet, image_set: ShardSet, vae_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(image_set.url, tmp_path / "moved")
    (tmp_path / "moved" / "train" / "000000.tar").unlink()
    with pytest.raises(SynfundusError, match=r"moved/train/000000\.tar"):
        verify(latent_set.url, vae_run, data=str(tmp_path / "moved"), num_samples=10_000)


def test_more_samples_than_there_are_means_all(latent_set: ShardSet, vae_run: Path) -> None:
    assert verify(latent_set.url, vae_run, num_samples=10_000)["samples"] == 72


def test_a_psnr_below_the_limit_fails(latent_set: ShardSet, vae_run: Path) -> None:
    with pytest.raises(DataError, match=r"below verify_latents\.min_psnr_db = 80"):
        verify(latent_set.url, vae_run, min_psnr_db=80.0)


def test_another_autoencoder_is_refused_naming_both(latent_set: ShardSet, vae_run: Path, tmp_path: Path) -> None:
    autoencoder, mine = open_autoencoder(
        find_autoencoder(str(vae_run)), device=torch.device("cpu"), dtype=torch.float32
    )
    with torch.no_grad():
        next(autoencoder.network.parameters()).add_(0.01)
    autoencoder.save_pretrained(tmp_path / "vae")
    _, theirs = open_autoencoder(tmp_path / "vae", device=torch.device("cpu"), dtype=torch.float32)
    with pytest.raises(ManifestMismatch, match=f"{mine[:12]}.*{theirs[:12]}"):
        verify(latent_set.url, tmp_path / "vae")


def test_another_image_set_at_the_place_of_the_first_is_refused(
    image_set: ShardSet, vae_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(image_set.url, tmp_path / "images")
    given = {"data": str(tmp_path / "images"), "vae": str(vae_run), "out": str(tmp_path / "latents")}
    encode_latents.run(tiny_config({"encode_latents": given}), LocalWorld(), SilentConsole())
    verify(str(tmp_path / "latents"), vae_run)
    shutil.rmtree(tmp_path / "images")
    other = write_phantom_set(tmp_path / "images", seed=8)
    with pytest.raises(ManifestMismatch, match=f"{image_set.identity[:12]}.*{other.identity[:12]}"):
        verify(str(tmp_path / "latents"), vae_run)


def test_latents_that_were_exchanged_are_noticed(latent_set: ShardSet, vae_run: Path, tmp_path: Path) -> None:
    shutil.copytree(latent_set.url, tmp_path / "latents")
    manifest = tmp_path / "latents" / "manifest.json"
    document = json.loads(manifest.read_text())
    shards = [shard for shard in document["shards"] if shard["split"] == "train"]
    for name in ("000000.tar", "000000.idx.npz"):
        (tmp_path / "latents" / "train" / name).write_bytes(
            (tmp_path / "latents" / "train" / name.replace("000000", "000002")).read_bytes()
        )
    assert shards[0]["index_sha256"] != shards[2]["index_sha256"]
    with pytest.raises(DataError, match="does not match the manifest"):
        verify(str(tmp_path / "latents"), vae_run, num_samples=200)
