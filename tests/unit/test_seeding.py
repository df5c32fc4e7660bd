"""Draws are a pure function of (seed, purpose, index)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synfundus.seeding import derive_key, keyed_generator, keyed_normal, keyed_uniform

seeds = st.integers(min_value=0, max_value=2**63 - 1)
indices = st.integers(min_value=0, max_value=2**100)


@given(seed=seeds, index=indices)
def test_the_same_key_gives_the_same_numbers(seed: int, index: int) -> None:
    first = keyed_generator(seed, "noise", index=index).standard_normal(5)
    assert np.array_equal(first, keyed_generator(seed, "noise", index=index).standard_normal(5))


@given(seed=seeds, index=indices, step=st.integers(min_value=1, max_value=2**60))
def test_another_index_purpose_or_seed_gives_other_numbers(seed: int, index: int, step: int) -> None:
    words = keyed_generator(seed, "noise", index=index).integers(2**63, size=4)
    for other in (
        keyed_generator(seed, "noise", index=index + step),
        keyed_generator(seed, "timestep", index=index),
        keyed_generator(seed + 1, "noise", index=index),
    ):
        assert not np.intersect1d(words, other.integers(2**63, size=4)).size


def test_streams_of_neighbouring_indices_do_not_overlap() -> None:
    streams = [keyed_generator(3, "noise", index=index).integers(2**63, size=4096) for index in range(32)]
    words = np.concatenate(streams)
    assert len(np.unique(words)) == len(words)


def test_the_parts_of_a_purpose_are_kept_apart() -> None:
    assert derive_key(1, "a", "bc") != derive_key(1, "ab", "c")
    assert derive_key(1, 23) != derive_key(12, 3)
    assert derive_key(0, "order", 1) == derive_key(0, "order", "1")


@given(seed=seeds, wanted=st.lists(indices, min_size=1, max_size=6))
def test_draws_over_indices_are_those_of_each_index_alone(seed: int, wanted: list[int]) -> None:
    # an odd number of 32-bit draws leaves half a word behind, which must not reach the next index
    normal, uniform = keyed_normal(seed, "noise", wanted, (3,)), keyed_uniform(seed, "drop", wanted, count=3)
    for row, index in enumerate(wanted):
        alone = keyed_generator(seed, "noise", index=index).standard_normal(3, dtype=np.float32)
        assert np.array_equal(normal[row], alone)
        assert np.array_equal(uniform[row], keyed_generator(seed, "drop", index=index).random(3))


@given(seed=seeds, wanted=st.lists(st.integers(0, 2**62), min_size=1, max_size=6))
def test_a_draw_does_not_depend_on_what_is_drawn_with_it(seed: int, wanted: list[int]) -> None:
    together = keyed_normal(seed, "noise", wanted, (2, 3))
    uniform = keyed_uniform(seed, "drop", wanted, count=3)
    assert together.shape == (len(wanted), 2, 3)
    assert together.dtype == np.float32
    for row, index in enumerate(wanted):
        assert np.array_equal(together[row], keyed_normal(seed, "noise", [index], (2, 3))[0])
        assert np.array_equal(uniform[row], keyed_uniform(seed, "drop", [index], count=3)[0])


def test_drawing_touches_no_global_generator() -> None:
    before = np.random.get_state()[1].copy()  # type: ignore[index]
    keyed_normal(0, "noise", range(4), (3,))
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[index]


def test_normal_and_uniform_draws_over_indices_have_their_moments() -> None:
    normal = keyed_normal(11, "noise", range(4000), (4,)).astype(np.float64)
    uniform = keyed_uniform(11, "drop", range(4000), count=4)
    assert abs(normal.mean()) < 0.03
    assert abs(normal.std() - 1.0) < 0.03
    assert abs(uniform.mean() - 0.5) < 0.01
    assert abs(uniform.std() - 12**-0.5) < 0.01
    assert abs(np.corrcoef(normal[:-1, 0], normal[1:, 0])[0, 1]) < 0.06


class TestStoredNumbers:
    """A run must go on with the numbers it began with: another numpy or another hash would break that silently."""

    def test_keys(self) -> None:
        assert derive_key(0, "noise") == 265622222198729241956167634751586969553
        assert derive_key(7, "order", 3) == 73710481015740455619317859263928567391

    def test_normal_draws(self) -> None:
        expected = [
            [-0.8843145966529846, -1.0901005268096924, -0.08738560974597931],
            [-0.7025396227836609, 1.6981500387191772, -1.4145855903625488],
            [1.1753870248794556, -0.13196995854377747, 0.3013560473918915],
        ]
        assert keyed_normal(0, "noise", [0, 1, 10**9], (3,)).tolist() == expected

    def test_uniform_draws(self) -> None:
        expected = [
            [0.6604474337874381, 0.43685336241104955],
            [0.6457263007570124, 0.225901913710581],
            [0.799295480859742, 0.4045830594103379],
        ]
        assert keyed_uniform(5, "timestep", [0, 1, 2**40], 2).tolist() == expected

    @pytest.mark.parametrize("method", ["permutation", "shuffle"])
    def test_permutations(self, method: str) -> None:
        generator = keyed_generator(1, "order", "abc", index=4)
        order = np.arange(8)
        order = generator.permutation(8) if method == "permutation" else (generator.shuffle(order), order)[1]
        assert order.tolist() == [5, 3, 6, 0, 1, 4, 2, 7]
