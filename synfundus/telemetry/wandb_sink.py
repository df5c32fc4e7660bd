"""Rows of metrics for Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from synfundus.errors import ConfigError
from synfundus.telemetry.sinks import Figure

_PATIENCE_S = 30.0
"""Time the service has to answer when a run starts."""


class WandbSink:
    """Sends rows to Weights & Biases: figures and the configuration, neither what the console shows nor the code.

    Where the service cannot be reached the rows are kept in files: no run ends because a service is down. It drops
    rows behind the last one it has, as after a resume; they would be the same.

    Args:
        project: Project the run belongs to.
        name: What the run is called there.
        run_id: What makes it the same run when it goes on.
        folder: Where wandb keeps its files, in ``wandb/``.
        config: Recorded with the run.
        warn: Told, in a line, that the service cannot be reached.

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
        warn: Callable[[str], None],
    ) -> None:
        where = "telemetry.wandb_project"
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                f"telemetry.wandb_project is {project!r}, but wandb is not installed",
                where=where,
                hint="pip install 'synfundus[wandb]', or leave telemetry.wandb_project empty",
            ) from error
        given = {"project": project, "name": name, "id": run_id, "dir": str(folder), "config": dict(config)}
        settings = {"console": "off", "disable_git": True, "disable_code": True, "init_timeout": _PATIENCE_S}
        try:
            self._run: Any = wandb.init(**given, resume="allow", settings=wandb.Settings(**settings))
        except wandb.errors.CommError as error:
            warn(f"Weights & Biases cannot be reached, rows are kept for `wandb sync` in {folder / 'wandb'}: {error}")
            wandb.teardown()  # its service still counts the run as begun
            self._run = wandb.init(**given, mode="offline", settings=wandb.Settings(**settings))
        except wandb.errors.UsageError as error:
            raise ConfigError(
                f"Weights & Biases refuses project {project!r}: {error}",
                where=where,
                hint="`wandb login`, or WANDB_MODE=offline to keep the rows here, or leave the option empty",
            ) from error

    def write(self, row: Mapping[str, Figure]) -> None:
        """Send the row at its position."""
        self._run.log(dict(row), step=int(row.get("images_seen", 0)))

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
