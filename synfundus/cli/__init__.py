"""The command line. Importing it imports neither torch nor pydantic: `synfundus --help` answers at once."""

from synfundus.cli.app import main

__all__ = ["main"]
