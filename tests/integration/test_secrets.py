"""Keys, tokens and passwords in the environment, in options and in files reach no output and no file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from miniature_chain import (
    PLANTED,
    SECRETS,
    Chain,
    command_lines,
    open_to_others,
    refused_lines,
    run_chain,
    short_chain,
)

from synfundus.redaction import MASK


def places_of_secrets(chain: Chain) -> list[str]:
    """Return where a planted secret is found."""
    texts = {"output": chain.output.encode()}
    texts |= {str(path): path.read_bytes() for path in chain.folder.rglob("*") if path.is_file()}
    return [f"{name}: {secret[:6]}..." for name, data in texts.items() for secret in PLANTED if secret.encode() in data]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return short_chain(tmp_path_factory.mktemp("chain") / "out")


def test_no_secret_of_a_short_chain_is_found_anywhere(chain: Chain) -> None:
    assert "Traceback" in chain.output, "--debug showed tracebacks"
    assert places_of_secrets(chain) == []


def test_secrets_as_settings_are_refused_without_being_shown(chain: Chain, tmp_path: Path) -> None:
    refused = chain.codes[len(command_lines(chain.folder, long=False)) :]
    assert refused == [2] * len(refused_lines(tmp_path))
    assert "are not settings" in chain.output
    assert chain.output.count(MASK) >= len(refused)


def test_the_check_itself_finds_a_secret(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(f"key {SECRETS['HF_TOKEN']}")
    assert len(places_of_secrets(Chain(tmp_path, "said " + PLANTED[0], []))) == 2


def test_a_command_line_with_a_secret_is_recorded_without_it(chain: Chain) -> None:
    recorded = json.loads((chain.folder / "vae" / "environment.json").read_text())
    assert recorded["versions"]
    assert not set(PLANTED) & set(recorded["argv"])


def test_the_traceback_of_a_defect_is_cut_as_well() -> None:
    code = (
        "import sys, synfundus.cli.app as app\n"
        "def broken(arguments):\n    raise ValueError('s3://someuser:hunter2secret@bucket ' + sys.argv[1])\n"
        "app.run_command = broken\napp.main(['x'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, SECRETS["OTHER_PASSWORD"]],
        env={**os.environ, **SECRETS},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert f"ValueError: s3://{MASK}@bucket {MASK}" in done.stderr


@pytest.mark.slow
def test_the_whole_chain_keeps_secrets_and_files_to_itself(tmp_path: Path) -> None:
    """Latents, training on two ranks that are processes of their own, samples, export, doctor."""
    chain = run_chain(tmp_path / "out", long=True)
    verbs = len(command_lines(tmp_path, long=True))
    assert chain.codes[:verbs] == [0] * verbs, chain.output[-3000:]
    files = [path for path in chain.folder.rglob("*") if path.is_file()]
    assert places_of_secrets(chain) == []
    assert open_to_others(chain.folder) == []
    found = {"name": "secrets and file modes of the whole chain", "passed": verbs, "of": verbs, "files": len(files)}
    print(json.dumps(found))
