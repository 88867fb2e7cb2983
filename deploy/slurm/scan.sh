#!/bin/bash
# Verdicts on many images, as a Slurm array with a GPU a task. Run it on a submit host:
#
#     IMAGES='s3://bucket/tars/*.tar' RUN=runs/moondream_lora bash deploy/slurm/scan.sh [any flag of vlm-detect scan]
#
# It queues the array and ends. Run it again when the job is done: it queues what is missing, or prints the counts.
set -euo pipefail

vlm-detect scan "${IMAGES:?a folder, a glob, a list or a URL of the images}" --model "${RUN:?the run directory}" \
    --out "${OUT:-verdicts}" \
    --executor slurm --workers "${WORKERS:-16}" --gpus 1 --cpus 8 --memory_gb 32 --slurm_time 12:00:00 \
    ${PARTITION:+--slurm_partition "$PARTITION"} "$@"
