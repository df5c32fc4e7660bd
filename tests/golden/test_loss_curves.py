"""What every objective's loss was over twelve steps, in golden/loss_curves.json: a change of it has to be meant.

`make golden` writes the file anew; a curve that moved without a reason in the commit is a fault.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from curves import BATCH, STEPS, CurveFile
from fixed_latents import write_fixed_latents
from tiny_sets import tiny_config

from synfundus.distributed.world import World
from synfundus.stages.train import job as train
from synfundus.storage.documents import read_lines
from synfundus.telemetry.console import SilentConsole

KINDS = ("epsilon", "v_prediction", "sample")
SCHEDULES = ("linear", "scaled_linear", "cosine")


def on_schedule(kind: str, schedule: str, **more: Any) -> dict[str, Any]:
    plain = {"zero_terminal_snr": False, "min_snr_gamma": None}
    return {"prediction_type": kind, "beta_schedule": schedule, **plain, **more}


def flow(**times: Any) -> dict[str, Any]:
    return {**on_schedule("flow_velocity", "scaled_linear"), "flow": times}


CASES: dict[str, dict[str, Any]] = {
    **{f"{kind} {schedule}": on_schedule(kind, schedule) for kind in KINDS for schedule in SCHEDULES},
    **{
        f"v_prediction {schedule} zero-terminal": on_schedule("v_prediction", schedule, zero_terminal_snr=True)
        for schedule in ("linear", "scaled_linear")  # the cosine ends in noise as it is: its curve moves by 1e-5
    },
    "sample scaled_linear zero-terminal": on_schedule("sample", "scaled_linear", zero_terminal_snr=True),
    **{f"{kind} scaled_linear min-snr": on_schedule(kind, "scaled_linear", min_snr_gamma=5.0) for kind in KINDS},
    "flow_velocity uniform": flow(time_density="uniform"),
    "flow_velocity logit_normal": flow(time_density="logit_normal"),
    "flow_velocity logit_normal located": flow(time_density="logit_normal", location=-0.6, scale=1.6),
    "flow_velocity logit_normal shift": flow(time_density="logit_normal", shift=3.0),
}
CURVES = CurveFile("loss_curves.json", CASES)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_fixed_latents(tmp_path_factory.mktemp("curves"))


def curve(inputs: tuple[Path, Path], run_dir: Path, diffusion: dict[str, Any], world: World) -> dict[str, Any]:
    """Train on the fixed latents; returns the loss of each step and the averaged weights' on the other split."""
    latents, vae = inputs
    config = tiny_config(
        {
            "train": {
                "latents": str(latents),
                "vae": str(vae),
                "run_dir": str(run_dir),
                "unet": {"block_out_channels": [16, 32], "attention_levels": [False, True]},
                "diffusion": diffusion,
                "loop": {
                    "budget_images": BATCH * STEPS,
                    "checkpoint_every_images": BATCH * STEPS,
                    "validate_every_images": 0,
                    "validation_images": 8,
                },
            }
        }
    )
    summary = train.run(config, world, SilentConsole())
    rows = read_lines(str(run_dir / "metrics.jsonl"))
    losses = [float(row["loss"]) for row in rows if "loss" in row]
    assert len(losses) == STEPS
    return {"loss": losses, "validation_loss": [float(summary["validation_loss"])]}


@pytest.mark.parametrize("case", CASES)
def test_the_loss_of_every_objective_is_the_agreed_one(
    case: str, inputs: tuple[Path, Path], world: World, tmp_path: Path
) -> None:
    found = curve(inputs, tmp_path / "run", CASES[case], world)
    CURVES.assert_agreed(case, found)


def test_the_file_holds_every_case_and_no_two_are_alike() -> None:
    """An option without an effect would show as a curve that another case has too."""
    CURVES.assert_whole()
