#!/bin/bash
# Runs a verb on several hosts without SLURM. Start the same command on every host named in the host file (one host
# a line, the first one is where the ranks meet), for example with ssh or pdsh.
# usage: HOSTFILE=hosts.txt PROCS_PER_NODE=8 launchers/torchrun_hostfile.sh train --latents DIR --run-dir DIR
set -euo pipefail

hostfile="${HOSTFILE:?set HOSTFILE to a file with one host a line}"
here="$(awk -v a="$(hostname)" -v b="$(hostname -s)" '$1 == a || $1 == b { print NR - 1; exit }' "$hostfile")"
node_rank="${NODE_RANK:-$here}"

exec "${SYNFUNDUS_PYTHON:-python3}" -m torch.distributed.run \
  --nnodes "$(grep -c . "$hostfile")" \
  --node-rank "${node_rank:?this host is not in the host file; set NODE_RANK}" \
  --nproc-per-node "${PROCS_PER_NODE:-8}" \
  --master-addr "$(head -n 1 "$hostfile")" \
  --master-port "${MASTER_PORT:-29400}" \
  -m synfundus "$@"
