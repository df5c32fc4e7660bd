"""A rehearsal counts what a pass keeps, and leaves network, gradients and generators as they were."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from synfundus.distributed.world import LocalWorld
from synfundus.training.memory import rehearsal as module
from synfundus.training.memory.measuring import MemoryBudget, Need, find_micro_batch
from synfundus.training.memory.rehearsal import GPU_RESERVE, HOST_RESERVE, Rehearsal, budget_bytes

WIDTH = 64
CPU = torch.device("cpu")


class Chain(nn.Module):
    """Layers whose kept activations one can count by hand."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(depth))
        self.dropout = nn.Dropout(0.5)


class ChainStep(nn.Module):
    """A step module: a batch becomes a loss and sums."""

    def __init__(self, chain: Chain, channels_last: bool) -> None:
        super().__init__()
        self.chain = chain
        self.channels_last = channels_last

    def forward(self, batch: Mapping[str, Tensor], images_seen: int) -> tuple[Tensor, dict[str, Tensor]]:
        hidden = batch["x"]
        for layer in self.chain.layers:
            hidden = layer(hidden)
        return self.chain.dropout(hidden).mean() * images_seen, {}


def draw(size: int, device: torch.device = CPU) -> dict[str, Tensor]:
    return {"x": torch.ones(size, WIDTH, device=device)}


def rehearse(chain: Chain, *, device: torch.device = CPU) -> Rehearsal[Chain]:
    return Rehearsal(
        chain,
        make_step=ChainStep,
        draw=lambda size: draw(size, device),
        device=device,
        dtype=torch.float32,
        images_seen=1,
    )


def test_the_peak_grows_by_what_an_image_keeps_and_holds_the_gradients() -> None:
    depth, image = 8, 4 * WIDTH
    rehearsal = rehearse(Chain(depth))
    peaks = {size: rehearsal.peak_bytes(size, (True,)) for size in (512, 1024)}
    assert None not in peaks.values()
    grown = (int(peaks[1024] or 0) - int(peaks[512] or 0)) / 512
    # the input and each layer's output are kept; dropout and the backward pass add a few more
    assert depth * image <= grown <= (depth + 6) * image
    few = rehearsal.peak_bytes(1, (True,))
    assert few is not None
    assert few >= depth * 4 * WIDTH**2, "gradients count"


def test_a_rehearsal_leaves_no_trace() -> None:
    chain = Chain(3)
    chain.layers[0].weight.grad = torch.full((WIDTH, WIDTH), 7.0)
    before = {name: tensor.clone() for name, tensor in chain.state_dict().items()}
    state = torch.get_rng_state()
    rehearsal = rehearse(chain)
    assert rehearsal.peak_bytes(4, (True, False)) is not None
    assert rehearsal.seconds(4, True) > 0
    rehearsal.close()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in chain.state_dict().items())
    assert chain.layers[0].weight.grad is not None
    assert bool((chain.layers[0].weight.grad == 7.0).all())
    assert chain.layers[1].weight.grad is None


def test_memory_that_runs_out_is_an_answer_and_other_errors_are_not() -> None:
    class Full(ChainStep):
        def forward(self, batch: Mapping[str, Tensor], images_seen: int) -> tuple[Tensor, dict[str, Tensor]]:
            if len(batch["x"]) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            if len(batch["x"]) == 3:
                raise RuntimeError("no kernel image")
            return super().forward(batch, images_seen)

    rehearsal = Rehearsal(Chain(2), make_step=Full, draw=draw, device=CPU, dtype=torch.float32, images_seen=1)
    assert rehearsal.peak_bytes(8, (True,)) is None
    assert rehearsal.peak_bytes(4, (True,)) is not None, "after it, less is possible as before"
    with pytest.raises(RuntimeError, match="no kernel image"):
        rehearsal.peak_bytes(3, (True,))
    finding = find_micro_batch(
        16,
        peak=lambda size: rehearsal.peak_bytes(size, (True, False)),
        budget=MemoryBudget(2**40, 0, careful=False),
        world=LocalWorld(),
        where="train.loop.micro_batch_size",
    )
    assert finding.size == 4
    assert finding.refused == (8, Need(None, 2**40))


def test_the_greater_peak_of_two_layouts_counts() -> None:
    class Layouts(ChainStep):
        def forward(self, batch: Mapping[str, Tensor], images_seen: int) -> tuple[Tensor, dict[str, Tensor]]:
            copies = [batch["x"].clone() for _ in range(100 if self.channels_last else 1)]
            loss, sums = super().forward(batch, images_seen)
            return loss + 0.0 * copies[0].sum(), sums

    rehearsal = Rehearsal(Chain(1), make_step=Layouts, draw=draw, device=CPU, dtype=torch.float32, images_seen=1)
    greater = rehearsal.peak_bytes(64, (True,))
    assert greater is not None
    for layouts in ((True, False), (False, True)):
        assert rehearsal.peak_bytes(64, layouts) == greater
    assert int(rehearsal.peak_bytes(64, (False,)) or 0) < greater


def test_the_ranks_of_a_node_share_what_the_host_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_memory_bytes", lambda: 1000)
    assert budget_bytes(CPU, LocalWorld(local_size=4)) == int(1000 * (1 - HOST_RESERVE) / 4)


def test_a_gpu_keeps_a_reserve_of_all_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (700, 1000))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert budget_bytes(torch.device("cuda", 0), LocalWorld()) == int(700 - GPU_RESERVE * 1000)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_real_gpu_refuses_what_it_cannot_hold_and_gives_all_of_it_back() -> None:
    device = torch.device("cuda", 0)
    rehearsal = rehearse(Chain(8), device=device)
    budget = budget_bytes(device, LocalWorld())
    _, total = torch.cuda.mem_get_info(device)
    assert 0 < budget <= (1 - GPU_RESERVE) * total
    state = torch.cuda.get_rng_state(device)
    spare = 2**27  # cuBLAS keeps a workspace from its first product on
    assert rehearsal.peak_bytes(1, (True,)) is not None
    peaks = [rehearsal.peak_bytes(size, (True, False)) for size in (2**16, 2**18)]
    assert peaks[0] is not None
    assert peaks[1] is not None
    assert 3 * peaks[0] < peaks[1] <= 4 * peaks[0] + spare
    assert rehearsal.peak_bytes(total // (4 * WIDTH), (True,)) is None, "the input alone would fill the device"
    again = rehearsal.peak_bytes(2**16, (True, False))
    assert again is not None
    assert abs(again - peaks[0]) < spare, "nothing of it is left"
    rehearsal.close()
    assert torch.equal(torch.cuda.get_rng_state(device), state)
    assert torch.cuda.memory_reserved(device) < spare
