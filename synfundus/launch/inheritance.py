"""Which environment variables a batch job inherits. Pure.

usage: python -P -m synfundus.launch.inheritance (by `slurm/pipeline.sh`). Prints the names for ``sbatch --export`` and,
on standard error, what is left out.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from synfundus.redaction import environment_secrets, secret_kind

PLACES = ("PATH", "HOME", "USER", "LANG", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH", "CPATH", "CC", "CXX")
BY_HAND = (
    *PLACES,
    *("AWS_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
    *("AWS_DEFAULT_REGION", "AWS_CA_BUNDLE", "WANDB_MODE", "WANDB_DISABLED", "WANDB_BASE_URL", "WANDB_ENTITY"),
    *("WANDB_RUN_GROUP", "WANDB_TAGS", "HF_HOME", "HF_HUB_OFFLINE", "NCCL_DEBUG", "NCCL_SOCKET_IFNAME", "NCCL_IB_HCA"),
    *("NCCL_IB_DISABLE", "GLOO_SOCKET_IFNAME", "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "NO_PROXY", "no_proxy"),
    *("SYNFUNDUS_PYTHON", "SYNFUNDUS_MAX_RESTARTS", "SYNFUNDUS_MAX_FAULTS"),
)
"""Names in the headers of `slurm/*.sh`, for ``sbatch`` by hand: nothing there can look at a value."""

_FAMILY = re.compile(
    r"(?:AWS|WANDB|HF|NCCL|GLOO|OMP|GOMP|TORCH|TRITON|SYNFUNDUS)_[A-Z0-9_]+|(?:[A-Z]+_PROXY|[a-z]+_proxy)"
)
_OF_THIS_PROCESS = re.compile(r"WANDB_SERVICE|SYNFUNDUS_(?:PYTHON|STORAGE|LAUNCHER_PID|STALLED|FAULTS|EXIT)")
_KEY = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIALS?$|API_?KEY|(?:^|_)KEY(?:_|$)")
_LOCATION = re.compile(r"_(?:FILE|PATH|DIR|URI)$")
_ONLINE = ("", "online")


@dataclass(frozen=True)
class Inheritance:
    """What becomes of the variables.

    Attributes:
        passed: Names a job inherits.
        keys: Names that are left out because they name a key, which SLURM would record.
        credentials: Names that are left out because their value holds a user name, a password or a key.
        unknown: Names with our prefix that nothing reads.
    """

    passed: tuple[str, ...]
    keys: tuple[str, ...]
    credentials: tuple[str, ...]
    unknown: tuple[str, ...]

    def notes(self) -> tuple[str, ...]:
        """Say what a job does not inherit, by name."""
        reasons = {
            "SLURM would record the key": self.keys,
            "the value holds credentials, which SLURM would record": self.credentials,
            "nothing reads it": self.unknown,
        }
        parts = [f"{', '.join(names)} ({reason})" for reason, names in reasons.items() if names]
        return (f"the job does not inherit {'; '.join(parts)}",) if parts else ()


def inherit(environment: Mapping[str, str]) -> Inheritance:
    """Decide what a batch job inherits: names, locations and settings, never keys.

    Args:
        environment: Variables of the process that submits it.
    """
    secrets = environment_secrets(environment)
    names = sorted(name for name in environment if _FAMILY.fullmatch(name) and not _OF_THIS_PROCESS.fullmatch(name))
    keys = [name for name in names if _KEY.search(name) and not _LOCATION.search(name)]
    unknown = [name for name in names if name.startswith("SYNFUNDUS_") and name not in (*BY_HAND, *keys)]
    rest = [name for name in names if name not in {*keys, *unknown}]
    credentials = [name for name in rest if _holds_credentials(name, environment[name], secrets)]
    passed = [*(name for name in PLACES if name in environment), *(name for name in rest if name not in credentials)]
    return Inheritance(tuple(passed), tuple(keys), tuple(credentials), tuple(unknown))


def _holds_credentials(name: str, value: str, secrets: list[str]) -> bool:
    # a proxy may be written without a scheme: user:password@host:3128
    proxy = name.lower().endswith("_proxy") and "@" in value
    return proxy or bool(secret_kind(value)) or any(secret in value for secret in secrets)


def wandb_note(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Say how a job gets the key of Weights & Biases, if only the environment of this process has it."""
    mode = environment.get("WANDB_MODE", "").lower()
    if "WANDB_API_KEY" not in environment or mode not in _ONLINE:
        return ()
    return (
        "Weights & Biases: the job needs the key in a file. Run `wandb login`, which keeps it in the home that the "
        "nodes share, or set WANDB_MODE=offline and run `wandb sync` later",
    )


if __name__ == "__main__":
    found = inherit(os.environ)
    sys.stderr.write("".join(f"note: {note}\n" for note in found.notes()))
    sys.stdout.write(",".join([*found.passed, "SYNFUNDUS_PYTHON"]) + "\n")
