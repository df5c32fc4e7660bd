"""What a classifier gains from generated images of a rare class: ``python -m benchmarks.augment --work DIR``.

Phantoms in which a label has its finding in 3 of 100 photographs; a model that is trained on these; `augment`; then
a classifier from the photographs of the train split and one from the augmented train split, for the same number of
epochs (or with ``--same-images`` the same number of images shown) and several seeds, both read on a clinic of other
phantoms. Every step is resumed: ``--work`` keeps them.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.measuring import report
from synfundus.evaluation.fit import FitRecipe
from synfundus.evaluation.judge import evaluate_label_control, train_judge
from synfundus.labels.schema import LabelSchema
from synfundus.seeding import keyed_generator
from synfundus.stages.judging import JUDGE_SIZE_PX, LabelledImages, read_images
from synfundus.storage.manifest import ShardSet, load_shard_set

SIZE_PX = 144
EPOCHS = 14
BATCH, LR, WEIGHT_DECAY = 32, 6e-3, 0.02


def synfundus(*words: object) -> None:
    """Run a verb."""
    subprocess.run([sys.executable, "-m", "synfundus", *map(str, words)], check=True)


def drop_findings(folder: Path, out: Path, label: str, share: float) -> None:
    """Copy the table of a folder of phantoms without photographs that have a finding, until a share of them is left."""
    rows = list(csv.DictReader((folder / "labels.csv").open(encoding="utf-8")))
    found = [at for at, row in enumerate(rows) if row[label] == "1"]
    others = sum(row[label] == "0" for row in rows)
    kept = round(share * others / (1 - share))
    if kept >= len(found):
        raise SystemExit(
            f"{label} has {len(found)} findings in {others + len(found)} known ones: fewer than {share:.0%}"
        )
    gone = set(keyed_generator(0, "rare class").permutation(found)[kept:].tolist())
    (out / "images").mkdir(parents=True, exist_ok=True)
    left = [row for at, row in enumerate(rows) if at not in gone]
    for row in left:
        if not (out / row["file"]).exists():
            (out / row["file"]).hardlink_to(folder / row["file"])
    with (out / "labels.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(left)


def prepare_model(work: Path, label: str, share: float, num_images: int, budget_images: int) -> None:
    """Draw the phantoms, and train a model on those of the train split."""
    preset = ("--preset", "demo-cpu")
    synfundus("phantoms", "--num-images", num_images, "--out", work / "clinic", "--image-size", SIZE_PX)
    if not (work / "rare" / "labels.csv").exists():
        drop_findings(work / "clinic", work / "rare", label, share)
    source = ("--source", work / "rare", "--labels", work / "rare" / "labels.csv")
    synfundus("prepare", *preset, *source, "--out", work / "images")
    vae = ("--set", f"train_vae.loop.budget_images={min(budget_images // 20, 12_000)}")
    synfundus("train-vae", *preset, *vae, "--data", work / "images", "--run-dir", work / "vae")
    latents = ("--data", work / "images", "--vae", work / "vae", "--out", work / "latents")
    synfundus("encode-latents", *preset, *latents)
    half_life = ("--set", f"train.ema.half_life_images={budget_images // 12}")
    run = ("--latents", work / "latents", "--run-dir", work / "model", "--budget-images", budget_images)
    synfundus("train", *preset, *half_life, *run)


def test_clinic(work: Path, num_images: int) -> LabelledImages:
    """Return phantoms of another clinic, in which nothing is rare on purpose."""
    other = ("--seed", 1, "--num-images", num_images, "--image-size", SIZE_PX)
    synfundus("phantoms", *other, "--out", work / "test-clinic")
    source = ("--source", work / "test-clinic", "--labels", work / "test-clinic" / "labels.csv")
    splits = ("--set", "prepare.splits=[1.0,0.0,0.0]")
    synfundus("prepare", "--preset", "demo-cpu", *splits, *source, "--out", work / "test-images")
    return read_images(load_shard_set(str(work / "test-images"), kind="images"), splits=("train",))


def figures(
    train: LabelledImages, test: LabelledImages, schema: LabelSchema, *, budget_images: int, seed: int
) -> dict[str, float]:
    """Train a classifier and return its AUC for each label on other photographs; of grades from 1 on."""
    judge = train_judge(
        pixels=train.pixels,
        reconstructions=None,
        states=train.states,
        schema=schema,
        image_size_px=min(JUDGE_SIZE_PX, train.pixels.shape[1]),
        recipe=FitRecipe(num_samples=budget_images, batch_size=BATCH, lr=LR, weight_decay=WEIGHT_DECAY),
        seed=seed,
        on_step=lambda images, loss: None,
    )
    found = evaluate_label_control(judge, test.pixels, test.states)
    return {name: one.auc for name, one in found.items() if one.auc is not None}


def augmented_sets(work: Path, label: str, fill: int, options: Sequence[str]) -> tuple[ShardSet, ShardSet]:
    """Return the photographs, and what `augment` makes of them."""
    out = work / f"augmented-{fill}{''.join(options)}"
    words = ("--real", work / "images", "--model", work / "model", "--fill", f"{label}={fill}", "--format", "shards")
    synfundus("augment", *words, *options, "--out", out)
    return load_shard_set(str(work / "images"), kind="images"), load_shard_set(str(out), kind="augmented")


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--label", default="is_crp")
    parser.add_argument("--share", type=float, default=0.03)
    parser.add_argument("--num-images", type=int, default=6000)
    parser.add_argument("--budget-images", type=int, default=320_000)
    parser.add_argument("--fill", type=int, default=1500, help="images of the rare class in the augmented train split")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--matched", action="store_true")
    parser.add_argument("--same-images", action="store_true", help="fewer epochs of the larger set")
    parser.add_argument("--model-only", action="store_true")
    given = parser.parse_args()
    work: Path = given.work
    prepare_model(work, given.label, given.share, given.num_images, given.budget_images)
    if given.model_only:
        return
    real, augmented = augmented_sets(work, given.label, given.fill, ["--matched"] if given.matched else [])
    schema, test = real.label_schema, test_clinic(work, given.num_images // 2)
    sides = [read_images(one, splits=("train",)) for one in (augmented, real)]
    budgets = [EPOCHS * len(sides[1] if given.same_images else side) for side in sides]
    print(f"{len(sides[1]):,} photographs, {len(sides[0]) - len(sides[1]):,} generated; read on {len(test):,} others")
    rows = []
    for seed in given.seeds:
        ours, reference = (
            figures(side, test, schema, budget_images=budget, seed=seed)
            for side, budget in zip(sides, budgets, strict=True)
        )
        rows.append({name: (ours[name], reference[name]) for name in reference})
        rare = rows[-1][given.label]
        others = {name: one - two for name, (one, two) in rows[-1].items() if name != given.label}
        worst = min(others, key=lambda name: others[name])
        print(f"seed {seed}: {given.label} {rare[0]:.4f}, photographs alone {rare[1]:.4f}; ", end="")
        print(
            f"other labels {np.mean([*others.values()]):+.4f} in mean, worst {worst} {others[worst]:+.4f}", flush=True
        )
    for name in rows[0]:
        ours_mean, reference_mean = (statistics.mean(row[name][side] for row in rows) for side in (0, 1))
        print(f"{name:28} {ours_mean:.4f}  photographs alone {reference_mean:.4f}  {ours_mean - reference_mean:+.4f}")
    ours_all, reference_all = (statistics.mean(row[given.label][side] for row in rows) for side in (0, 1))
    higher = sum(row[given.label][0] > row[given.label][1] for row in rows)
    print(f"AUC of {given.label} higher in {higher} of {len(rows)} seeds")
    report(name="augment", ours=ours_all, reference=reference_all, goal=1.0, unit="AUC")


if __name__ == "__main__":
    main()
