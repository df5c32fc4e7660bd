"""Submitting a verb to SLURM, with a copy of its settings, code version and command beside its output."""

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
from synfundus.stages.verb import Option
from synfundus.storage.locations import is_local, local_path


def _output(request: Request) -> Option:
    """Return the option that names where a verb that runs as a batch job writes."""
    return next(option for option in request.verb.options if option.role in ("output", "run") and option.required)


def output_url(request: Request) -> str:
    """Return where a verb that runs as a batch job writes, as it was given."""
    (url,) = request.texts(_output(request))
    return url


def written_place(request: Request) -> str:
    """Return the same for every way to write one folder: its real path, or its location in an object store."""
    url = output_url(request)
    return str(local_path(url).resolve()) if is_local(url) else url


def find_place(request: Request) -> Submission | None:
    """Choose where the files of a submission are kept; None when the output is in an object store."""
    url = output_url(request)
    if not is_local(url):
        return None
    return place_submission(local_path(url), beside=_output(request).role != "run", now=datetime.now(UTC))


def _refuse_secrets(loaded: LoadedConfig, submission: Submission, environment: Mapping[str, str]) -> None:
    """Refuse settings with the value of a secret variable; the loader already refuses what looks like one."""
    texts = {path: format_value(value_at(loaded.config, path)) for path in leaf_fields()}
    secrets = environment_secrets(environment)
    for path, text in {**texts, "folder": str(submission.folder)}.items():
        if any(secret in text for secret in secrets):
            raise ConfigError(
                "this contains the value of an environment variable whose name marks it as secret",
                where=path,
                hint="a job's settings are kept in a file; use another value, or rename the variable",
            )


def _check_reads_back(submission: Submission, loaded: LoadedConfig) -> None:
    """Read the settings back as the job will, so that a problem is found now and not when the job starts.

    Raises:
        ConfigError: They cannot be read, or differ.
    """
    again = load_config(preset=None, file=str(submission.config), settings=[], flags=[])
    if again.config != loaded.config:
        raise ConfigError("the settings changed when they were written to a file", where=str(submission.config))


def submit(loaded: LoadedConfig, plan: LaunchPlan, environment: Mapping[str, str]) -> Outcome:
    """Submit a batch job to SLURM, after saving its settings, code version and command.

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
        # keep the files: after a late answer of sbatch the job may exist all the same
        record_answer(submission, error.message)
        raise
    record_answer(submission, outcome.message)
    return replace(outcome, message=f"{outcome.message}\n{submission.describe()}")
