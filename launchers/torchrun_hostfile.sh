#!/bin/bash
# Runs a verb on several hosts without SLURM. Start the same command on every host named in the host file (one host
# per line; the ranks connect to the first one), for example with ssh or pdsh.
# usage: HOSTFILE=hosts.txt PROCS_PER_NODE=8 launchers/torchrun_hostfile.sh train --latents DIR --run-dir DIR
set -euo pipefail

# first words only: empty lines, comments and MPI's "slots=8" are ignored
mapfile -t hosts < <(awk 'NF && $1 !~ /^#/ { print $1 }' "${HOSTFILE:?set HOSTFILE to a file with one host a line}")
for number in "${!hosts[@]}"; do
  if [ "${hosts[number]}" = "$(hostname)" ] || [ "${hosts[number]}" = "$(hostname -s)" ]; then
    : "${NODE_RANK:=$number}"
  fi
done

export PYTHONSAFEPATH=1  # no Python file of the working folder is imported
exec "${SYNFUNDUS_PYTHON:-python3}" -m torch.distributed.run \
  --nnodes "${#hosts[@]}" \
  --node-rank "${NODE_RANK:?this host is not in the host file; set NODE_RANK}" \
  --nproc-per-node "${PROCS_PER_NODE:-8}" \
  --master-addr "${hosts[0]}" \
  --master-port "${MASTER_PORT:-29400}" \
  -m synfundus "$@"
