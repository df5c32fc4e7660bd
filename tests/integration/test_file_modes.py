"""What the verbs write is the owner's alone, whatever umask they were started with."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest
from miniature_chain import Chain, command_lines, open_to_others, short_chain
from rank_processes import run_cli
from tiny_sets import tiny_config

from synfundus.distributed.world import World
from synfundus.errors import CheckpointError
from synfundus.stages.train_vae import job as train_vae
from synfundus.storage.manifest import ShardSet
from synfundus.telemetry.console import SilentConsole


class Warnings(SilentConsole):
    """Keeps what it is warned of."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def warning(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return short_chain(tmp_path_factory.mktemp("chain") / "out")


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


def test_a_group_may_read_all_but_the_crosswalk_where_it_is_asked_for(tmp_path: Path) -> None:
    """In a folder that hands its group on, with two ranks and their workers; nobody may write, others see nothing."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o2770)
    photographs, out = shared / "photographs", shared / "set"
    small = ("--image-size", "64", "--workers", "1", "--set", "launch.group_readable=true")
    run_cli("phantoms", "--out", photographs, "--num-images", "8", *small).check()
    places = ("--source", photographs, "--labels", photographs / "labels.csv", "--out", out)
    crosswalk_option = ("--crosswalk", shared / "set.crosswalk")
    run_cli("prepare", *places, *crosswalk_option, "--procs-per-node", "2", *small).check()
    found = {path.relative_to(shared): path.stat().st_mode for path in shared.rglob("*")}
    crosswalk = {path: mode for path, mode in found.items() if path.parts[0] == "set.crosswalk"}
    assert len(crosswalk) > 3
    assert {path for path, mode in crosswalk.items() if mode & 0o077} == set()
    others = {path: mode for path, mode in found.items() if path not in crosswalk}
    assert len([path for path in others if path.parts[0] == "set"]) > 5
    wanted = {path: 0o750 if stat.S_ISDIR(mode) else 0o640 for path, mode in others.items()}
    assert {path: mode & 0o777 for path, mode in others.items()} == wanted
    assert all(mode & stat.S_ISGID for mode in others.values() if stat.S_ISDIR(mode))


@pytest.mark.parametrize("folder", ["", "checkpoints"])
def test_checkpoints_everybody_may_write_to_are_refused(
    folder: str, vae_run: Path, image_set: ShardSet, world: World, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(vae_run, run_dir)
    config = tiny_config({"train_vae": {"data": image_set.url, "run_dir": str(run_dir)}})
    (run_dir / folder).chmod(0o777)
    with pytest.raises(CheckpointError, match="everybody may write") as caught:
        train_vae.run(config, world, SilentConsole())
    assert caught.value.where == str(run_dir / folder)
    (run_dir / folder).chmod(0o770)
    console = Warnings()
    train_vae.run(config, world, console)
    assert [text for text in console.texts if "a whole group may write" in text]
    (run_dir / folder).chmod(0o700)
    console = Warnings()
    train_vae.run(config, world, console)
    assert not [text for text in console.texts if "may write" in text]
