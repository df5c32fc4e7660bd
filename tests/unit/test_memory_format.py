"""NHWC is taken where it wins, on pairs in which slow spells of a machine cancel out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synfundus.training.memory.measuring import (
    LEAST_GAIN,
    MOST_PAIRS,
    MOST_SECONDS,
    choose_format,
    measure_format,
    timed_images,
)


class Machine:
    """A clock, and steps that take as long as told; ``slow`` multiplies the steps of a spell."""

    def __init__(
        self, contiguous_s: float, channels_last_s: float, *, slow: tuple[int, int, float] = (0, 0, 1.0)
    ) -> None:
        self.now = 100.0
        self.order: list[bool] = []
        self._seconds = {False: contiguous_s, True: channels_last_s}
        self._slow = slow

    def clock(self) -> float:
        return self.now

    def step_s(self, layout: bool) -> float:
        first, end, times = self._slow
        seconds = self._seconds[layout] * (times if first <= len(self.order) < end else 1.0)
        self.order.append(layout)
        self.now += seconds
        return seconds


@pytest.mark.parametrize(("channels_last_s", "wins"), [(0.005, True), (0.00995, False), (0.01, False), (0.02, False)])
def test_nhwc_is_taken_where_it_wins_and_not_for_a_hair(channels_last_s: float, wins: bool) -> None:
    machine = Machine(0.01, channels_last_s)
    choice = measure_format(machine.step_s, clock=machine.clock)
    assert choice.channels_last is wins
    assert choice.pairs == MOST_PAIRS
    assert choice.contiguous_s == pytest.approx(0.01)
    assert choice.channels_last_s == pytest.approx(channels_last_s)


@given(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=15), st.floats(0.1, 2.0))
def test_spells_that_slow_both_halves_of_a_pair_change_nothing(spells: list[float], ratio: float) -> None:
    choice = choose_format([(spell, spell * ratio) for spell in spells])
    assert choice.channels_last is (ratio < 1.0 - LEAST_GAIN) or ratio == pytest.approx(1.0 - LEAST_GAIN)


def test_the_two_take_turns_and_neither_always_goes_first() -> None:
    machine = Machine(0.01, 0.01)
    measure_format(machine.step_s, clock=machine.clock)
    pairs = [tuple(machine.order[start : start + 2]) for start in range(0, len(machine.order), 2)]
    assert set(pairs) == {(False, True), (True, False)}


def test_what_warms_up_does_not_count_unless_it_used_up_the_time() -> None:
    machine = Machine(0.01, 0.005, slow=(0, 2, 50.0))
    choice = measure_format(machine.step_s, clock=machine.clock)
    assert choice.contiguous_s == pytest.approx(0.01)
    sluggish = Machine(3.0, 2.0)
    choice = measure_format(sluggish.step_s, clock=sluggish.clock)
    assert (choice.pairs, choice.channels_last) == (1, True)


@given(st.integers(1, 512), st.floats(1e-4, 100.0))
def test_a_measurement_ends_in_seconds(micro_batch: int, one_image_s: float) -> None:
    images = timed_images(micro_batch, one_image_s=one_image_s)
    assert 1 <= images <= micro_batch
    machine = Machine(images * one_image_s, images * one_image_s)
    measure_format(machine.step_s, clock=machine.clock)
    assert machine.now - 100.0 <= MOST_SECONDS + 2 * images * one_image_s
    assert images == 1 or 8 * images * one_image_s <= MOST_SECONDS * 1.001


def test_the_choice_is_said_with_both_figures() -> None:
    said = choose_format([(0.02, 0.0145)]).describe()
    assert said == "channels_last on: a step takes 14.5 ms with, 20.0 ms without (median of 1)"
