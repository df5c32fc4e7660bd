"""`synfundus prepare` on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synfundus.stages.verb import NODES, PROCS, SUBMIT, Option, Verb

if TYPE_CHECKING:
    from synfundus.config.photographs import PrepareConfig


def _problems(section: PrepareConfig, look: bool) -> list[str]:
    del look
    named = section.labels is not None or section.importer is not None
    return [] if named else ["--labels is missing (prepare.labels): Label table, CSV"]


def rehearse_prepare(section: PrepareConfig, seed: int) -> str:
    """Describe inputs and crosswalk of a run, for a dry run.

    Raises:
        SynfundusError: As the run.
    """
    from synfundus.photographs.crosswalk import check_crosswalk
    from synfundus.stages.prepare.places import check_out, find_paths, told_crosswalk
    from synfundus.stages.prepare.plan import describe_inputs
    from synfundus.storage.locations import resolved

    paths = find_paths(section)
    complete = check_out(paths)
    text = describe_inputs(section, seed=seed)
    check_crosswalk(paths.crosswalk, out=resolved(paths.out))
    where, warning = told_crosswalk(paths)
    text += f"# crosswalk\n{where}\n{f'warning: {warning}' if warning else ''}\n"
    if complete:
        from synfundus.stages.prepare.job import compare_set

        compare_set(section, seed)
    return text


VERB = Verb(
    name="prepare",
    help="Crop, de-identify and split photographs into shards.",
    order=120,
    example="synfundus prepare --source photographs --labels photographs/labels.csv --out images --image-size 256",
    options=(
        Option("--source", "prepare.source", "Folder of photographs.", required=True, role="input"),
        Option("--labels", "prepare.labels", "Label table, CSV; some importers need none.", role="input"),
        Option("--importer", "prepare.importer", "Importer for a known data set, e.g. eyepacs, aptos2019, odir5k."),
        Option("--mapping", "prepare.mapping", "YAML that maps columns to labels.", role="input"),
        Option("--out", "prepare.out", "Folder of the image set to write.", required=True, role="output"),
        Option("--image-size", "prepare.image_size_px", "Width and height of the images in the set, in pixels."),
        Option("--splits", "prepare.splits", "Fractions of patients: train,val,test."),
        Option("--workers", "prepare.workers", "Worker processes that decode and crop; 0: the main process."),
        Option(
            "--crosswalk",
            "prepare.crosswalk",
            "Folder for the map from keys to source names; default: below synfundus-crosswalks, away from the set.",
            role="output",
        ),
        Option("--burned-text", "prepare.burned_text", "What to do about text inside the field of view."),
        Option(
            "--compare-with",
            "prepare.compare_with",
            "Other image set, or its crosswalk: report near-duplicates (repeatable).",
            kind="many",
            metavar="PATH",
        ),
        NODES,
        PROCS,
        SUBMIT,
    ),
    sections=("seed", "prepare", "storage", "launch"),
    distributed=True,
    host_only=True,
    script="prepare.sh",
    problems=_problems,
    dry_run=rehearse_prepare,
    closing=(
        "image set: {out} ({splits})",
        "CROSSWALK: {crosswalk} has file names, patients and the secret key: keep it away from the set",
        "next: synfundus train-vae{recipe} --data {out} --run-dir RUN",
    ),
)
