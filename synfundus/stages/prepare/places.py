"""Where `synfundus prepare` reads and writes, and whether it may write there."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from synfundus.artifacts.claim import difference
from synfundus.config.photographs import PrepareConfig
from synfundus.errors import ConfigError, DataError
from synfundus.photographs.crosswalk import SECRET_NAME, owner_of, write_private_lines
from synfundus.stages.prepare.plan import InputPlan
from synfundus.storage import documents, filesystem
from synfundus.storage.locations import resolved
from synfundus.storage.manifest import MANIFEST_NAME, REJECTS_NAME, SPLITS, load_shard_set
from synfundus.storage.permissions import holds_ours

RECORD_FORMAT = "synfundus-preparation"
RECORD_VERSION = 2

_WORK_DIR = "work"
_REQUEST_NAME = "request.json"
_SHARDS = rf"({'|'.join(SPLITS)})(/\.?\d{{6,}}\.(tar|idx\.npz)(\.[0-9a-f]+\.tmp)?)?"
_UNFINISHED = rf"{_SHARDS}|\.?{re.escape(REJECTS_NAME)}(\.[0-9a-f]+\.tmp)?"
"""What a run that was stopped may have left of a set."""


@dataclass(frozen=True)
class Places:
    """Where things lie.

    Attributes:
        source: Folder of photographs.
        labels: Label table; None where an importer needs none.
        out: The set.
        crosswalk: Who is who, outside the set.
    """

    source: str
    labels: str | None
    out: str
    crosswalk: str

    @property
    def work(self) -> str:
        """Folder of everything that is gone when the set is complete."""
        return filesystem.join(self.crosswalk, _WORK_DIR)

    @property
    def chunks(self) -> str:
        """Folder of what is known about each stretch of the table, and its images."""
        return filesystem.join(self.work, "chunks")

    @property
    def shards(self) -> str:
        """Folder of the shards' plans and of the records of finished ones."""
        return filesystem.join(self.work, "shards")

    def chunk_url(self, number: int, suffix: str) -> str:
        """Location of a file of a chunk: ``plan.jsonl``, ``tar``, ``thumbnails`` or ``done.json``."""
        return filesystem.join(self.chunks, f"{number:06d}.{suffix}")

    def shard_url(self, shard: str, suffix: str) -> str:
        """Location of a file about a shard: ``plan.jsonl`` or ``done.json``."""
        return filesystem.join(self.shards, f"{shard.removesuffix('.tar').replace('/', '-')}.{suffix}")


def find_places(section: PrepareConfig) -> Places:
    """Check the locations.

    Raises:
        ConfigError: One is missing, two contradict one another, or the crosswalk lies in the set.
    """
    needed = ("source", "labels", "out") if section.importer is None else ("source", "out")
    missing = [name for name in needed if getattr(section, name) is None]
    if missing:
        raise ConfigError(f"--{missing[0]} is missing", where=f"prepare.{missing[0]}", hint=f"give --{missing[0]}")
    if section.importer is not None and section.mapping is not None:
        raise ConfigError(
            "--importer and --mapping both say what the columns mean",
            where="prepare.importer",
            hint="leave one of them out",
        )
    out = str(section.out).rstrip("/")
    crosswalk = (section.crosswalk or f"{out}.crosswalk").rstrip("/")
    if f"{resolved(crosswalk)}/".startswith(f"{resolved(out)}/"):
        raise ConfigError(
            f"the crosswalk {crosswalk} lies in the set {out}",
            where="prepare.crosswalk",
            hint="it maps keys to patients: keep it where the set is not",
        )
    return Places(str(section.source), section.labels, out, crosswalk)


def check_out(places: Places) -> bool:
    """Look at what lies at ``--out``; returns whether it is a complete set.

    Raises:
        ConfigError: It is something that `prepare` has not written, or the set's crosswalk is gone.
    """
    # shards without a manifest can be anybody's: the crosswalk of the run that was stopped names their folder
    begun = owner_of(places.crosswalk) == resolved(places.out)
    complete = holds_ours(places.out, proof=[MANIFEST_NAME], beside=_UNFINISHED if begun else "")
    if complete and not filesystem.exists(filesystem.join(places.crosswalk, SECRET_NAME)):
        raise ConfigError(
            f"a set is there already, but not its crosswalk {places.crosswalk}",
            where=places.out,
            hint="give its --crosswalk, or another --out",
        )
    return complete


def refuse_difference(places: Places, plan: InputPlan) -> None:
    """Accept a complete set only if it is the one this run would write.

    Raises:
        ConfigError: It is another one; the message names both sides.
    """
    try:
        found = load_shard_set(places.out, kind="images").properties
    except DataError as error:
        raise ConfigError(error.message, where=places.out, hint="give another --out") from error
    wanted = dict(plan.properties)
    if found.get("inputs_sha256") == wanted.pop("inputs_sha256"):
        return
    changed = difference({name: found.get(name) for name in wanted}, wanted)
    raise ConfigError(
        f"a set of something else is there: {changed or 'the photographs or their labels have changed'}",
        where=places.out,
        hint="give another --out, or remove the set",
    )


def claim(places: Places, plan: InputPlan) -> None:
    """Write the chunks down, or keep them where the same run was stopped; what another run left is removed."""
    request = filesystem.join(places.work, _REQUEST_NAME)
    wanted = {"fingerprint": plan.fingerprint, "out": resolved(places.out)}
    if filesystem.exists(request):
        try:
            found = documents.read_document(request, format_name=RECORD_FORMAT, version=RECORD_VERSION)
        except DataError:
            found = {}  # of another version
        if {name: found.get(name) for name in wanted} == wanted:
            return
    filesystem.remove(places.work, recursive=True)
    for name in (*SPLITS, REJECTS_NAME):
        filesystem.remove(filesystem.join(places.out, name), recursive=True)
    for folder in (places.chunks, places.shards):
        filesystem.make_dir(folder)
    for number in range(plan.num_chunks):
        rows = (asdict(sample) for sample in plan.chunk(number))
        write_private_lines(places.chunk_url(number, "plan.jsonl"), rows)
    documents.write_document(request, wanted, format_name=RECORD_FORMAT, version=RECORD_VERSION)


def clear_work(places: Places) -> None:
    """Remove what a run needs only until the set is complete."""
    if filesystem.is_dir(places.work):
        filesystem.remove(places.work, recursive=True)
