#!/bin/bash
#SBATCH --job-name=synfundus-augment
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR2@300
#SBATCH --export=PATH,HOME,USER,LANG,TMPDIR,PYTHONPATH,LD_LIBRARY_PATH,CPATH,CC,CXX,AWS_PROFILE,AWS_CONFIG_FILE,AWS_SHARED_CREDENTIALS_FILE,AWS_ENDPOINT_URL,AWS_ENDPOINT_URL_S3,AWS_DEFAULT_REGION,AWS_CA_BUNDLE,WANDB_MODE,WANDB_DISABLED,WANDB_BASE_URL,WANDB_ENTITY,WANDB_RUN_GROUP,WANDB_TAGS,HF_HOME,HF_HUB_OFFLINE,NCCL_DEBUG,NCCL_SOCKET_IFNAME,NCCL_IB_HCA,NCCL_IB_DISABLE,GLOO_SOCKET_IFNAME,OMP_NUM_THREADS,GOMP_SPINCOUNT,NO_PROXY,no_proxy,SYNFUNDUS_PYTHON,SYNFUNDUS_MAX_RESTARTS,SYNFUNDUS_MAX_FAULTS
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# Fills rare classes with generated images: one task per GPU.
# usage: sbatch [sbatch options] slurm/augment.sh --real IMAGES --model RUN --fill dr_grade=500 --out DIR
# --export lists what a job inherits: never keys, which SLURM would store in the job record.
set -uo pipefail
restarts="${SLURM_RESTART_COUNT:-0}" cap="${SYNFUNDUS_MAX_RESTARTS:-20}"
echo "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, restart $restarts of $cap, $(date +%Y-%m-%dT%H:%M:%S)"
MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export MASTER_ADDR MASTER_PORT="$((12000 + (SLURM_JOB_ID + 97 * restarts) % 18000))" SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
export SYNFUNDUS_STALLED="$PWD/.stalled-$SLURM_JOB_ID-$restarts" SYNFUNDUS_FAULTS="$PWD/.faults-$SLURM_JOB_ID" SYNFUNDUS_EXIT="$PWD/.faults-$SLURM_JOB_ID/exit" PYTHONSAFEPATH=1
[ "$restarts" -gt 0 ] || rm -rf "$SYNFUNDUS_FAULTS"; rm -f "$PWD/.stalled-$SLURM_JOB_ID-"* "$SYNFUNDUS_FAULTS"/*.* "$SYNFUNDUS_EXIT"; mkdir -p "$SYNFUNDUS_FAULTS"
srun --export=ALL --kill-on-bad-exit=1 "${SYNFUNDUS_PYTHON:-python3}" -m synfundus augment "$@" &
# srun forwards USR2 to all ranks; on TERM it would kill them before they have saved. A trap ends the wait: hence the loop
step=$! signals=0 seen=-1 tries=0
trap 'signals=$((signals + 1)); kill -USR2 "$step"' INT HUP TERM USR1 USR2 XCPU
until [ "$seen" -eq "$signals" ]; do seen="$signals"; wait "$step"; code=$?; done
[ "$code" -eq 0 ] && rm -rf "$SYNFUNDUS_FAULTS" && exit
[ "$signals" -eq 0 ] && [ "$code" -ge 128 ] && [ -s "$SYNFUNDUS_EXIT" ] && read -r code < "$SYNFUNDUS_EXIT"; rm "$SYNFUNDUS_STALLED" 2>/dev/null && code=75
# in the file: the first rank's error, where srun reports a rank that it stopped for it. 75: saved or stalled; 128 and more after a signal or a preemption: not saved. A cancelled job is not RUNNING.
until read -r state since < <(squeue -hO State,PreemptTime -j "$SLURM_JOB_ID") || ((++tries > 9)); do sleep 20; done
[[ "$since" == [0-9]* ]] && signals=$((signals + 1))
[ "$state" = RUNNING ] || exit "$code"
# other ends are final, but for a failed GPU or an aborted rank, which may be a matter of the node
if [ "$code" -eq 75 ] || { [ "$signals" -gt 0 ] && [ "$code" -ge 128 ]; }; then without=""
else without="$("${SYNFUNDUS_PYTHON:-python3}" -m synfundus.launch.faults "$(squeue -ho %x -j "$SLURM_JOB_ID")")" || exit "$code"; fi
if [ "$restarts" -lt "$cap" ]; then scontrol requeue "$SLURM_JOB_ID"; else echo "that was the last restart"; exit "$code"; fi
# SLURM takes this only from a job that waits again, and ends this script some seconds later
until [ -z "$without" ] || scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="$without" || ((++tries > 60)); do sleep 0.5; done
exit "$code"
