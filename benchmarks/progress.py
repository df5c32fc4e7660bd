"""How eyes change along grades: ``python -m benchmarks.progress --model RUN --judge FOLDER``.

Eyes of keyed noise, half of them left, as ``dr_grade`` moves from 0 to 4, read by a judge that learned from photographs
(the folder is one of `judge`): whether the mean grade rises from frame to frame, whether the side stays, and how well
the vessels do, between neighbouring frames and with the first one.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from benchmarks.measuring import report
from synfundus.artifacts.model import CPU_BATCH_SIZE
from synfundus.artifacts.model_folder import find_pipeline, load_pipeline
from synfundus.artifacts.progression import generate_frames
from synfundus.config.generation import SampleConfig
from synfundus.evaluation.judge import predict_labels
from synfundus.labels.schema import READABLE
from synfundus.models.pixels import pixels_to_tensor
from synfundus.models.vessel_metrics import vessel_correlation
from synfundus.stages import build
from synfundus.stages.frames import open_judge
from synfundus.stages.progress.job import course_of

CPU = torch.device("cpu")


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--judge", required=True)
    parser.add_argument("--num-eyes", type=int, default=64)
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--readable", action="store_true", help="ask for eyes that can be read, too")
    given = parser.parse_args()
    model = load_pipeline(find_pipeline(given.model), device=CPU)
    judge = open_judge(given.judge, model)
    assert judge is not None
    settings = build.sampler_settings(SampleConfig(), model.recommended_sampling, schema=model.label_schema)
    names = judge.schema.names
    grades, kept, neighbours, firsts = [], 0, [], []
    for eye in range(given.num_eyes):
        labels: dict[str, int | str] = {"dr_grade": "0..4", "eye_side": eye % 2}
        labels |= {name: 1 for name in READABLE if given.readable and name in model.label_schema.names}
        course = course_of(labels, model.label_schema)
        frames = generate_frames(
            model,
            course,
            num_frames=given.frames,
            image=eye,
            batch_size=CPU_BATCH_SIZE,
            seed=0,
            settings=settings,
            device=CPU,
        )
        read = dict(zip(names, predict_labels(judge, frames), strict=True))
        grades.append(read["dr_grade"].at_least.sum(axis=1))
        kept += bool((read["eye_side"].values == eye % 2).all())
        pictures = pixels_to_tensor(frames)
        neighbours.append(vessel_correlation(pictures[1:], pictures[:-1]).numpy())
        firsts.append(vessel_correlation(pictures, pictures[:1].expand_as(pictures)).numpy())
    mean = np.mean(grades, axis=0)
    rises = np.diff(mean)
    print("mean grade that the judge reads, by frame:", ", ".join(f"{value:.2f}" for value in mean))
    print(
        f"rises in {int((rises > 0).sum())} of {len(rises)} steps; the side is kept in {kept} of {given.num_eyes} eyes"
    )
    to_first = np.nanmean(firsts, axis=0)
    seen = int(np.isfinite(np.array(neighbours)).all(axis=1).sum())
    print(f"vessels can be seen in all frames of {seen} of {given.num_eyes} eyes")
    print("vessels as in the first frame, by frame:", ", ".join(f"{value:.3f}" for value in to_first))
    near = float(np.nanmean(neighbours))
    print(
        f"vessels as in the frame before: {near:.3f} in mean, {float(np.nanquantile(neighbours, 0.05)):.3f} in 1 of 20"
    )
    report(name="progress", ours=near, reference=1.0, goal=0.9, unit="correlation of vessels")


if __name__ == "__main__":
    main()
