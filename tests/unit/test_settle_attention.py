"""The attention kernel of a training: measured on a GPU, remembered by the run, the same on all ranks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import Talk

from synfundus.artifacts.run_folder import RunFolder
from synfundus.config.machine import LaunchConfig
from synfundus.config.training import LoopConfig
from synfundus.distributed.world import LocalWorld
from synfundus.models.attention import AttentionShape, MeasuredAttention, math_attention, sdpa_attention
from synfundus.models.unet import build_unet
from synfundus.stages import measured_start
from synfundus.stages.measured_start import settle_attention

SHAPES = (AttentionShape(64, 64, 2, 8, layers=3),)
GPU = LocalWorld(device="cuda")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What the measurement was asked for; in the place of a GPU it answers that plain products are the fastest."""
    asked: list[dict[str, Any]] = []

    def measure(shapes: Any, **rest: Any) -> MeasuredAttention:
        asked.append({"shapes": shapes, **rest})
        return MeasuredAttention({"sdpa": 2.0, "math": 1.0}, {"xformers": "not installed"})

    monkeypatch.setattr(measured_start, "measure_attention", measure)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA H100")
    yield asked
    torch.use_deterministic_algorithms(False)


def settle(folder: Path, *, attention: Any = "auto", world: LocalWorld = GPU, **loop: Any) -> tuple[Any, str]:
    """Return the kernel in the network and what was said."""
    unet = build_unet(
        sample_size=8, latent_channels=4, block_out_channels=(16, 16), layers_per_block=1,
        attention_levels=(False, True), attention_head_dim=8, cross_attention_dim=16, pooled_dim=16,
        norm_num_groups=4, transformer_layers_per_block=1, dropout=0.0, scale_shift_norm=False,
    )  # fmt: skip
    talk = Talk()
    settle_attention(
        unet,
        LoopConfig(precision="bf16", **loop),
        LaunchConfig(attention=attention),
        SHAPES,
        directory=RunFolder(str(folder), kind="diffusion", identity={}, config={}, world=LocalWorld()),
        world=world,
        console=talk,
    )
    (kernel,) = {processor.kernel for processor in unet.attn_processors.values()}
    return kernel, "\n".join(talk.lines)


def test_it_is_measured_on_the_shapes_and_in_the_batch_of_the_run(tmp_path: Path, asked: list[dict[str, Any]]) -> None:
    kernel, said = settle(tmp_path / "run", micro_batch_size=16)
    assert kernel is math_attention
    assert "math 1 ms, sdpa 2 ms; xformers: not installed" in said
    device = torch.device("cuda", 0)
    assert asked == [{"shapes": SHAPES, "batch_size": 16, "dtype": torch.bfloat16, "device": device}]
    stored = json.loads((tmp_path / "run" / "machine.json").read_text())["attention"]
    assert stored == {
        "backend": "math",
        "device": "NVIDIA H100",
        "ms": {"sdpa": 2.0, "math": 1.0},
        "obstacles": {"xformers": "not installed"},
    }


def test_a_resumed_run_keeps_its_kernel_and_its_other_measurements(tmp_path: Path, asked: list[dict[str, Any]]) -> None:
    settle(tmp_path / "run")
    path = tmp_path / "run" / "machine.json"
    document = json.loads(path.read_text())
    document["attention"]["backend"] = "sdpa"
    path.write_text(json.dumps({**document, "channels_last": {"channels_last": True}}))
    kernel, said = settle(tmp_path / "run")
    assert kernel is sdpa_attention
    assert "as this run began" in said
    again = json.loads(path.read_text())
    assert again["attention"]["backend"] == "sdpa"
    assert again["channels_last"] == {"channels_last": True}


@pytest.mark.parametrize("deterministic", [False, True])
def test_nothing_is_measured_where_there_is_nothing_to_choose(
    tmp_path: Path, asked: list[dict[str, Any]], deterministic: bool
) -> None:
    if deterministic:  # a faster kernel whose backward pass adds in another order is no choice
        torch.use_deterministic_algorithms(True)
        assert settle(tmp_path / "run")[0] is sdpa_attention
    else:
        assert settle(tmp_path / "run", world=LocalWorld())[0] is math_attention
        assert settle(tmp_path / "run", attention="sdpa")[0] is sdpa_attention
    assert asked == []
    assert not (tmp_path / "run" / "machine.json").exists()
