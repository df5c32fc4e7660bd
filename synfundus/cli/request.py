"""A request: a verb and its values, resolved from the options and checked before anything starts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from synfundus.cli.verbs import COMMON
from synfundus.config.base import value_at
from synfundus.config.diffusion import TrainConfig
from synfundus.config.loader import Assignment, LoadedConfig, leaf_fields, load_config
from synfundus.config.schema import RunConfig
from synfundus.config.training import TrainVaeConfig
from synfundus.errors import ConfigError, StorageError
from synfundus.stages.verb import Option, Verb
from synfundus.storage import filesystem
from synfundus.storage.locations import parse_weighted

_SHELL = re.compile(r"^~[\w.-]*(?=/|$)|\$[A-Za-z_]\w*|\$\{\w+\}")
"""What a shell would replace in a path."""
_MISSING = re.compile(r"--[\w -]+ is missing")


@dataclass(frozen=True)
class Request:
    """A verb and its values.

    Attributes:
        verb: The verb.
        loaded: The resolved values, and where each came from.
        begun: The file with the settings of the resumed run; empty for none.
        recipe: ``--preset`` and ``--config`` as they were given.
        unread: Why the settings of a run, if there is one, could not be looked at; empty if they could.
    """

    verb: Verb
    loaded: LoadedConfig
    begun: str = ""
    recipe: tuple[str, ...] = ()
    unread: str = ""

    @property
    def config(self) -> RunConfig:
        """Return the values."""
        return self.loaded.config

    @property
    def section(self) -> Any:  # noqa: ANN401 - each verb knows its class
        """Return the verb's own section."""
        return getattr(self.config, self.verb.key)

    @property
    def training(self) -> TrainConfig | TrainVaeConfig:
        """Return the training section; for a verb that does not train that of `train`, for its number of threads."""
        section: TrainConfig | TrainVaeConfig = getattr(self.config, self.verb.trains or "train")
        return section

    def texts(self, option: Option) -> list[str]:
        """Return the values at an option's path as texts: none, one or several."""
        value = value_at(self.config, option.path)
        return [str(text) for text in value] if isinstance(value, tuple) else [] if value is None else [str(value)]

    def check(self, *, look: bool) -> None:
        """Check what the schema cannot: that the verb has all it needs.

        Args:
            look: Also check that paths exist.

        Raises:
            ConfigError: Naming every option that is missing or points nowhere.
        """
        verb = self.verb
        problems: list[str] = []
        for option in verb.options:
            texts = self.texts(option)
            if option.required and not any(text.strip() for text in texts):
                problems.append(f"{option.flag} is missing ({option.path}): {option.help}")
            elif option.role:
                problems.extend(filter(None, (_location_problem(option, text, look=look) for text in texts)))
        if look:
            problems.extend(self._unexpanded())
        if verb.problems is not None:
            problems.extend(verb.problems(self.section, look))
        if problems:
            message = problems[0] if len(problems) == 1 else "\n".join(f"- {problem}" for problem in problems)
            missing = any(_MISSING.match(problem) for problem in problems)  # of a wrong value, help says no more
            hint = f"see `synfundus {verb.name} --help`" if missing else ""
            raise ConfigError(message, where=f"synfundus {verb.name}", hint=hint)

    def _unexpanded(self) -> Iterator[str]:
        """Yield values that a shell would have expanded; taken as they are they would name another folder."""
        for path in leaf_fields():
            if path.split(".")[0] not in self.verb.sections or path == "launch.ds_config":  # which knows ~ itself
                continue
            value = value_at(self.config, path)
            for text in value if isinstance(value, tuple) else (value,):
                found = _SHELL.search(text) if isinstance(text, str) else None
                if found and not Path(str(text)).exists():
                    origin = self.loaded.provenance[path]
                    yield f"{path} = {text!r} ({origin}): {found[0]!r} is not expanded here: write it out"

    def check_installed(self) -> None:
        """Check that what the settings ask for is installed where the verb runs.

        Raises:
            ConfigError: It is not.
        """
        project = self.config.telemetry.wandb_project
        if self.verb.trains and project and find_spec("wandb") is None:
            raise ConfigError(
                f"telemetry.wandb_project is {project!r}, but wandb is not installed",
                where="telemetry.wandb_project",
                hint="run pip install 'synfundus[wandb]', or leave telemetry.wandb_project empty",
            )


