"""The Typer application, built from the verbs, and its exit codes."""

from __future__ import annotations

import inspect
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from synfundus import __version__
from synfundus.cli.help import help_text, metavar, settings
from synfundus.cli.streams import OutputClosed, guard_streams
from synfundus.cli.verbs import COMMON, VERBS
from synfundus.distributed.requeue import keep_exit_code, request_requeue
from synfundus.errors import ConfigError, PortTaken, Preempted, Stalled, SynfundusError
from synfundus.processes.environment import MISLEADING, SAFE_PATH
from synfundus.processes.stop_signals import ENDING, report_stop, stopped_by_signals
from synfundus.stages.verb import Option, Verb

_EPILOG = (
    "Exit codes: 0 done, 1 a fault of the program, 2 configuration, 3 data, 4 checkpoint, 5 storage, 6 not finite, "
    "7 launch, 75 stopped after saving or nothing moved (start it again), 128+N ended by signal N."
)
_COMPLETION = ("COMP_WORDS", "_TYPER_COMPLETE_ARGS")
"""Where a shell that completes puts the command line."""


class VerbCommand(TyperCommand):
    """A verb, whose help shows first its own options, then those of all verbs, then an example."""

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - as typer has them
        """Write the options in two groups."""
        common = {"help", *(option.name for option in COMMON)}
        groups: dict[str, list[tuple[str, str]]] = {"Options": [], "Options of all verbs": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups["Options of all verbs" if parameter.name in common else "Options"].append(record)
        for title, rows in groups.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - as typer has them
        """Write the example, broken as a shell reads it."""
        del ctx
        example = next((verb.example for verb in VERBS if verb.name == self.name), "")
        if example:
            lines = textwrap.wrap(example, formatter.width - 8, break_on_hyphens=False, break_long_words=False)
            with formatter.section("Example"):
                formatter.write("  " + " \\\n      ".join(lines) + "\n")


def _parameter(verb: Verb, option: Option) -> inspect.Parameter:
    """Turn an option into a parameter for Typer. All values stay text: the schema checks them."""
    annotation: Any
    default: Any
    if option.kind in ("flag", "switch"):
        annotation, default = bool, False
    elif option.kind in ("mapping", "list", "many"):
        annotation, default = list[str], []
    else:
        annotation, default = str | None, None
    shown = None if annotation is bool else metavar(verb, option)
    typed = Annotated[
        annotation, typer.Option(option.flag, help=help_text(verb, option), metavar=shown, show_default=False)
    ]
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=typed)


def _command(verb: Verb, arguments: Sequence[str]) -> Callable[..., int]:
    """Make the function Typer calls for a verb."""

    def command(**values: Any) -> int:  # noqa: ANN401 - as Typer passes them
        from synfundus.cli.run import run_verb

        return run_verb(verb, values, tuple(arguments))

    # only a verb that is named needs its options: to build all 200 takes a third of the time of --help
    named = (*arguments, *(word for name in _COMPLETION for word in os.environ.get(name, "").split()))
    options = (*verb.options, *COMMON) if verb.name in named else ()
    parameters = [_parameter(verb, option) for option in options]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = verb.help
    return command


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"synfundus {__version__}")
        raise typer.Exit


def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show it.")] = False,
) -> None:
    """From patient fundus photographs to a synthetic data set."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A preset, a section, a key, or label-schema.")],
) -> int:
    """Print a preset, a section (train.optim), a key (lr) or label-schema as YAML to copy, with meanings."""
    from synfundus.config.explain import explain

    typer.echo(_label_schema() if name.replace("_", "-") == "label-schema" else explain(name), nl=False)
    return 0


def _label_schema() -> str:
    from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA

    head = "# the default label schema; a copy of it, changed, is given as prepare.label_schema\n"
    return head + DEFAULT_LABEL_SCHEMA.to_yaml()


def _schema() -> int:
    """Print the JSON schema of the configuration: every key, default, bound and meaning."""
    import json

    from synfundus.config.schema import RunConfig

    typer.echo(json.dumps(RunConfig.model_json_schema(), indent=2))
    return 0


def _presets() -> int:
    """List the shipped presets, each with what it is for."""
    from synfundus.config.loader import list_presets, preset_text

    for name in list_presets():
        typer.echo(f"{name:<12}  {preset_text(name).splitlines()[0].removeprefix('# ')}")
    return 0


def build_app(arguments: Sequence[str]) -> typer.Typer:
    """Build the application.

    Args:
        arguments: The command line it will parse; verbs pass it to the processes they start.
    """
    # plain help: rich's takes several times longer than --help may take
    app = typer.Typer(invoke_without_command=True, rich_markup_mode=None, context_settings=settings())
    app.callback(epilog=_EPILOG)(_root)
    for verb in VERBS:
        app.command(verb.name, cls=VerbCommand, help=verb.help, short_help=verb.help)(_command(verb, arguments))
    config = typer.Typer(no_args_is_help=True, rich_markup_mode=None, context_settings=settings())
    config.command("show")(_show)
    config.command("schema")(_schema)
    config.command("presets")(_presets)
    app.add_typer(config, name="config", help="Look at the configuration: keys with their meaning, schema, presets.")
    return app


@contextmanager
def _for_the_owner_alone() -> Iterator[None]:
    """Let only the owner read what is written, photographs and names of patients; a caller's umask stays."""
    mask = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(mask)


@_for_the_owner_alone()
def run_command(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code; errors are reported on standard error.

    Args:
        arguments: What follows the program's name.
    """
    debug = "--debug" in arguments
    try:
        command = typer.main.get_command(build_app(arguments))
        code = command.main(args=list(arguments), prog_name="synfundus", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except typer.TyperException as error:
        from synfundus.cli.report import report_usage

        keep_exit_code(ConfigError.exit_code)
        report_usage(error.format_message(), arguments)
        return ConfigError.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return 128 + signal.SIGINT
    except OutputClosed:
        return 128 + signal.SIGPIPE
    except SynfundusError as error:
        from synfundus.cli.report import report_error

        keep_exit_code(error.exit_code)
        report_error(error, debug=debug)
        if isinstance(error, Stalled | PortTaken):
            request_requeue()
        return error.exit_code


def _report_defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Show the traceback of an unexpected error, with secrets removed."""
    del kind, trace
    from synfundus.cli.report import report_traceback

    report_traceback(error)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit the process."""
    guard_streams()
    sys.excepthook = _report_defect
    os.environ.update(SAFE_PATH)
    for name in MISLEADING:
        os.environ.pop(name, None)
    with stopped_by_signals():
        try:
            code = run_command(sys.argv[1:] if arguments is None else arguments)
        except Exception as error:  # noqa: BLE001 - shown before the interpreter ends: a GPU's process group may block that
            _report_defect(type(error), error, error.__traceback__)
            code = 1
        ENDING.code = code
        if code == 128 + signal.SIGINT:
            report_stop()
        if code == Preempted.exit_code:
            # at once: everything is saved, and srun sends TERM, with another exit code, as soon as one rank has ended
            sys.stderr.flush()
            os._exit(code)
        if "torch" in sys.modules:
            from synfundus.launch.processes import end_process

            end_process(code)
        sys.exit(code)
