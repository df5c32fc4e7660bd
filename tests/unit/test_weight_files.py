"""Weights come from safetensors, whole, in shards or in half precision, and from nothing else."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_models import kl_f8
from safetensors.torch import save_file

from synfundus.errors import CheckpointError
from synfundus.models.autoencoder import LatentAutoencoder, fingerprint, identity
from synfundus.models.weight_files import WEIGHTS_NAME, find_weights, read_weights

HOW: dict[str, dict[str, Any]] = {
    "whole": {},
    "shards": {"max_shard_size": "20KB"},
    "variant": {"variant": "fp16"},
    "variant in shards": {"variant": "fp16", "max_shard_size": "20KB"},
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_all_tensors_are_read_in_fp32_however_they_are_stored(how: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = kl_f8(4).to(dtype)
    model.save_pretrained(tmp_path, **HOW[how])
    files = find_weights(tmp_path, kind="autoencoder")
    assert (len(files.names) > 1) == ("shards" in how)
    tensors = read_weights(tmp_path, files)
    wanted = model.state_dict()
    assert set(tensors) == set(wanted)
    assert all(tensors[name].dtype == torch.float32 for name in wanted)
    assert all(torch.equal(tensors[name], wanted[name].float()) for name in wanted)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_autoencoder_has_one_identity_however_its_weights_are_stored_and_copied(
    how: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    kl_f8(4).half().to(dtype).save_pretrained(tmp_path / "foreign", **HOW[how])
    kl_f8(4).half().float().save_pretrained(tmp_path / "plain")
    autoencoder = LatentAutoencoder.from_pretrained(tmp_path / "foreign")
    autoencoder.save_pretrained(tmp_path / "copy")
    own = identity(autoencoder, tmp_path / "foreign")
    assert own == fingerprint(tmp_path / "copy") == fingerprint(tmp_path / "plain")
    assert own == identity(LatentAutoencoder.from_pretrained(tmp_path / "copy"), tmp_path / "copy")


def test_a_config_of_another_version_is_copied_word_for_word(tmp_path: Path) -> None:
    """Keys that this version of diffusers would add must not make another autoencoder of a copy."""
    kl_f8(4).save_pretrained(tmp_path / "old")
    path = tmp_path / "old" / "config.json"
    config = json.loads(path.read_text())
    for name in ("force_upcast", "mid_block_add_attention", "use_quant_conv", "latents_mean"):
        del config[name]
    path.write_text(json.dumps({**config, "_name_or_path": "somewhere"}))
    autoencoder = LatentAutoencoder.from_pretrained(tmp_path / "old")
    autoencoder.save_pretrained(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text()) == config
    assert identity(autoencoder, tmp_path / "old") == fingerprint(tmp_path / "new") == fingerprint(tmp_path / "old")


def test_old_names_of_attention_layers_are_read_and_leave_the_identity(tmp_path: Path) -> None:
    """The autoencoders of Stable Diffusion 1 have them."""
    model = kl_f8(4)
    model.save_pretrained(tmp_path / "new")
    model.save_pretrained(tmp_path / "old")
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in model.state_dict().items():
        for new, old in names.items():
            name = name.replace(f".{new}.", f".{old}.")
        tensors[name] = tensor
    save_file(tensors, tmp_path / "old" / WEIGHTS_NAME, metadata={"format": "pt"})
    assert any(".proj_attn." in name for name in tensors)
    autoencoder = LatentAutoencoder.from_pretrained(tmp_path / "old")
    assert identity(autoencoder, tmp_path / "old") == fingerprint(tmp_path / "new")


def test_pickled_weights_are_refused_and_never_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
            return (Path.touch, (tmp_path / "gone-off",))

    kl_f8(4).save_pretrained(tmp_path)
    (tmp_path / WEIGHTS_NAME).unlink()
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.bin, a pickle") as caught:
        LatentAutoencoder.from_pretrained(tmp_path)
    assert "save_pretrained" in caught.value.hint
    assert not (tmp_path / "gone-off").exists()


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"weight_map": {"a": "../../elsewhere.safetensors"}}, "no safetensors file beside it"),
        ({"weight_map": {"a": "model.bin"}}, "no safetensors file beside it"),
        ({"weight_map": {"a": "away.safetensors"}}, "away.safetensors, which is missing"),
        ({"weight_map": {}}, "names no file"),
        ({"weight_map": 3}, "cannot be read"),
        ([1], "cannot be read"),
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(document: Any, words: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=words):
        find_weights(tmp_path, kind="U-Net")


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    """diffusers fills them with random numbers and goes on."""
    model = kl_f8(4)
    model.save_pretrained(tmp_path)
    tensors = {name: one for name, one in model.state_dict().items() if name != "encoder.conv_in.weight"}
    save_file(tensors, tmp_path / WEIGHTS_NAME, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 weights do not match the config, first encoder\.conv_in\.weight"):
        LatentAutoencoder.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_class_name": "AutoencoderTiny"}, "'AutoencoderTiny', expected 'AutoencoderKL' or 'AutoencoderDC'"),
        ({"_class_name": None}, "None"),
        ({"in_channels": 4}, "works on 4 channels, not on RGB images"),
    ],
)
def test_autoencoders_that_cannot_be_used_are_refused_with_the_reason(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    kl_f8(4).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(CheckpointError, match=words):
        LatentAutoencoder.from_pretrained(tmp_path)
