"""The paths of `synfundus prepare`, and whether it may write to them."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from synfundus.artifacts.claim import difference
from synfundus.config.photographs import PrepareConfig
from synfundus.errors import ConfigError, DataError
from synfundus.photographs.crosswalk import SECRET_NAME, default_place, lies_with, owner_of, write_private_lines
from synfundus.photographs.preparation import CROP
from synfundus.stages.prepare.plan import InputPlan
from synfundus.storage import documents, filesystem
from synfundus.storage.local_folder import holds_ours
from synfundus.storage.locations import resolved
from synfundus.storage.manifest import MANIFEST_NAME, REJECTS_NAME, SPLITS, load_shard_set
from synfundus.telemetry.console import Console

RECORD_FORMAT = "synfundus-preparation"
RECORD_VERSION = 3

_WORK_DIR = "work"
_REQUEST_NAME = "request.json"
_SHARDS = rf"({'|'.join(SPLITS)})(/\.?\d{{6,}}\.(tar|idx\.npz)(\.[0-9a-f]+\.tmp)?)?"
_UNFINISHED = rf"{_SHARDS}|\.?{re.escape(REJECTS_NAME)}(\.[0-9a-f]+\.tmp)?"
"""Files that a stopped run may have left in a set."""


@dataclass(frozen=True)
class PreparePaths:
    """Paths of inputs and outputs.

    Attributes:
        source: Folder of photographs.
        labels: Label table; None if an importer needs none.
        out: The set.
        crosswalk: The crosswalk folder, outside the set.
    """

    source: str
    labels: str | None
    out: str
    crosswalk: str

    @property
    def work(self) -> str:
        """Folder of temporary files, removed when the set is complete."""
        return filesystem.join(self.crosswalk, _WORK_DIR)

    @property
    def chunks(self) -> str:
        """Folder of the images and records of each chunk."""
        return filesystem.join(self.work, "chunks")

    @property
    def shards(self) -> str:
        """Folder of the plans and records of shards."""
        return filesystem.join(self.work, "shards")

    def chunk_url(self, number: int, suffix: str) -> str:
        """Location of a file of a chunk: ``plan.jsonl``, ``tar``, ``thumbnails`` or ``done.json``."""
        return filesystem.join(self.chunks, f"{number:06d}.{suffix}")

    def shard_url(self, shard: str, suffix: str) -> str:
        """Location of a file about a shard: ``plan.jsonl`` or ``done.json``."""
        return filesystem.join(self.shards, f"{shard.removesuffix('.tar').replace('/', '-')}.{suffix}")


def find_paths(section: PrepareConfig) -> PreparePaths:
    """Check the locations.

    Raises:
        ConfigError: One is missing, two contradict each other, or the crosswalk is inside the set.
    """
    needed = ("source", "labels", "out") if section.importer is None else ("source", "out")
    missing = [name for name in needed if getattr(section, name) is None]
    if missing:
        raise ConfigError(f"--{missing[0]} is missing", where=f"prepare.{missing[0]}", hint=f"give --{missing[0]}")
    if section.importer is not None and section.mapping is not None:
        raise ConfigError(
            "--importer and --mapping both define the columns", where="prepare.importer", hint="remove one of them"
        )
    out = str(section.out).rstrip("/")
    crosswalk = (section.crosswalk or default_place(resolved(out))).rstrip("/")
    if f"{resolved(crosswalk)}/".startswith(f"{resolved(out)}/"):
        raise ConfigError(
            f"the crosswalk {crosswalk} is inside the set {out}",
            where="prepare.crosswalk",
            hint="it maps keys to patients: store it outside the set",
        )
    return PreparePaths(str(section.source), section.labels, out, crosswalk)


def told_crosswalk(paths: PreparePaths) -> tuple[str, str]:
    """Return where names and patients are kept, and a warning where they are easily passed on with the set."""
    where = f"names and patients of this set: {paths.crosswalk} (the crosswalk: keep it, never pass it on)"
    if not lies_with(paths.crosswalk, paths.out):
        return where, ""
    return where, (
        f"the crosswalk {paths.crosswalk} is in the folder that also holds the set: whoever copies or packs that "
        "folder passes on the patients' names. Keep it elsewhere: --crosswalk"
    )


def announce_crosswalk(paths: PreparePaths, console: Console) -> None:
    """Say where names and patients are kept; warn where they are easily passed on with the set."""
    where, warning = told_crosswalk(paths)
    console.message(where)
    if warning:
        console.warning(warning)


def check_out(paths: PreparePaths) -> bool:
    """Check ``--out``; return whether it is a complete set.

    Raises:
        ConfigError: It was not written by `prepare`, or the crosswalk of the set is missing.
    """
    # shards without a manifest may be from another program: the crosswalk of a stopped run names their folder
    begun = owner_of(paths.crosswalk) == resolved(paths.out)
    complete = holds_ours(paths.out, proof=[MANIFEST_NAME], beside=_UNFINISHED if begun else "")
    if complete and not filesystem.exists(filesystem.join(paths.crosswalk, SECRET_NAME)):
        raise ConfigError(
            f"there is a set, but not its crosswalk {paths.crosswalk}",
            where=paths.out,
            hint="give its --crosswalk, or another --out",
        )
    return complete


def require_same_set(paths: PreparePaths, plan: InputPlan) -> None:
    """Require that a complete set is the one this run would write.

    Raises:
        ConfigError: It is another set; the message lists the differences.
    """
    try:
        found = load_shard_set(paths.out, kind="images").properties
    except DataError as error:
        raise ConfigError(error.message, where=paths.out, hint="give another --out") from error
    wanted = dict(plan.properties)
    if found.get("inputs_sha256") == wanted.pop("inputs_sha256"):
        return
    changed = difference({name: found.get(name) for name in wanted}, wanted)
    raise ConfigError(
        f"a set of something else is there: {changed or 'the photographs or their labels have changed'}",
        where=paths.out,
        hint="give another --out, or remove the set",
    )


def claim(paths: PreparePaths, plan: InputPlan) -> None:
    """Write the plans of the chunks, or keep those of the same stopped run; files of another run are removed."""
    request = filesystem.join(paths.work, _REQUEST_NAME)
    # of the version of the crop too: a set of which one half was cropped by an earlier version would be two
    wanted = {"fingerprint": plan.fingerprint, "out": resolved(paths.out), "crop": CROP["version"]}
    if filesystem.exists(request):
        try:
            found = documents.read_document(request, format_name=RECORD_FORMAT, version=RECORD_VERSION)
        except DataError:
            found = {}  # of another version
        if {name: found.get(name) for name in wanted} == wanted:
            return
    filesystem.remove(paths.work, recursive=True)
    for name in (*SPLITS, REJECTS_NAME):
        filesystem.remove(filesystem.join(paths.out, name), recursive=True)
    for folder in (paths.chunks, paths.shards):
        filesystem.make_dir(folder)
    for number in range(plan.num_chunks):
        rows = (asdict(sample) for sample in plan.chunk(number))
        write_private_lines(paths.chunk_url(number, "plan.jsonl"), rows)
    documents.write_document(request, wanted, format_name=RECORD_FORMAT, version=RECORD_VERSION)
