"""Build the stand-in GPU for an environment with a CUDA build of torch, with gcc and the headers torch's wheels bring.

``python builder.py PYTHON FOLDER`` builds and prints the environment variables that put it under a program.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

SOURCES = Path(__file__).with_name("sources")
LIBRARY = "libcuda.so.1"
"""The name under which triton looks for the driver: one library stands for it and, loaded first, for all the others."""
_PLACES = ("torch/lib/*.so", "torch/_C*.so", "xformers/*.so", "xformers/*/*.so")
_ASKED = re.compile(r"__cuda|cuda[A-Z]|cublas|cudnn|nccl|cu(?!File)[A-Z]")
_RULES = (
    (
        re.compile(r"cublas.*(gemm|Gemm|dot|Dot|trsm)|cublasLtMatmul$"),
        "return stand_in_count(COUNT_matrix_products), 0;",
    ),
    (re.compile(r"cudnnConvolution(Forward|Backward|Bias)"), "return stand_in_count(COUNT_convolutions), 0;"),
    (re.compile(r"nccl(All|Bcast|Broadcast|Reduce(?!dOp))"), "return stand_in_count(COUNT_collectives), 0;"),
    (re.compile(r"cudnnCreate\w+Descriptor$"), "return *made = calloc(1, 4096), 0;"),
    (re.compile(r""), "return 0;"),
)
"""What a function does that is written by no hand; the first that fits."""


class BuildError(RuntimeError):
    """The stand-in GPU could not be built."""


def _run(*command: str | Path) -> str:
    try:
        ended = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, timeout=300)
    except FileNotFoundError as error:
        raise BuildError(f"{command[0]} is missing: the stand-in GPU needs gcc, g++ and nm") from error
    except subprocess.CalledProcessError as error:
        raise BuildError(f"{' '.join(map(str, command))}:\n{error.stderr}") from error
    return ended.stdout


def packages_of(python: Path) -> Path:
    """Return the folder of an environment's packages."""
    return Path(_run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip())


def symbols(files: Iterable[Path], *options: str) -> set[str]:
    """Return the names nm lists, without their versions."""
    lines = _run("nm", *options, *files).splitlines()
    return {line.split()[-1].partition("@")[0] for line in lines if len(line.split()) > 1}


def stub(name: str) -> str:
    """Return the C function that stands for a library's function of that name."""
    return next(f"EXPORT int {name}(void** made) {{ {does} }}" for rule, does in _RULES if rule.search(name))


def driver_functions(header: Path) -> set[str]:
    """Return the functions that cuda.h declares."""
    return set(re.findall(r"\bCUresult\s+(cu\w+)\s*\(", _run("gcc", "-E", "-P", header)))


def _defined(header: Path, name: str) -> int:
    found = re.search(rf"#define {name}\s+(\d+)", header.read_text(encoding="utf-8"))
    if found is None:
        raise BuildError(f"{header} does not define {name}")
    return int(found[1])


def _cudnn_version(header: Path) -> int:
    major, minor, patch = (_defined(header, f"CUDNN_{part}") for part in ("MAJOR", "MINOR", "PATCHLEVEL"))
    return 10_000 * major + 100 * minor + patch


def build(python: Path, folder: Path) -> Path:
    """Build the library; returns its path.

    Args:
        python: The interpreter of an environment with a CUDA build of torch.
        folder: Where it is built; made if missing.

    Raises:
        BuildError: A compiler or a header is missing, or does not like the sources.
    """
    folder.mkdir(parents=True, exist_ok=True)
    packages = packages_of(python)
    headers = {}
    for name in ("cuda_runtime_api.h", "cuda.h", "cudnn_version.h"):
        places = sorted((packages / "nvidia").rglob(name))
        if not places:
            raise BuildError(f"no {name} below {packages / 'nvidia'}: is this a CUDA build of torch?")
        headers[name] = places[0]
    options = [
        *("-O1", "-w", "-fPIC", "-fvisibility=hidden", f"-I{SOURCES}", f"-I{headers['cuda_runtime_api.h'].parent}"),
        f"-DCUDA_VERSION_OF_THE_HEADERS={_defined(headers['cuda.h'], 'CUDA_VERSION')}",
        f"-DCUDNN_VERSION_OF_THE_HEADERS={_cudnn_version(headers['cudnn_version.h'])}",
    ]
    objects = []
    for source in ("runtime.cpp", "driver.c", "libraries.c"):
        objects.append(folder / f"{source}.o")
        _run("g++" if source.endswith("cpp") else "gcc", *options, "-c", SOURCES / source, "-o", objects[-1])
    asking = [path for place in _PLACES for path in sorted(packages.glob(place))]
    asked = {name for name in symbols(asking, "-D", "--undefined-only") if _ASKED.match(name)}
    rest = (asked | driver_functions(headers["cuda.h"])) - symbols(objects, "--defined-only")
    stubs = folder / "stubs.c"
    stubs.write_text("\n".join(["#include <stdlib.h>", '#include "counts.h"', *map(stub, sorted(rest)), ""]))
    objects.append(folder / "stubs.c.o")
    _run("gcc", *options, "-c", stubs, "-o", objects[-1])
    library = folder / LIBRARY
    _run("g++", "-shared", f"-Wl,-soname,{LIBRARY}", *objects, "-o", library, "-ldl", "-lpthread")
    return library


def under(library: Path, *, major: int = 8, devices: int = 1) -> Mapping[str, str]:
    """Return the environment variables of a program that is to run on the stand-in GPU.

    Args:
        library: From `build`.
        major: Compute capability: 8 is an A100, 9 an H100, 10 a B200.
        devices: How many it sees.
    """
    path = os.environ.get("LD_LIBRARY_PATH")
    return {
        "LD_PRELOAD": str(library),
        "LD_LIBRARY_PATH": f"{library.parent}:{path}" if path else str(library.parent),
        "TRITON_LIBCUDA_PATH": str(library.parent),
        # each tensor gets memory of its own, which is zero: what a kernel would have written is not left to chance
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
        "STAND_IN_MAJOR": str(major),
        "STAND_IN_DEVICES": str(devices),
    }


if __name__ == "__main__":
    built = build(Path(sys.argv[1]), Path(sys.argv[2]).resolve())
    print(*(f"{name}={value}" for name, value in under(built).items()))
