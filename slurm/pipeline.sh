#!/bin/bash
# Submits the chain prepare -> train-vae -> encode-latents -> train -> sample; each job waits for the previous one.
# usage: slurm/pipeline.sh RUN.yaml [sbatch options]
# RUN.yaml names every folder (prepare.out, train_vae.data, train_vae.run_dir, encode_latents.*, train.*, sample.*); see
# `synfundus VERB --config RUN.yaml --dry-run`. Run it on a login node, not through sbatch.
set -euo pipefail

if [ $# -eq 0 ]; then echo "usage: slurm/pipeline.sh RUN.yaml [sbatch options]" >&2; exit 2; fi
config="$1"
if [ ! -f "$config" ]; then echo "$config: no such file" >&2; exit 2; fi
shift
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
previous=() jobs=() script="" inherited=()

# a chain that cannot be submitted as a whole leaves no job behind
undo() {
  code=$?
  [ "$code" -ne 0 ] || return 0
  echo "$script could not be submitted; the chain needs all of its jobs" >&2
  [ "${#jobs[@]}" -gt 0 ] || exit "$code"
  if scancel "${jobs[@]}"; then echo "cancelled: ${jobs[*]}" >&2
  else echo "these jobs are still there; cancel them: scancel ${jobs[*]}" >&2; fi
  exit "$code"
}
trap undo EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# the names only: variables with a key or with credentials in them stay here, and are named
names="$("${SYNFUNDUS_PYTHON:-python3}" -W ignore::RuntimeWarning:runpy -P -m synfundus.launch.inheritance)" && inherited=("--export=$names")
for script in prepare.sh vae.sh encode_latents.sh ldm.sh sample.sh; do
  job="$(sbatch --parsable "${inherited[@]}" "${previous[@]}" "$@" "$here/$script" --config "$config")"
  job="${job%%;*}"
  jobs+=("$job")
  echo "$script: job $job"
  previous=("--dependency=afterok:$job" --kill-on-invalid-dep=yes)
done
