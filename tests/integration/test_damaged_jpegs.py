"""Every damaged JPEG is rejected by name or has the pixels of the sound one; every sound one is accepted."""

from __future__ import annotations

import io
import json
from collections import Counter

import numpy as np
import pytest
from campaigns import report
from damaged_jpegs import DAMAGES, KINDS, RANDOM, TAILS, Damage, displaced, encode
from numpy.typing import NDArray
from photographs import retina
from PIL import Image

from synfundus.photographs.decode import UndecodableImage, decode_photograph

SIZES = ((640, 640), (523, 611), (960, 720))


def outcome(data: bytes) -> NDArray[np.uint8] | str:
    try:
        return decode_photograph(data, max_pixels=10_000_000)
    except UndecodableImage as error:
        return error.reason.value


def pixels(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return another part of the photograph at another size, with black corners or without."""
    image = Image.fromarray(retina())
    left, top, edge = (int(number) for number in rng.integers((1, 1, 900), (400, 400, 1000)))
    part = image if rng.random() < 0.6 else image.crop((left, top, left + edge, top + edge))
    return np.asarray(part.resize(SIZES[int(rng.integers(len(SIZES)))]))


def damaged(number: int, rng: np.random.Generator) -> list[Damage]:
    found = []
    for at in range(number):
        kind = list(KINDS)[at % len(KINDS)]
        sound = encode(pixels(rng), kind)
        ways = {**DAMAGES, **({"displaced": displaced} if "restart" in kind else {})}
        what = list(ways)[(at // len(KINDS)) % len(ways)]
        found.append(Damage(kind, what, sound, ways[what](sound, rng)))
    return found


def accepted_wrongly(damage: Damage) -> bool:
    """Whether a damaged file is accepted with other pixels than the sound one."""
    found = outcome(damage.data)
    return not isinstance(found, str) and not np.array_equal(found, outcome(damage.sound))


def check_damaged(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    planned = damaged(number, np.random.default_rng(number))
    wrong = [str(damage) for damage in planned if accepted_wrongly(damage)]
    report("damaged JPEGs", wrong, len(planned), capsys)


def sound(number: int, rng: np.random.Generator) -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x010E] = "x" * 3000
    options: list[dict[str, object]] = [{}, {"exif": exif}, {"dpi": (60_000, 60_000)}, {"comment": b"c" * 60_000}]
    files = {}
    for at in range(number):
        kind, tail = list(KINDS)[at % len(KINDS)], list(TAILS)[at % len(TAILS)]
        files[f"{at}, {kind}, {tail}"] = TAILS[tail](encode(pixels(rng), kind, **options[at % len(options)]))
    for at in range(max(number // 20, 1)):  # of a phone or camera: several pictures in a file
        stream = io.BytesIO()
        images = [Image.fromarray(pixels(rng)) for _ in range(2)]
        images[0].save(stream, "MPO", save_all=True, append_images=images[1:])
        files[f"MPO {at}"] = stream.getvalue()
    return files


def check_sound(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    files = sound(number, np.random.default_rng(number))
    found = {name: outcome(data) for name, data in files.items()}
    wrong = [f"{name}: {what}" for name, what in found.items() if isinstance(what, str)]
    report("sound JPEGs", wrong, len(files), capsys)


def test_damage_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    check_damaged(78, capsys)


def test_sound_files_are_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    check_sound(39, capsys)


@pytest.mark.slow
def test_damage_is_found_in_a_thousand(capsys: pytest.CaptureFixture[str]) -> None:
    check_damaged(1000, capsys)


@pytest.mark.slow
def test_two_hundred_sound_files_are_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    check_sound(200, capsys)


@pytest.mark.slow
def test_how_much_stays_unfound_of_what_no_decoder_can_tell(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/formats.md has these shares; a sixth more than measured fails."""
    rng, shares = np.random.default_rng(7), {}
    limits = {
        "512 bytes overwritten at random": 0.05,
        "64 bytes overwritten at random": 0.2,
        "64 bytes of ones": 0.05,
        "512 bytes dropped": 0.1,
        "one byte wrong": 0.9,
    }
    for what, spoil in RANDOM.items():
        counts: Counter[bool] = Counter()
        for at in range(20 * len(KINDS)):
            kind = list(KINDS)[at % len(KINDS)]
            data = encode(pixels(rng), kind)
            counts[accepted_wrongly(Damage(kind, what, data, spoil(data, rng)))] += 1
        shares[what] = counts[True] / counts.total()
    counts = Counter()
    for _ in range(40):
        data = encode(pixels(rng), "a restart a row")
        counts[accepted_wrongly(Damage("", "", data, displaced(data, rng, apart=8)))] += 1
    with capsys.disabled():
        print("\n" + json.dumps({"name": "unfound", **shares, "displaced by eight intervals": counts[True] / 40}))
    assert {what: share for what, share in shares.items() if share > limits[what]} == {}
