#!/bin/bash
# A benchmark of a run, as a Slurm array with a GPU a task. Run it on a submit host:
#
#     RUN=runs/moondream_lora BENCHMARK=data/pairs bash deploy/slurm/benchmark.sh [any flag of vlm-detect benchmark]
#
# It queues the array and ends. Run it again when the job is done: it queues what is missing, or writes the results. With
# --explanations that last command needs the model: run it on a machine with a GPU, without --executor.
set -euo pipefail

vlm-detect benchmark --model "${RUN:?the run directory}" --benchmark "${BENCHMARK:-data/pairs}" \
    --out "${OUT:-$RUN/eval}" \
    --executor slurm --workers "${WORKERS:-16}" --gpus 1 --cpus 8 --memory_gb 64 --slurm_time 06:00:00 \
    ${PARTITION:+--slurm_partition "$PARTITION"} "$@"
