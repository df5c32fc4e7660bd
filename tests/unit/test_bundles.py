"""Bundled parameters: the same function, the same gradients, the same flat vector."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from synfundus.distributed.engine import BundledModule, plan_bundles
from synfundus.distributed.flat_layout import FlatLayout


@given(st.lists(st.integers(1, 50)), st.integers(1, 60))
def test_bundles_are_consecutive_and_none_of_several_is_too_large(sizes: list[int], limit: int) -> None:
    runs = plan_bundles(sizes, max_elements=limit)
    assert [number for run in runs for number in run] == list(range(len(sizes)))
    for run in runs:
        assert len(run) == 1 or sum(sizes[number] for number in run) <= limit
    for one, other in itertools.pairwise(runs):
        assert sum(sizes[number] for number in (*one, other[0])) > limit, "a bundle ends only where it is full"


class Network(nn.Module):
    """A shared weight, a bias, a buffer, a parameter that is not trained, and one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Linear(6, 6)
        self.two = nn.Linear(6, 6)
        self.two.weight = self.one.weight
        self.idle = nn.Parameter(torch.ones(3))
        self.fixed = nn.Parameter(torch.full((6,), 0.5), requires_grad=False)
        self.register_buffer("shift", torch.full((6,), 0.25))
        self.shift: Tensor

    def forward(self, inputs: Tensor) -> Tensor:
        """Return something that depends on every part but the idle one."""
        hidden = torch.tanh(self.one(inputs)) * self.fixed + self.shift
        return self.two(hidden).square().sum()  # type: ignore[no-any-return]


def trained(network: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in network.named_parameters() if p.requires_grad]


def test_gradients_are_those_of_the_parameters_end_to_end() -> None:
    plain, inner = Network(), Network()
    inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    bundled = BundledModule(inner, [trained(inner)], max_elements=44)
    assert [p.numel() for p in bundled.parameters()] == [3 + 36, 6 + 6], "idle and weight; both biases"
    loss, expected = bundled(inputs), plain(inputs)
    assert torch.equal(loss, expected)
    loss.backward()
    expected.backward()
    flat = torch.cat([p.grad for p in bundled.parameters() if p.grad is not None])
    wanted = [p.grad if p.grad is not None else torch.zeros_like(p) for _, p in trained(plain)]
    assert torch.equal(flat, torch.cat([grad.reshape(-1) for grad in wanted]))


def test_what_is_done_to_the_bundles_is_done_to_the_module() -> None:
    inner = Network()
    bundled = BundledModule(inner, [trained(inner)], max_elements=10_000)
    with torch.no_grad():
        for flat in bundled.parameters():
            flat.copy_(torch.arange(flat.numel()).float())
    bundled.bind()
    assert inner.one.weight is inner.two.weight
    names = [name for name, _ in trained(Network())]
    state = inner.state_dict()
    assert torch.equal(torch.cat([state[name].reshape(-1) for name in names]), torch.arange(51).float())
    assert inner.fixed.tolist() == [0.5] * 6, "what is not trained stays"


def test_recomputed_activations_see_the_bundles() -> None:
    inner, plain = Network(), Network()
    bundled = BundledModule(inner, [trained(inner)], max_elements=100)
    inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))

    def recomputing(network: Network) -> Tensor:
        loss: Tensor = torch.utils.checkpoint.checkpoint(network, inputs, use_reentrant=False)
        return loss

    bundled.bind()
    recomputing(inner).backward()
    plain(inputs).backward()
    (flat,) = bundled.parameters()
    assert flat.grad is not None
    wanted = [p.grad if p.grad is not None else torch.zeros_like(p) for _, p in trained(plain)]
    assert torch.equal(flat.grad, torch.cat([grad.reshape(-1) for grad in wanted]))


def test_groups_do_not_share_a_bundle() -> None:
    inner = Network()
    named = dict(trained(inner))
    groups = [[("one.weight", named["one.weight"])], [(name, named[name]) for name in ("one.bias", "two.bias", "idle")]]
    bundled = BundledModule(inner, groups, max_elements=10_000)
    assert [[p.numel() for p in group] for group in bundled.groups] == [[36], [15]]
    assert len(list(bundled.parameters())) == 2


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 1), nn.Flatten(), nn.Linear(5 * 36, 2))


def test_in_nhwc_order_the_weights_of_convolutions_are_nhwc_memory_with_the_same_gradients() -> None:
    plain, inner = convolutions(), convolutions()
    bundled = BundledModule(inner, [trained(inner)], max_elements=500, channels_last=True)
    images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    loss, expected = bundled(images).square().sum(), plain(images).square().sum()
    for mine, theirs in zip(inner, plain, strict=True):
        if isinstance(mine, nn.Conv2d) and isinstance(theirs, nn.Conv2d):
            assert mine.weight.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(mine.weight, theirs.weight)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    flat = torch.cat([p.grad for p in bundled.parameters() if p.grad is not None])
    grads = {name: p.grad for name, p in trained(plain) if p.grad is not None}
    layout = FlatLayout.of(
        [[(name, grad.shape) for name, grad in grads.items()]], channels_last={"0.weight", "1.weight"}
    )
    wanted = [one.flatten(grads[one.name]) for one in layout.groups[0].parameters]
    torch.testing.assert_close(flat, torch.cat(wanted))
