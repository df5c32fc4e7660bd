from __future__ import annotations

import io
import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from synfundus.phantoms.draw import draw_phantom
from synfundus.photographs.field_of_view import find_field_of_view
from synfundus.photographs.near_duplicates import (
    HASH_BITS,
    MIN_SIMILARITY,
    SEARCH_STEPS,
    Groups,
    NearDuplicate,
    PerceptualHash,
    groups_of,
    hash_to_bytes,
    mirrored_hashes,
    near_duplicates,
    perceptual_hash,
)
from synfundus.photographs.transforms import crop_to_field_of_view
from synfundus.seeding import keyed_generator

Pixels = NDArray[np.uint8]
Change = Callable[[Pixels], Pixels]


def photograph(index: int, size: int = 96) -> Pixels:
    return draw_phantom(seed=21, index=index, image_size_px=size).pixels


def cropped(pixels: Pixels, size: int = 64) -> Pixels:
    return crop_to_field_of_view(pixels, find_field_of_view(pixels), size)


def as_jpeg(pixels: Pixels, quality: int = 75) -> Pixels:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream).convert("RGB"))


def resized(pixels: Pixels, size: int) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS))


def shifted(pixels: Pixels, right: int, down: int) -> Pixels:
    return np.roll(np.pad(pixels, ((2, 2), (2, 2), (0, 0))), (down, right), axis=(0, 1))


CHANGES: dict[str, Change] = {
    "recompressed": as_jpeg,
    "smaller": lambda pixels: resized(pixels, 150),
    "larger": lambda pixels: resized(pixels, 260),
    "brighter": lambda pixels: np.clip(pixels * 1.1, 0, 255).astype(np.uint8),
    "darker": lambda pixels: (pixels * 0.85).astype(np.uint8),
    "shifted": lambda pixels: shifted(pixels, 2, -1),
    "all of it": lambda pixels: as_jpeg(resized(shifted((pixels * 0.95).astype(np.uint8), -1, 1), 170)),
}


