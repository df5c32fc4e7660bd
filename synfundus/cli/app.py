"""The Typer application, built from the verbs, and its exit codes."""

from __future__ import annotations

import inspect
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Annotated, Any, NoReturn

import typer

from synfundus import __version__
from synfundus.cli.verbs import COMMON, VERBS
from synfundus.distributed.requeue import request_requeue
from synfundus.errors import ConfigError, PortTaken, Preempted, Stalled, SynfundusError
from synfundus.stages.verb import Option, Verb

_EPILOG = (
    "Exit codes: 0 done, 1 a fault of the program, 2 configuration, 3 data, 4 checkpoint, 5 storage, 6 not finite, "
    "7 launch, 75 stopped after saving or nothing moved (start it again), 128+N ended by signal N."
)


def _parameter(option: Option) -> inspect.Parameter:
    """Turn an option into a parameter for Typer. All values stay text: the schema checks them."""
    annotation: Any
    default: Any
    if option.kind in ("flag", "switch"):
        annotation, default = bool, False
    elif option.kind in ("mapping", "list", "many"):
        annotation, default = list[str], []
    else:
        annotation, default = str | None, None
    metavars = {
        "value": "PATH" if option.role else "VALUE",
        "many": "PATH[:SHARE]" if option.role else "PATH",
        "mapping": "NAME=VALUE",
        "list": "KEY=VALUE",
    }
    note = " [required]" if option.required else ""
    typed = Annotated[
        annotation,
        typer.Option(option.flag, help=option.help + note, metavar=metavars.get(option.kind), show_default=False),
    ]
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=typed)


def _command(verb: Verb, arguments: Sequence[str]) -> Callable[..., int]:
    """Make the function Typer calls for a verb."""

    def command(**values: Any) -> int:  # noqa: ANN401 - as Typer passes them
        from synfundus.cli.run import run_verb

        return run_verb(verb, values, tuple(arguments))

    # only a verb that is named needs its options: to build all 200 takes a third of the time of --help
    options = (*verb.options, *COMMON) if verb.name in arguments else ()
    parameters = [_parameter(option) for option in options]
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


def _schema() -> int:
    """Print the JSON schema of the configuration: every key, default, bound and meaning."""
    import json

    from synfundus.config.schema import RunConfig

    typer.echo(json.dumps(RunConfig.model_json_schema(), indent=2))
    return 0


def _presets() -> int:
    """List the shipped presets."""
    from synfundus.config.loader import list_presets

    typer.echo("\n".join(list_presets()))
    return 0


def build_app(arguments: Sequence[str]) -> typer.Typer:
    """Build the application.

    Args:
        arguments: The command line it will parse; verbs pass it to the processes they start.
    """
    settings = {"help_option_names": ["-h", "--help"]}
    # plain help: rich's takes several times longer than --help may take
    app = typer.Typer(
        add_completion=False, invoke_without_command=True, rich_markup_mode=None, context_settings=settings
    )
    app.callback(epilog=_EPILOG)(_root)
    for verb in VERBS:
        app.command(verb.name, help=verb.help, short_help=verb.help)(_command(verb, arguments))
    config = typer.Typer(no_args_is_help=True, rich_markup_mode=None, context_settings=settings)
    config.command("schema")(_schema)
    config.command("presets")(_presets)
    app.add_typer(config, name="config", help="Look at the configuration: schema, presets.")
    return app


def run_command(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code; errors are reported on standard error.

    Args:
        arguments: What follows the program's name.
    """
    # photographs of patients and keys that name them: only the owner may read what is written
    os.umask(0o077)
    debug = "--debug" in arguments
    try:
        command = typer.main.get_command(build_app(arguments))
        code = command.main(args=list(arguments), prog_name="synfundus", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except typer.TyperException as error:
        from synfundus.cli.report import report_usage

        report_usage(error.format_message(), arguments)
        return ConfigError.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # the reader has closed the pipe; the flush at exit must not fail for it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except SynfundusError as error:
        from synfundus.cli.report import report_error

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
    sys.excepthook = _report_defect
    try:
        code = run_command(sys.argv[1:] if arguments is None else arguments)
    except Exception as error:  # noqa: BLE001 - shown before the interpreter ends: a GPU's process group may block that
        _report_defect(type(error), error, error.__traceback__)
        code = 1
    if code == Preempted.exit_code:
        # at once: everything is saved, and srun sends TERM, with another exit code, as soon as one rank has ended
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if "torch" in sys.modules:
        from synfundus.launch.processes import end_process

        end_process(code)
    sys.exit(code)
