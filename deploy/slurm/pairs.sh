#!/bin/bash
# A pair dataset from photos, as a Slurm array with a GPU a task. Run it on a submit host:
#
#     PHOTOS=/shared/photos OUT=/shared/pairs bash deploy/slurm/pairs.sh [any flag of vlm-detect make-pairs]
#
# It queues the steps and ends. Run it again when the jobs are done: it queues what is missing, or writes the dataset.
set -euo pipefail

vlm-detect make-pairs --images "${PHOTOS:?the folder, glob or dataset of the photos}" --out "${OUT:-data/pairs}" \
    --executor slurm --workers "${WORKERS:-16}" --gpus 1 --cpus 8 --memory_gb 64 --slurm_time 12:00:00 \
    ${PARTITION:+--slurm_partition "$PARTITION"} "$@"
