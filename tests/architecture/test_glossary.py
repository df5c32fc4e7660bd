"""The code keeps to the words of docs/glossary.md, in names, docstrings, comments and messages."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_WORDS = 26
ROW = re.compile(r"^\| (?!word )([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
ROWS = ROW.findall((ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"))
AVOIDED = [name.strip() for *_, names in ROWS for name in names.split(",")]

ON_DISK = {
    ("codec", "synfundus/artifacts/autoencoder_folder.py"): 1,  # prefix of the weights in checkpoints
    ("codec", "synfundus/config/loader.py"): 1,  # key of version 0.1, refused with its new name
    ("codec", "synfundus/config/training.py"): 1,  # key in the identity of a run
    ("codec", "synfundus/models/autoencoder_objective.py"): 4,  # prefix of the weights in checkpoints
    ("codec", "synfundus/stages/build.py"): 1,  # purpose of a seed
    ("codec", "synfundus/stages/train_vae/job.py"): 2,  # prefix of the weights in checkpoints
}
"""Avoided words that files, seeds or old settings contain, and how often."""


@cache
def words_by_file() -> dict[str, str]:
    """Return the words of each module, identifiers split, in lower case and with spaces around them."""
    return {
        path.relative_to(ROOT).as_posix(): f" {' '.join(WORD.findall(path.read_text(encoding='utf-8')))} ".lower()
        for path in sorted((ROOT / "synfundus").rglob("*.py"))
    }


def test_the_glossary_is_short() -> None:
    assert 0 < len(ROWS) <= MAX_WORDS


@pytest.mark.parametrize("word", [word.strip() for word, *_ in ROWS])
def test_a_word_of_the_glossary_is_used(word: str) -> None:
    assert any(f" {word} " in words or f" {word}s " in words for words in words_by_file().values())


@pytest.mark.parametrize("word", AVOIDED)
def test_an_avoided_word_stands_only_where_the_disk_needs_it(word: str) -> None:
    found = {(word, file): words.count(f" {word} ") for file, words in words_by_file().items() if f" {word} " in words}
    assert found == {key: count for key, count in ON_DISK.items() if key[0] == word}
