"""What the verbs write is the owner's alone, whatever umask they were started with."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from miniature_chain import Chain, command_lines, run_chain

OTHERS = stat.S_IRWXG | stat.S_IRWXO


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return run_chain(tmp_path_factory.mktemp("chain") / "out", long=False)


def open_to_others(folder: Path) -> list[str]:
    """Return what somebody else could read, write or enter; the folder itself was made by the caller."""
    return [
        f"{stat.filemode(path.lstat().st_mode)} {path.relative_to(folder)}"
        for path in sorted(folder.rglob("*"))
        if path.name not in ("run.yaml", "carried.yaml") and path.lstat().st_mode & OTHERS
    ]


def check(chain: Chain, *, verbs: int, files: int) -> None:
    assert chain.codes[:verbs] == [0] * verbs, chain.output[-3000:]
    assert len([path for path in chain.folder.rglob("*") if path.is_file()]) > files
    assert open_to_others(chain.folder) == []


def test_no_file_of_a_short_chain_is_open_to_others(chain: Chain) -> None:
    check(chain, verbs=len(command_lines(chain.folder, long=False)), files=40)
    for part in ("photographs/labels.csv", "set/manifest.json", "look/inspect.json", "vae/run.json"):
        assert (chain.folder / part).exists()


def test_the_check_itself_finds_an_open_file(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        (tmp_path / "open").write_text("x")
    finally:
        os.umask(mask)
    assert open_to_others(tmp_path) == ["-rw-r--r-- open"]


@pytest.mark.slow
def test_no_file_of_the_whole_chain_is_open_to_others(tmp_path: Path) -> None:
    """Two ranks that are processes of their own write latents and checkpoints."""
    whole = run_chain(tmp_path / "out", long=True)
    check(whole, verbs=len(command_lines(tmp_path, long=True)), files=80)
    print('{"name": "file modes of the whole chain", "passed": 1, "of": 1}')
