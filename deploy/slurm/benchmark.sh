#!/bin/bash
# A benchmark on the GPUs of one or several nodes:
#
#     RUN=runs/moondream_lora BENCHMARK=data/pairs sbatch deploy/slurm/benchmark.sh [any flag of eval/vqa_benchmark.py]
#     sbatch --nodes 2 --gpus-per-node 8 deploy/slurm/benchmark.sh
#
# Submit it again, or let Slurm requeue it: answers that are there are not asked again.
#SBATCH --job-name=vlm-detect-benchmark
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=06:00:00
#SBATCH --requeue
#SBATCH --output=%x-%j.log
set -euo pipefail

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
processes=$((SLURM_JOB_NUM_NODES * ${SLURM_GPUS_ON_NODE:?no GPU was given to this job}))
several=()
if ((processes > 1)); then
    several=(--multi_gpu --num_machines "$SLURM_JOB_NUM_NODES" --main_process_ip "$head" --main_process_port 29500)
fi

# The rank is that of the node on which a task runs: srun's shell reads it, not this one.
# shellcheck disable=SC2016
srun bash -c 'exec accelerate launch --quiet --num_processes "$0" --machine_rank "$SLURM_NODEID" "$@"' \
    "$processes" "${several[@]}" -m vlm_detect benchmark \
    --model "${RUN:?the run directory}" --benchmark "${BENCHMARK:-data/pairs}" --out "${OUT:-$RUN/eval}" "$@"