def table_of(hashed: list[PerceptualHash]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    hashes = np.frombuffer(b"".join(hash_to_bytes(one.bits) for one in hashed), dtype=np.uint8)
    return hashes.reshape(-1, HASH_BITS // 8), np.stack([one.thumbnail for one in hashed])


def search(hashed: list[PerceptualHash]) -> list[NearDuplicate]:
    hashes, thumbnails = table_of(hashed)
    return near_duplicates(hashes, lambda rows: thumbnails[rows])


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_copy_is_found_among_others(change: Change) -> None:
    originals = [photograph(index, 200) for index in range(12)]
    hashed = [perceptual_hash(cropped(pixels)) for pixels in originals]
    hashed += [perceptual_hash(cropped(change(pixels))) for pixels in originals]
    found = {(pair.first, pair.second) for pair in search(hashed)}
    expected = {(index, index + 12) for index in range(12)}
    assert found <= expected
    assert len(found) >= 11


def test_a_mirrored_copy_is_found_and_called_mirrored() -> None:
    originals = [cropped(photograph(index, 200)) for index in range(6)]
    hashed = [perceptual_hash(pixels) for pixels in (*originals, np.ascontiguousarray(originals[3][:, ::-1]))]
    (pair,) = search(hashed)
    assert (pair.first, pair.second, pair.mirrored) == (3, 6, True)
    assert pair.similarity > MIN_SIMILARITY


def test_mirroring_a_picture_mirrors_its_hash() -> None:
    pixels = cropped(photograph(2, 200))
    plain, mirrored = table_of([perceptual_hash(pixels), perceptual_hash(np.ascontiguousarray(pixels[:, ::-1]))])[0]
    different = int(np.bitwise_count(mirrored_hashes(plain[None])[0] ^ mirrored).sum())
    assert different <= 4  # rounding turns coefficients next to nothing


def test_the_black_surround_is_out_of_play() -> None:
    """Two flat discs differ in nothing but their surround; half a surround more changes nothing of a retina."""
    pixels = cropped(photograph(1, 200))
    masked = pixels.copy()
    grid = np.arange(64) + 0.5 - 32
    masked[np.hypot(grid[:, None], grid) > 0.95 * 32] = 0
    left, right = perceptual_hash(pixels), perceptual_hash(masked)
    assert int.bit_count(left.bits ^ right.bits) <= 6


def test_a_picture_with_nothing_to_recognise_is_compared_with_nothing() -> None:
    flat = np.zeros((64, 64, 3), dtype=np.uint8)
    grid = np.arange(64) + 0.5 - 32
    flat[np.hypot(grid[:, None], grid) < 31] = (90, 40, 20)
    assert perceptual_hash(flat).bits == 0
    assert perceptual_hash(np.zeros_like(flat)).bits == 0
    assert search([perceptual_hash(flat), perceptual_hash(flat)]) == []


@pytest.mark.parametrize("number", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_two_eyes_look_the_same(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    hashed, eyes = [], []
    for index in range(number):
        phantom = draw_phantom(seed=21, index=index, image_size_px=96)
        hashed.append(perceptual_hash(cropped(phantom.pixels)))
        eyes.append((phantom.patient_id, phantom.true_labels["eye_side"]))
    # two sittings of one eye may be as alike as copies: they belong together anyway
    found = [pair for pair in search(hashed) if eyes[pair.first] != eyes[pair.second]]
    if number >= 2000:
        with capsys.disabled():
            wrong = {row for pair in found for row in (pair.first, pair.second)}
            line = {"name": "distinct_eyes_alone", "passed": number - len(wrong), "of": number}
            print("\n" + json.dumps(line))
    assert found == []
    assert len({one.bits for one in hashed}) == number


def test_pairs_across_two_sets_and_progress() -> None:
    hashed = [perceptual_hash(cropped(photograph(index))) for index in range(10)]
    ours, theirs = table_of(hashed[:6]), table_of([hashed[8], hashed[2], hashed[9]])
    steps = []
    found = near_duplicates(
        ours[0],
        lambda rows: ours[1][rows],
        others=theirs[0],
        other_thumbnails=lambda rows: theirs[1][rows],
        advance=lambda: steps.append(1),
    )
    assert [(pair.first, pair.second) for pair in found] == [(2, 1)]
    assert len(steps) == SEARCH_STEPS


def noisy(hashes: NDArray[np.uint8], flips: int, seed: int) -> NDArray[np.uint8]:
    bits = np.unpackbits(hashes, axis=1)
    generator = keyed_generator(seed, "test-noise")
    for row in bits:
        row[generator.choice(HASH_BITS, flips, replace=False)] ^= 1
    return np.packbits(bits, axis=1)


@pytest.mark.parametrize(("flips", "least"), [(10, 1.0), (25, 0.99)])
def test_hashes_with_few_different_bits_meet(flips: int, least: float) -> None:
    generator = keyed_generator(3, "test-hashes")
    first = generator.integers(0, 256, (1500, HASH_BITS // 8), dtype=np.uint8)
    hashes = np.concatenate([first, noisy(first, flips, 5)])
    copies = keyed_generator(4, "test-copies").integers(0, 256, (1500, 32, 32), dtype=np.uint8)
    thumbnails = np.concatenate([copies, copies])
    found = {(pair.first, pair.second) for pair in near_duplicates(hashes, lambda rows: thumbnails[rows])}
    assert len(found & {(row, row + 1500) for row in range(1500)}) >= least * 1500
    assert len(found) <= 1500


def test_a_crowd_of_equal_hashes_takes_bounded_work_and_hangs_together() -> None:
    hashes = np.repeat(keyed_generator(1, "crowd").integers(0, 256, (1, 32), dtype=np.uint8), 500, axis=0)
    thumbnail = keyed_generator(2, "crowd").integers(0, 256, (32, 32), dtype=np.uint8)
    asked = []

    def thumbnails(rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        asked.append(len(rows))
        return np.broadcast_to(thumbnail, (len(rows), 32, 32))

    (group,) = groups_of(near_duplicates(hashes, thumbnails))
    assert group == list(range(500))
    assert sum(asked) < 20_000  # of 124,750 pairs


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40))
def test_groups_are_the_connected_parts(pairs: list[tuple[int, int]]) -> None:
    groups: Groups[int] = Groups()
    for pair in pairs:
        groups.join(pair)
    parts = [{member} for member in range(31)]
    for first, second in pairs:
        one = next(part for part in parts if first in part)
        other = next(part for part in parts if second in part)
        if one is not other:
            parts.remove(other)
            one |= other
    for part in parts:
        assert {groups.find(member) for member in part} == {min(part)}


@pytest.mark.parametrize(("similar", "found"), [(0.90, 0), (0.95, 0), (0.965, 0), (0.975, 1), (1.0, 1)])
def test_pictures_are_the_same_from_a_similarity_of_97_percent_on(similar: float, found: int) -> None:
    """With equal hashes: what the hash cannot tell is decided by the thumbnails."""
    axis = np.arange(32)
    one = 40.0 * np.cos(2 * np.pi * axis / 32)[:, None] * np.ones(32)
    other = 40.0 * np.sin(2 * np.pi * axis / 32)[:, None] * np.ones(32)  # at a right angle to the first
    both = np.stack([one, similar * one + np.sqrt(1 - similar**2) * other])
    thumbnails = np.rint(both + 128.0).astype(np.uint8)
    hashes = np.tile(np.frombuffer(hash_to_bytes(5), dtype=np.uint8), (2, 1))
    pairs = near_duplicates(hashes, lambda rows: thumbnails[rows])
    assert len([pair for pair in pairs if not pair.mirrored]) == found
