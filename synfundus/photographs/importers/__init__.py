"""Label tables of public fundus sets as they are published: what each set knows, and what it leaves unknown.

`registry` lists the sets; `importer` says what an importer is and reads a table with one; the other modules describe
sets. How to add one: docs/importers.md.
"""

from synfundus.photographs.importers.importer import Importer
from synfundus.photographs.importers.registry import IMPORTERS, read_with_importer, recognise

__all__ = ["IMPORTERS", "Importer", "read_with_importer", "recognise"]
