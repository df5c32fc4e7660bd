"""Importers of the published label tables of public fundus sets: which labels each set has, and which are unknown.

`registry` lists the sets; `importer` defines importers and reads a table with one; the other modules describe sets.
How to add one: docs/importers.md.
"""

from synfundus.photographs.importers.importer import Importer
from synfundus.photographs.importers.registry import IMPORTERS, read_with_importer, recognise

__all__ = ["IMPORTERS", "Importer", "read_with_importer", "recognise"]
