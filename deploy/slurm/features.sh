#!/bin/bash
# The feature cache of a training, as a Slurm array with a GPU a task. Run it on a submit host, then train:
#
#     DATA=/shared/pairs bash deploy/slurm/features.sh [any flag of vlm-detect train moondream]
#     DATA=/shared/pairs sbatch deploy/slurm/train.sh --cache_features True [the same flags]
#
# It queues the array and ends. Run it again when the job is done: it queues what is missing, or prints the cache's folder.
set -euo pipefail

vlm-detect cache-features moondream --config "${CONFIG:-moondream_lora_24gb}" --data "${DATA:-data/pairs}" \
    --executor slurm --workers "${WORKERS:-16}" --gpus 1 --cpus 8 --memory_gb 64 --slurm_time 06:00:00 \
    ${PARTITION:+--slurm_partition "$PARTITION"} "$@"
