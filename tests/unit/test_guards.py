"""When a loss is a spike."""

from __future__ import annotations

import pytest

from synfundus.training.guards import GuardSettings, is_spike, remember

GUARDS = GuardSettings(on_nonfinite="stop", on_spike="skip", spike_factor=3.0, spike_window_steps=4, max_rewinds=1)


@pytest.mark.parametrize(
    ("loss", "recent", "spike"),
    [
        (100.0, [], False),
        (100.0, [1.0], False),
        (3.1, [1.0, 1.0], True),
        (3.0, [1.0, 1.0], False),
        (3.1, [1.0, 1.0, 9.0], True),
        (float("nan"), [1.0, 1.0], False),
        (float("inf"), [1.0, 1.0], False),
    ],
)
def test_a_spike_is_far_above_the_median_of_enough_others(loss: float, recent: list[float], spike: bool) -> None:
    assert is_spike(loss, recent, GUARDS) is spike


def test_the_memory_has_an_end_and_holds_finite_losses() -> None:
    recent: list[float] = []
    for loss in (1.0, 2.0, float("nan"), 3.0, 4.0, 5.0):
        recent = remember(loss, recent, GUARDS)
    assert recent == [2.0, 3.0, 4.0, 5.0]
