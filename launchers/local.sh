#!/bin/bash
# Runs a verb in several processes on this machine; `synfundus VERB --procs-per-node N` does the same without torchrun.
# usage: PROCS_PER_NODE=2 launchers/local.sh train --latents DIR --run-dir DIR
set -euo pipefail

export PYTHONSAFEPATH=1  # no Python file of the working folder is imported
exec "${SYNFUNDUS_PYTHON:-python3}" -m torch.distributed.run \
  --standalone \
  --nproc-per-node "${PROCS_PER_NODE:-1}" \
  -m synfundus "$@"