def load_request(verb: Verb, given: Mapping[str, Any]) -> Request:
    """Resolve a verb's values from its options, as typed, by Python name.

    Raises:
        ConfigError: With every problem found.
    """
    given = _with_set_as_samples(verb, given)
    flags = _assignments(verb, given)
    pairs = (text.partition("=") for text in given["set"])
    told = [*flags, *(Assignment(path.strip(), value, "--set") for path, _, value in pairs)]
    begun, unread = (None, "") if given["preset"] or given["config"] else _begun(verb, told)
    loaded = load_config(
        preset=given["preset"] or verb.default_preset,
        file=given["config"],
        settings=given["set"],
        flags=flags,
        begun=begun,
    )
    recipe = [word for name in ("preset", "config") if given[name] for word in (f"--{name}", given[name])]
    return Request(verb, loaded, begun[0] if begun else "", tuple(recipe), unread)


def _begun(verb: Verb, told: Sequence[Assignment]) -> tuple[tuple[str, str] | None, str]:
    """Return name and text of the settings of a resumed run, None where there is none, and why that is not known.

    Where all that the verb needs is given, a store need not be read here: the job compares.
    """
    given = {one.path for one in told}
    whole = all(option.path in given for option in verb.options if option.required)
    paths = {option.path for option in verb.options if option.role == "run"}
    urls = [str(one.value) for one in told if one.path in paths and str(one.value).strip()]
    try:
        for url in urls:
            place, run = (filesystem.join(url, name) for name in ("config.yaml", "run.json"))
            if filesystem.exists(run) and filesystem.exists(place):
                return (place, filesystem.read_bytes(place).decode()), ""
    except (ValueError, ConfigError):  # no such location: refused by name later
        return None, ""
    except StorageError as error:
        if not whole:
            raise
        return None, f"{error.message}: settings of a run that is there are not taken over ({error.where})"
    return None, ""


def _assignments(verb: Verb, given: Mapping[str, Any]) -> list[Assignment]:
    """Turn the given options into assignments.

    Raises:
        ConfigError: A repeatable NAME=VALUE without an equals sign.
    """
    found: list[Assignment] = []
    for option in (*verb.options, *COMMON):
        value = given.get(option.name)
        if not option.path or value is None or value is False or value == []:
            continue
        if option.kind == "flag":
            found.append(Assignment(option.path, "true", option.flag))
        elif option.kind == "mapping":
            found.extend(_pair(option, text) for text in value)
        else:
            found.append(Assignment(option.path, value, option.flag))
    return found


def _with_set_as_samples(verb: Verb, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Take a ``--set`` that is no KEY=VALUE for the set that a verb with ``--samples`` reads."""
    folders = [text for text in given["set"] if "=" not in text]
    if len(folders) != 1 or given.get("samples", "") is not None:
        return given
    return {**given, "samples": folders[0], "set": [text for text in given["set"] if "=" in text]}


def _pair(option: Option, text: str) -> Assignment:
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise ConfigError(
            f"{text!r} is not of the form NAME=VALUE", where=option.flag, hint=f"for example {option.flag} dr_grade=3"
        )
    unknown = value.strip().lower() in ("unknown", "null")
    return Assignment(f"{option.path}.{name.strip()}", None if unknown else value.strip(), option.flag)


def _location_problem(option: Option, text: str, *, look: bool) -> str | None:
    """Return the problem of a location, with ``look`` also on the disk; the job checks object stores."""
    if not text.strip():
        return f"{option.flag} is empty ({option.path})"
    url = parse_weighted(text)[0] if option.kind == "many" else text
    if not look or "://" in url or url in option.names:
        return None
    try:
        path = Path(url)
        if option.role == "input" and not path.exists():
            return f"{option.flag}: {url!r} does not exist ({option.path}): {option.help}"
        if option.role != "input" and path.exists() and not path.is_dir():
            return f"{option.flag}: {url!r} is a file, not a folder ({option.path})"
        if option.role != "input" and path.is_symlink() and not path.exists():
            return f"{option.flag}: {url!r} is a link to {str(path.readlink())!r}, which is not there ({option.path})"
    except OSError as error:
        return f"{option.flag}: {url[:80]!r} cannot be used as a path: {error.strerror} ({option.path})"
    return None
