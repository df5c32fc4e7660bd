"""What a run records of the code it was trained with."""

from __future__ import annotations

import subprocess
from pathlib import Path

from synfundus.artifacts.run_folder import commit_of


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.invalid"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_of_every_kind_of_checkout_is_known(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    git(checkout, "init", "-q")
    assert commit_of(checkout) is None, "there is none yet"
    git(checkout, "commit", "-q", "--allow-empty", "-m", "first")
    first = git(checkout, "rev-parse", "HEAD")
    assert commit_of(checkout) == first
    git(checkout, "branch", "packed/like-this")
    git(checkout, "pack-refs", "--all")
    assert commit_of(checkout) == first, "a packed branch"
    git(checkout, "worktree", "add", "-q", str(tmp_path / "tree"), "packed/like-this")
    assert commit_of(tmp_path / "tree") == first, "a packed branch of a worktree"
    git(tmp_path / "tree", "commit", "-q", "--allow-empty", "-m", "second")
    second = git(tmp_path / "tree", "rev-parse", "HEAD")
    assert commit_of(tmp_path / "tree") == second
    assert commit_of(checkout) == first
    git(checkout, "checkout", "-q", "--detach", second)
    assert commit_of(checkout) == second, "no branch"


def test_what_is_no_checkout_has_no_commit(tmp_path: Path) -> None:
    assert commit_of(tmp_path) is None
    (tmp_path / ".git").write_text("gitdir: nowhere")
    assert commit_of(tmp_path) is None
