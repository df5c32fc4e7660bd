#!/bin/bash
# Runs a verb in this shell's SLURM allocation, one task per GPU.
# usage: salloc --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 launchers/srun.sh train --latents DIR --run-dir DIR
set -euo pipefail

MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
MASTER_PORT="${MASTER_PORT:-$((12000 + (SLURM_JOB_ID + 97 * ${SLURM_RESTART_COUNT:-0}) % 18000))}"
export MASTER_ADDR MASTER_PORT PYTHONSAFEPATH=1  # no Python file of the working folder is imported

# srun does not inherit the cores per task from salloc
exec srun --export=ALL --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "${SYNFUNDUS_PYTHON:-python3}" -m synfundus "$@"
