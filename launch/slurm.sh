#!/usr/bin/env bash
# Fine-tunes on GPU nodes under Slurm: `sbatch launch/slurm.sh`, from the checkout.
#SBATCH --job-name=idefics
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

OUT=$SLURM_SUBMIT_DIR/runs/chats   # on a disk that all nodes share; or a gs:// or s3:// URL
TRAIN=(
  --recipe idefics-instruct --model HuggingFaceM4/idefics-9b --data.train chats.jsonl --out "$OUT"
  --mesh.data "$SLURM_NNODES"      # weights are cut into pieces within a node, and copied between nodes
  --process.coordinator auto       # JAX reads Slurm's variables; one process for each GPU
)

export XLA_PYTHON_CLIENT_MEM_FRACTION=0.9  # of a GPU's memory; JAX takes 0.75 by default
export NCCL_NVLS_ENABLE=1                  # sums within a node by its NVLink switch
export CUDA_DEVICE_MAX_CONNECTIONS=1       # collectives start in time on Hopper; leave it out on Blackwell

# Five minutes before the time is up Slurm sends SIGTERM to every process: the run saves, and ends with status 75.
# If one process ends with an error, the others are ended too.
status=0
srun --kill-on-bad-exit=1 .venv/bin/python -m train "${TRAIN[@]}" || status=$?
if ((status == 75)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
