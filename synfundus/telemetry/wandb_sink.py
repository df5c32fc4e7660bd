"""Sends rows of metrics to Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from synfundus.errors import ConfigError
from synfundus.telemetry.sinks import Figure

_PATIENCE_S = 30.0
"""Longest wait for the service when a run starts."""


class WandbSink:
    """Sends figures and the configuration to Weights & Biases, but neither the console output nor the code.

    If the service cannot be reached, the rows are kept in files: no run ends because a service is down. After a resume
    the service drops the rows it already has; they would be the same.

    Args:
        project: Project of the run.
        name: Name of the run there.
        run_id: Identifies the run across resumes.
        folder: Folder in which wandb keeps its files, in ``wandb/``.
        config: Recorded with the run.
        labels: ``entity``, ``group``, ``tags`` of the run there, where they are given.
        warn: Shows a warning if the service cannot be reached.

    Raises:
        ConfigError: The extra `wandb` is not installed, or there is no key.
    """

    def __init__(
        self,
        project: str,
        *,
        name: str,
        run_id: str,
        folder: Path,
        config: Mapping[str, Any],
        labels: Mapping[str, object] = MappingProxyType({}),
        warn: Callable[[str], None],
    ) -> None:
        where = "telemetry.wandb_project"
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                f"telemetry.wandb_project is {project!r}, but wandb is not installed",
                where=where,
                hint="run pip install 'synfundus[wandb]', or leave telemetry.wandb_project empty",
            ) from error
        given = {"project": project, "name": name, "id": run_id, "dir": str(folder), "config": dict(config), **labels}
        settings = {"console": "off", "disable_git": True, "disable_code": True, "init_timeout": _PATIENCE_S}
        try:
            self._run: Any = wandb.init(**given, resume="allow", settings=wandb.Settings(**settings))
        except wandb.errors.CommError as error:
            warn(f"Weights & Biases cannot be reached; rows are kept for `wandb sync` in {folder / 'wandb'}: {error}")
            wandb.teardown()  # its local service still counts the run as started
            self._run = wandb.init(**given, mode="offline", settings=wandb.Settings(**settings))
        except wandb.errors.UsageError as error:
            raise ConfigError(
                f"Weights & Biases refuses project {project!r}: {error}",
                where=where,
                hint="run `wandb login`, set WANDB_MODE=offline to keep the rows here, or leave the option empty",
            ) from error

    def write(self, row: Mapping[str, Figure]) -> None:
        """Send the row at its position."""
        self._run.log(dict(row), step=int(row.get("images_seen", 0)))

    def picture(self, png: bytes, *, images_seen: int) -> None:
        """Do nothing: figures and the configuration are sent, images are not."""

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
