"""The verbs `vlm-detect cache-features RECIPE`: compute the feature cache of a training before it, by many workers.

    vlm-detect cache-features moondream --config moondream_lora_24gb --data data/pairs --workers 4
    vlm-detect train moondream --config moondream_lora_24gb --data data/pairs --cache_features True     # computes none

Nothing heavy is imported before the flags are read, so that `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlm_detect.errors import UsageError
from vlm_detect.train import moondream as moondream_recipe
from vlm_detect.train import tinyllava as tinyllava_recipe
from vlm_detect.train import vlm as vlm_recipe
from vlm_detect.train.command import Parse

_DOC = """Compute the image embeddings of a frozen tower that training with --cache_features reads, by many workers.

    vlm-detect cache-features {recipe} --config {config} --data data/pairs --workers 4
    vlm-detect cache-features {recipe} --config {config} --data data/pairs --executor slurm --workers 16
    vlm-detect train {recipe} --config {config} --data data/pairs --cache_features True     # computes none itself

Takes the flags of vlm-detect train {recipe}, and those of executors. Give the flags that the training will have: a
cache is of one model, dtype, dataset and augmentation. Output: files of 256 images in --features_dir, the same that the
training would write. The same command resumes; a worker that dies is replaced.
"""


def moondream(argv: list[str]) -> None:
    _cache(moondream_recipe.parse, argv, "moondream", "moondream_lora_24gb")


def tinyllava(argv: list[str]) -> None:
    _cache(tinyllava_recipe.parse, argv, "tinyllava", "tinyllava_lora --train_connector False")


def vlm(argv: list[str]) -> None:
    _cache(vlm_recipe.parse, argv, "vlm", "vlm_lora")


def _cache(parse: Parse, argv: Sequence[str], recipe: str, config: str) -> None:
    argv = [*argv, "--cache_features", "True"]
    options = parse(argv, _DOC.format(recipe=recipe, config=config), has_launch=True)
    if options.training.seeds:
        raise UsageError("--seeds: give one --seed; without --augment the cache is the same for all")
    from vlm_detect.train.feature_shards import cache_features  # lazy: imports torch, which --help does not need

    cache_features(parse, argv, options)
