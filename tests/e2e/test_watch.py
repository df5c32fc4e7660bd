"""`synfundus watch` as a user starts it, on a run that was trained."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "synfundus", "watch"]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "run.json").write_text(json.dumps({"kind": "diffusion"}))
    (tmp_path / "config.yaml").write_text("train:\n  loop:\n    budget_images: 100\n")
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"images_seen": 40, "loss": 0.5, "images_per_s": 9.0}) + "\n")
    return tmp_path


def test_a_run_is_shown_once_where_nobody_watches_and_torch_is_not_loaded(run_dir: Path) -> None:
    script = "import sys\nfrom synfundus.cli import app\ncode = app.run_command(sys.argv[1:])\n"
    script += "assert 'torch' not in sys.modules\nsys.exit(code)"
    command = [sys.executable, "-c", script, "watch", "--run-dir", str(run_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "40 / 100 (40.0 %)" in done.stdout


def test_its_figures_are_json_when_asked_for(run_dir: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "--run-dir", str(run_dir), "--json"], capture_output=True, text=True, timeout=60, check=True
    )
    summary = json.loads(done.stdout)
    assert (summary["images_seen"], summary["budget_images"], summary["row"]["loss"]) == (40, 100, 0.5)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "--run-dir", str(tmp_path / "none")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "does not exist" in done.stderr


def test_on_a_terminal_it_renews_itself_until_the_user_ends_it(run_dir: Path) -> None:
    ours, theirs = pty.openpty()
    command = [*COMMAND, "--run-dir", str(run_dir), "--set", "watch.refresh_s=0.2"]
    # a test run in the background ignores SIGINT, which its children inherit
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, preexec_fn=heed
    )
    os.close(theirs)
    seen = b""
    try:
        while b"40 / 100" not in seen:
            seen += os.read(ours, 4096)
        with (run_dir / "metrics.jsonl").open("a") as stream:
            stream.write(json.dumps({"images_seen": 80, "loss": 0.25, "images_per_s": 9.0}) + "\n")
        while b"80 / 100" not in seen:
            seen += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 20
        while process.poll() is None and time.monotonic() < deadline:
            try:
                os.read(ours, 4096)
            except OSError:
                break
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        os.close(ours)
