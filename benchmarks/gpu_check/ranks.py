"""Step 8: two GPUs: NCCL's rate, one rank against two, a rank that is killed or stopped. Left out with one GPU."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import distributed

from benchmarks.gpu_check.resume import PRESET, arguments, metrics
from benchmarks.gpu_check.setting import NARROW, QUIET, Ended, Setting, VerbProcess, below, run_verb
from benchmarks.gpu_check.verdicts import NOTHING_COMPUTED, Report, relative_gap
from benchmarks.training_runs import last_lines, start_ranks, write_autoencoder_and_latents
from synfundus.distributed.world import connect, disconnect

REDUCED_BYTES = 400_000_000
NORM_TOLERANCE = 0.01
WATCHDOG_S, COLLECTIVE_S = 20, 60
_TRAILING_S = 60.0
"""Seconds that processes may need to end after the limit that ends them."""


def run(setting: Setting, report: Report) -> None:
    """Measure and break."""
    if torch.cuda.device_count() < 2:
        report.skip("two GPUs", f"{torch.cuda.device_count()} GPU here")
        return
    _all_reduce(setting, report)
    batch, images = (4, 16) if setting.small else (64, 512)
    settings = setting.job(
        PRESET,
        *QUIET,
        *(() if setting.small else NARROW),
        "train.loop.precision=bf16",
        "train.loop.channels_last=false",
        "train.unet.dropout=0",
        f"train.loop.global_batch_size={batch}",
        f"train.loop.log_every_images={batch}",
        "train.loop.checkpoint_every_images=1000000000",
        f"train.loop.watchdog_s={WATCHDOG_S}",
        f"launch.collective_timeout_s={COLLECTIVE_S}",
    )
    write_autoencoder_and_latents(setting.config(PRESET, *settings), setting.folder, sizes=(images, images))
    _one_against_two(setting, report, (*settings, f"train.loop.budget_images={4 * batch}"))
    if setting.stand_in:
        report.skip("a rank that is killed or stopped", NOTHING_COMPUTED)
        return
    endless = (*settings, "train.loop.budget_images=100000000")
    _break(setting, report, endless, signal.SIGKILL, codes=(7, 75, 128 + signal.SIGKILL))
    _break(setting, report, endless, signal.SIGSTOP, codes=(75,))


def _all_reduce(setting: Setting, report: Report) -> None:
    size = 2**16 if setting.small else REDUCED_BYTES
    answers = last_lines(start_ranks("benchmarks.gpu_check.ranks", [str(size)], ranks=2), timeout_s=120)
    rate = json.loads(answers[0])["gb_per_s"]
    report.figure("all_reduce", f"{rate:.1f} GB/s of bus bandwidth, {size / 1e6:,.0f} MB", gb_per_s=rate, bytes=size)


def measure_all_reduce(size: int) -> float:
    """Return the bus bandwidth of a sum over all ranks in GB/s, by the definition of nccl-tests. Collective."""
    world = connect(device="cuda", timeout_s=60, num_threads=1)
    vector = torch.zeros(size // 2, dtype=torch.bfloat16, device=torch.device("cuda", world.local_rank))
    for _ in range(3):
        distributed.all_reduce(vector)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(10):
        distributed.all_reduce(vector)
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - began) / 10
    disconnect()
    return 2 * (world.size - 1) / world.size * size / max(seconds, 1e-9) / 1e9


def _one_against_two(setting: Setting, report: Report, settings: tuple[str, ...]) -> None:
    norms: dict[int, list[float]] = {}
    for ranks in (1, 2):
        name = f"ranks-{ranks}"
        ended = run_verb(
            *arguments(setting, name),
            *("--procs-per-node", str(ranks)),
            log=setting.folder / f"{name}.log",
            settings=settings,
            timeout_s=300,
        )
        rows = metrics(setting.folder / name)
        if ended.code != 0 or not rows:
            report.holds(f"{ranks} ranks", False, f"ended with {ended.code}: {ended.complaint}")
            return
        norms[ranks] = [row["grad_norm"] for row in rows]
        report.figure(
            f"{ranks} ranks", f"{rows[-1]['images_per_s']:.1f} images/s", images_per_s=rows[-1]["images_per_s"]
        )
    gap = max(relative_gap(two, one) for one, two in zip(norms[1], norms[2], strict=True))
    report.parity("two ranks against one", gap, NORM_TOLERANCE, "largest gap of the gradient's norm")


def _break(
    setting: Setting, report: Report, settings: tuple[str, ...], number: signal.Signals, *, codes: tuple[int, ...]
) -> None:
    """Send a signal to a rank of a running training, and see how and when the job ends."""
    name = f"{number.name} to a rank"
    place = number.name.lower()
    process = VerbProcess(
        *arguments(setting, place), "--procs-per-node", "2", log=setting.folder / f"{place}.log", settings=settings
    )
    steps = process.wait_for(lambda: bool(metrics(setting.folder / place)), timeout_s=180)
    rank = rank_process(process.process.pid, rank=1) if steps else None
    if rank is None:
        process.kill()
        report.holds(name, False, "no step of two ranks to break")
        return
    os.kill(rank, number)
    began = time.monotonic()
    limit = COLLECTIVE_S + _TRAILING_S
    ended = process.wait(limit)
    report.holds(name, *judge_break(ended, time.monotonic() - began, codes=codes, limit_s=limit))


def judge_break(ended: Ended, seconds: float, *, codes: tuple[int, ...], limit_s: float) -> tuple[bool, str]:
    """Return whether a job ended as it should after one of its ranks did not go on, and a sentence about it."""
    fine = ended.code in codes and seconds < limit_s
    wanted = " or ".join(str(code) for code in dict.fromkeys(codes))
    return fine, f"the job ended with {ended.code} after {seconds:.0f} s ({wanted} within {limit_s:.0f} s)"


def rank_process(launcher: int, *, rank: int) -> int | None:
    """Return the process below a launcher that has this rank in its environment."""
    for process in below(launcher):
        try:
            environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"RANK={rank}".encode() in environment:
            return process
    return None


if __name__ == "__main__":
    answer = {"gb_per_s": measure_all_reduce(int(sys.argv[1]))}
    print(json.dumps(answer), flush=True)
