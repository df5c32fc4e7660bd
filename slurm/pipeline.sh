#!/bin/bash
# Submits the chain prepare -> train-vae -> encode-latents -> train -> sample; each job waits for the previous one.
# usage: slurm/pipeline.sh RUN.yaml [sbatch options]
# RUN.yaml names every folder (prepare.out, train_vae.data, train_vae.run_dir, encode.*, train.*, sample.*); see
# `synfundus VERB --config RUN.yaml --dry-run`. Run it on a login node, not through sbatch.
set -euo pipefail

config="${1:?usage: slurm/pipeline.sh RUN.yaml [sbatch options]}"
shift
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
previous=()
for script in prepare.sh vae.sh encode_latents.sh ldm.sh sample.sh; do
  job="$(sbatch --parsable "${previous[@]}" "$@" "$here/$script" --config "$config")"
  job="${job%%;*}"
  echo "$script: job $job"
  previous=("--dependency=afterok:$job" --kill-on-invalid-dep=yes)
done
