"""No call that can run what it reads, write where an archive says, or go through a shell."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN_MODULES = frozenset(
    {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "telnetlib", "ftplib"}
)
FORBIDDEN_CALLS = frozenset(
    {
        *("eval", "exec", "compile", "__import__", "input"),
        *("os.system", "os.popen", "os.spawnl", "os.spawnv", "os.spawnvp", "os.execl", "os.execv", "os.execvp"),
        *("subprocess.getoutput", "subprocess.getstatusoutput", "pty.spawn", "commands.getoutput"),
        *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all"),
        *("torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter"),
        *("torch.distributed.checkpoint.load", "numpy.fromfile", "pandas.read_pickle"),
        *("shutil.unpack_archive", "tempfile.mktemp", "ssl._create_unverified_context"),
        *("random.seed", "numpy.random.seed"),
    }
)
FORBIDDEN_METHODS = frozenset({"extractall", "extract", "load_checkpoint_from_pickle"})
NEEDED_ARGUMENTS = {"numpy.load": ("allow_pickle", False), "numpy.save": ("allow_pickle", False)}
FORBIDDEN_ARGUMENTS = (
    ("shell", True),
    ("weights_only", False),
    ("trust_remote_code", True),
    ("allow_pickle", True),
    ("verify", False),
    ("use_safetensors", False),
)


def sources() -> list[Path]:
    folders = ("synfundus", "benchmarks", "launchers", "slurm")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """Return the full name of what is called, through the file's imports."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, names)}.{node.attr}"
    return ""


def imported_names(tree: ast.AST) -> tuple[dict[str, str], list[tuple[int, str]]]:
    """Return (local name -> full name, every module that is imported with its line)."""
    names: dict[str, str] = {}
    modules: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                modules.append((node.lineno, alias.name))
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.append((node.lineno, node.module))
            names.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return names, modules


def findings(source: str) -> list[str]:
    """Return one line for each forbidden thing in a module."""
    tree = ast.parse(source)
    names, modules = imported_names(tree)
    found = [f"{line}: import of {name}" for line, name in modules if name.split(".")[0] in FORBIDDEN_MODULES]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func, names)
        arguments = {
            keyword.arg: keyword.value.value
            for keyword in node.keywords
            if keyword.arg and isinstance(keyword.value, ast.Constant)
        }
        if name in FORBIDDEN_CALLS:
            found.append(f"{node.lineno}: {name}()")
        if isinstance(node.func, ast.Attribute) and node.func.attr in FORBIDDEN_METHODS:
            found.append(f"{node.lineno}: .{node.func.attr}()")
        if name in NEEDED_ARGUMENTS:
            argument, value = NEEDED_ARGUMENTS[name]
            if arguments.get(argument, not value) is not value:
                found.append(f"{node.lineno}: {name}() without {argument}={value}")
        for argument, value in FORBIDDEN_ARGUMENTS:
            if argument in arguments and arguments[argument] is value:
                found.append(f"{node.lineno}: {argument}={value}")
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if "shell" in given and not isinstance(given["shell"], ast.Constant):
            found.append(f"{node.lineno}: shell= is not a constant")
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_makes_no_dangerous_call(path: Path) -> None:
    assert findings(path.read_text(encoding="utf-8")) == []


def test_modules_are_imported_by_name_only_where_verbs_are_found_and_run() -> None:
    """The names are those of the folders below `synfundus.stages`, never a user's."""
    users = {
        str(path.relative_to(ROOT))
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and dotted(node.func, {"import_module": "importlib.import_module"}) == "importlib.import_module"
        and not (node.args and isinstance(node.args[0], ast.Constant))
    }
    assert users <= {"synfundus/cli/run.py", "synfundus/cli/verbs.py"}


def default_decodings(source: str) -> list[int]:
    """Return the lines where a module that uses webdataset lets it choose decoders by a member's name."""
    tree = ast.parse(source)
    if not any(name.split(".")[0] == "webdataset" for _, name in imported_names(tree)[1]):
        return []
    texts = {"ascii", "utf-8", "latin-1"}
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "decode"
        and not any(keyword.arg == "only" for keyword in node.keywords)
        and not (node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value in texts)
        and node.args
    ]


def test_webdataset_never_chooses_a_decoder() -> None:
    """Its default decoders run code from a shard."""
    assert {str(path): lines for path in sources() if (lines := default_decodings(path.read_text("utf-8")))} == {}
    assert default_decodings("import webdataset as wds\nwds.WebDataset(x).decode('rgb8')")
    assert not default_decodings("import webdataset as wds\nwds.WebDataset(x).decode('rgb8', only=['png'])")


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "exec('1')",
        "import os; os.system('x')",
        "from os import system as run; run('x')",
        "import subprocess as s; s.run('x', shell=True)",
        "import subprocess; subprocess.run('x', shell=bool(1))",
        "import yaml; yaml.load(x, Loader=y)",
        "import torch; torch.load(x)",
        "import torch as t; t.load(x, weights_only=True)",
        "import numpy as np; np.load(x)",
        "import numpy as np; np.load(x, allow_pickle=True)",
        "from numpy import load; load(x)",
        "import tarfile; tarfile.open(x).extractall()",
        "archive.extract(member)",
        "import requests; requests.get(x, verify=False)",
    ],
)
def test_the_check_itself_finds(line: str) -> None:
    assert findings(line)


def test_the_check_itself_lets_pass_what_is_harmless() -> None:
    assert findings("import numpy as np\nnp.load(x, allow_pickle=False)\nmodel.eval()\nre.compile('x')") == []
