import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from synfundus.errors import DataError, NumericalError
from synfundus.evaluation.fit import FitRecipe, fit
from synfundus.seeding import keyed_generator

SET_SIZE = 7


def recipe(num_samples: int, batch_size: int) -> FitRecipe:
    return FitRecipe(num_samples=num_samples, batch_size=batch_size, lr=0.05, weight_decay=0.1)


def linear() -> nn.Linear:
    network = nn.Linear(3, 1)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[0.5, -0.25, 1.0]]))
        network.bias.zero_()
    return network


def shown(
    num_samples: int,
    batch_size: int,
    *,
    set_size: int = SET_SIZE,
    seed: int = 0,
    purpose: str = "judge",
    loss_at: Callable[[int], float] = float,
) -> Tensor:
    """Return (sample, position) in the order in which a fit shows them."""
    network = linear()
    seen: list[Tensor] = []

    def batch_loss(samples: NDArray[np.int64], positions: NDArray[np.int64]) -> Tensor:
        assert network.training
        seen.append(torch.from_numpy(np.stack([samples, positions], axis=1)))
        return network.bias.sum() * loss_at(int(positions[0]))

    fit(
        network,
        batch_loss,
        set_size=set_size,
        recipe=recipe(num_samples, batch_size),
        seed=seed,
        purpose=purpose,
        on_step=lambda count, loss: None,
    )
    assert not network.training
    return torch.cat(seen)


def test_every_epoch_shows_every_sample_once_and_the_batch_size_does_not_move_the_order() -> None:
    one, other = shown(42, 1), shown(42, 3)
    assert torch.equal(one, other)
    assert torch.equal(one[:, 1], torch.arange(42))
    epochs = one[:, 0].reshape(-1, SET_SIZE)
    assert torch.equal(epochs.sort(dim=1).values, torch.arange(SET_SIZE).expand(6, -1))
    assert not torch.equal(epochs[0], epochs[1])


def test_the_order_is_that_of_the_judges_first_loop() -> None:
    """Stored numbers: another order is another judge, and figures that were printed before could not be compared."""
    assert shown(15, 5)[:, 0].tolist() == [0, 6, 1, 2, 5, 3, 4, 0, 2, 6, 3, 4, 5, 1, 0]


def test_orders_differ_by_seed_and_purpose() -> None:
    orders = [
        shown(21, 7, seed=seed, purpose=purpose)[:, 0] for seed, purpose in ((0, "judge"), (1, "judge"), (0, "a"))
    ]
    assert not any(torch.equal(orders[a], orders[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize(("num_samples", "batch_size", "steps"), [(64, 4, 16), (66, 4, 16), (3, 4, 1), (40, 100, 5)])
def test_weights_are_those_of_the_plain_loop_bit_for_bit(num_samples: int, batch_size: int, steps: int) -> None:
    """The loop as torch's own scheduler and optimizer write it: warm-up over a tenth, cosine to 0."""
    set_size = 8
    inputs = torch.from_numpy(keyed_generator(0, "inputs").standard_normal((set_size, 3), dtype=np.float32))
    batch = min(batch_size, set_size)
    total = max(num_samples, batch)

    def loss_of(network: nn.Module, samples: NDArray[np.int64] | Tensor) -> Tensor:
        x = inputs[samples]
        loss: Tensor = (network(x) - x.sum(dim=1, keepdim=True)).square().mean()
        return loss

    fitted, losses = linear(), list[float]()
    fit(
        fitted,
        lambda samples, positions: loss_of(fitted, samples),
        set_size=set_size,
        recipe=recipe(num_samples, batch_size),
        seed=4,
        purpose="judge",
        on_step=lambda count, loss: losses.append(loss),
    )

    def factor(step: int) -> float:
        progress = (step + 1) * batch / total
        return progress / 0.1 if progress < 0.1 else 0.5 * (1 + math.cos(math.pi * (progress - 0.1) / (1 - 0.1)))

    plain = linear()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.05, weight_decay=0.1)
    schedule = LambdaLR(optimizer, factor)
    order = shown(num_samples, batch_size, set_size=set_size, seed=4)[:, 0].reshape(-1, batch)
    for samples, loss_there in zip(order, losses, strict=True):
        optimizer.zero_grad()
        loss = loss_of(plain, samples)
        loss.backward()
        optimizer.step()
        schedule.step()
        assert float(loss.detach()) == loss_there
    assert len(losses) == steps
    assert torch.equal(plain.weight, fitted.weight)
    assert torch.equal(plain.bias, fitted.bias)
    assert torch.equal(fitted.weight, linear().weight) == (steps == 1), (
        "the cosine ends at 0: an only step stands still"
    )


def test_nothing_to_fit_on_and_a_loss_that_is_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match="no samples"):
        shown(8, 4, set_size=0)
    with pytest.raises(NumericalError, match="nan after 4 samples"):
        shown(8, 4, loss_at=lambda position: math.nan if position >= 4 else 1.0)
