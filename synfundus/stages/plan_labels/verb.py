"""`synfundus plan-labels` on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synfundus.stages.verb import Option, Verb

if TYPE_CHECKING:
    from synfundus.config.sample_sets import PlanLabelsConfig


def _problems(section: PlanLabelsConfig, look: bool) -> list[str]:
    del look
    problems = []
    if section.joint and section.independent:
        problems.append("--joint and --independent contradict each other: labels together, or each by itself?")
    if section.fill_to is not None:
        given = {
            "--num-images": section.num_images is not None,
            "--independent": section.independent,
            "--unreadable": section.unreadable is not None,
        }
        problems += [f"--fill-to says how many rows of which labels: leave {flag} out" for flag in given if given[flag]]
    elif section.num_images is None and (section.balance or section.independent or section.unreadable is not None):
        problems.append("--num-images is missing: how many rows?")
    if section.unreadable is not None and "is_fundus" in section.balance:
        problems.append("--unreadable and --balance is_fundus both say how many are unreadable: leave one out")
    return problems


def _dry_run(section: PlanLabelsConfig, seed: int) -> str:
    from synfundus.stages.plan_labels.job import describe

    return describe(section, seed)


VERB = Verb(
    name="plan-labels",
    help="Plan which labels to generate images for, and mark those that few or no patients have.",
    order=405,
    example="synfundus plan-labels --from data/images --num-images 10000 --balance dr_grade --out plan.csv",
    options=(
        Option(
            "--from", "plan_labels.source", "Image set, latent set, or CSV of label rows.", required=True, role="input"
        ),
        Option("--out", "plan_labels.out", "Label plan to write, a CSV.", required=True, metavar="PATH"),
        Option("--num-images", "plan_labels.num_images", "Number of rows; default with a CSV: all of it, as it is."),
        Option(
            "--balance",
            "plan_labels.balance",
            "Labels whose values become equally frequent: dr_grade,is_gc; default: none.",
        ),
        Option(
            "--fill-to",
            "plan_labels.fill_to",
            "Plan what every value of the labels of --balance (default: all) lacks to this number with the real rows.",
        ),
        Option("--joint", "plan_labels.joint", "Labels together as photographs have them (the default).", "flag"),
        Option("--independent", "plan_labels.independent", "Each label by itself, as frequent as it is.", "flag"),
        Option("--unreadable", "plan_labels.unreadable", "Fraction of unreadable images; default: as in the set."),
        Option("--where", "plan_labels.where", "NAME=VALUE: draw only from rows with it (repeatable).", "mapping"),
        Option(
            "--seen-in",
            "plan_labels.seen_in",
            "Set of the training, to compare with; default: the set of --from.",
            role="input",
        ),
    ),
    sections=("seed", "plan_labels", "storage"),
    problems=_problems,
    dry_run=_dry_run,
    closing=("next: synfundus sample --model MODEL --labels {out} --out SAMPLES",),
)
