"""Handing a verb to sbatch, with its settings, code and command kept where the job's output goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from synfundus.cli.request import Request
from synfundus.config.base import value_at
from synfundus.config.dump import dump_config, format_value
from synfundus.config.loader import LoadedConfig, leaf_fields, load_config
from synfundus.errors import ConfigError, LaunchError, SynfundusError
from synfundus.launch import LaunchPlan, Outcome, execute
from synfundus.launch.plan import NOT_FROZEN
from synfundus.launch.submission import Submission, discard, freeze, place_submission, record_answer
from synfundus.redaction import environment_secrets
from synfundus.storage.locations import is_local, local_path


def find_place(request: Request) -> Submission | None:
    """Choose where what a request is submitted with is kept; None where its output is in an object store."""
    output = next(option for option in request.verb.options if option.role in ("output", "run") and option.required)
    (url,) = request.texts(output)
    if not is_local(url):
        return None
    return place_submission(local_path(url), beside=output.role != "run", now=datetime.now(UTC))


def _refuse_secrets(loaded: LoadedConfig, submission: Submission, environment: Mapping[str, str]) -> None:
    """Refuse to keep the value of a secret variable. What looks like a secret by itself is no setting anyway."""
    texts = {path: format_value(value_at(loaded.config, path)) for path in leaf_fields()}
    secrets = environment_secrets(environment)
    for path, text in {**texts, "folder": str(submission.folder)}.items():
        if any(secret in text for secret in secrets):
            raise ConfigError(
                "this holds the value of a variable of the environment whose name says that it is secret",
                where=path,
                hint="a job's settings are kept in a file; give it another name",
            )


def _check_reads_back(submission: Submission, loaded: LoadedConfig) -> None:
    """Read what was kept the way the job will: a surprise has to come now, not when the job starts.

    Raises:
        ConfigError: It cannot be read, or gives other values.
    """
    again = load_config(preset=None, file=str(submission.config), settings=[], flags=[])
    if again.config != loaded.config:
        raise ConfigError("the settings do not survive being written to a file", where=str(submission.config))


def submit(loaded: LoadedConfig, plan: LaunchPlan, environment: Mapping[str, str]) -> Outcome:
    """Hand a batch job to SLURM; beforehand keep what it is submitted with.

    Args:
        loaded: The settings.
        plan: Of kind ``sbatch``.
        environment: What sbatch inherits.

    Raises:
        ConfigError: A setting that must not be kept.
        LaunchError: No place to keep it, or sbatch refuses.
    """
    submission = plan.submission
    if submission is None:
        outcome = execute(plan, environment)
        return replace(outcome, message=f"{outcome.message}\n{NOT_FROZEN}")
    (process,) = plan.processes
    _refuse_secrets(loaded, submission, environment)
    freeze(submission, config=dump_config(loaded), argv=process.arguments, environment=process.environment)
    try:
        _check_reads_back(submission, loaded)
    except SynfundusError:
        discard(submission)
        raise
    try:
        outcome = execute(plan, environment)
    except LaunchError as error:
        # kept all the same: an answer that came too late does not mean that there is no job
        record_answer(submission, error.message)
        raise
    record_answer(submission, outcome.message)
    return replace(outcome, message=f"{outcome.message}\n{submission.describe()}")
