"""A feature cache in shards, by workers of this machine, of a Slurm or of a Ray cluster: `vlm-detect cache-features`.

    cache_features(moondream.parse, argv, options)      # what `vlm-detect train moondream ARGV` would compute first

    FEATURES_DIR/work-1a2b3c/plan.json                      the data and the settings; removed when all is done
    FEATURES_DIR/work-1a2b3c/shards/00000/rows.parquet      which file of which cache was written, and its images
    FEATURES_DIR/5d6e7f.../features-00000.safetensors       the cache

A shard is a file of the cache. A worker opens data and model as the training does, so the cache is the one that a
training on such a machine looks for. The calling process loads no model: its machine may have another dtype.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from datasets import Features, Value

from vlm_detect.errors import UserError
from vlm_detect.jobs import shards
from vlm_detect.jobs.executors import check_executor, run_shards
from vlm_detect.jobs.shards import Plan
from vlm_detect.locks import held
from vlm_detect.machine import best_device, cpu_cores
from vlm_detect.models.registry import check_reachable, is_full_size, resolve_id
from vlm_detect.train.command import Options, Parse
from vlm_detect.train.features import CHUNK, FeatureFiles
from vlm_detect.train.program import TrainingData, hashes_of, load, open_data, readable

ROW = Features({"folder": Value("string"), "images": Value("int64")})


@dataclass(frozen=True)
class CacheShard:
    """Computes one file of the cache; called in any process. `argv` is the command line that `parse` reads."""

    work: Path
    parse: Parse
    argv: tuple[str, ...]

    def __call__(self, shard: int) -> None:
        files = _open(self.parse, self.argv)
        if shard < len(files) and not files.is_written(shard):
            files.write(shard, shards.count)
        row = {"folder": str(files.folder), "images": files.images_in(shard)}
        shards.write_shard(self.work, shard, [row], ROW, None)


def cache_features(parse: Parse, argv: Sequence[str], options: Options) -> None:
    """Have the cache computed that a training with these options reads, or report the job that was queued for it.

    Raises:
        UserError: the data, the model or the cluster cannot be had, or workers compute for different caches.
    """
    launch = options.launch
    check_executor(launch)
    base = resolve_id(options.model.model, options.role, options.model.revision)
    check_reachable(base)
    data = open_data(options, base)
    root = Path(options.data.features_dir).absolute()
    plan = make_plan(options, base.name, data)
    work = root / f"work-{_digest(plan)}"
    # Workers run the model that this machine chose; those of one machine share its cores.
    command = [*argv, "--model", base.name, "--features_dir", str(root)]
    if launch.executor == "local" and launch.workers > 1 and options.data.cpu_threads is None:
        command += ["--cpu_threads", str(max(1, cpu_cores() // launch.workers))]
    with held(work, flag="--features_dir"):
        shards.begin(work, plan)
        launch = launch.with_models(is_full_size(base.name))
        try:
            job = run_shards(CacheShard(work, parse, tuple(command)), plan, work, launch)
        except UserError:
            if len(shards.missing(work, plan)) == plan.shards:
                shutil.rmtree(work)  # nothing to continue
            raise
        finally:
            _open.cache_clear()
        if job:
            print(f"{root}: job {job} is queued; run the same command again when it is done")
            return
        folder, n = finished(work, plan)
        shutil.rmtree(work)
    rest = len(data.units.images) - n
    copies = f" ({rest} more are copies, or the model cannot read them)" if rest else ""
    print(f"{folder}: the embeddings of {n} images{copies}; train with the same flags and --cache_features True")


def make_plan(options: Options, model: str, data: TrainingData) -> Plan:
    """One shard for each file that the cache may have: what the model cannot read, and copies, make it fewer."""
    groups = (options.model, options.data, options.lora, options.expert)
    settings: dict[str, Any] = {name: value for group in groups for name, value in asdict(group).items()}
    settings |= {"role": options.role, "seed": options.training.seed, "model": model}
    inputs = hashlib.sha256(json.dumps(hashes_of(data)).encode()).hexdigest()
    return Plan("features", len(data.units.images), CHUNK, inputs, settings)


def finished(work: Path, plan: Plan) -> tuple[str, int]:
    """The folder of the complete cache, and the number of its images; `UserError` where there are several folders."""
    rows = [row for shard in range(plan.shards) for row in shards.read_rows(work, shard)]
    folders = sorted({row["folder"] for row in rows})
    if len(folders) > 1:
        shutil.rmtree(work)
        raise UserError(
            f"the workers computed for {len(folders)} caches ({', '.join(folders)}): their devices differ in dtype, or "
            "the model changed meanwhile; give --dtype, and run the same command again"
        )
    return folders[0], sum(row["images"] for row in rows)


def _digest(plan: Plan) -> str:
    return hashlib.sha256(json.dumps(asdict(plan), default=str).encode()).hexdigest()[:12]


@cache
def _open(parse: Parse, argv: tuple[str, ...]) -> FeatureFiles:
    """The cache's files, and the loaded model that computes them: a worker computes many. What a training prints about
    the data, its own command will print."""
    own_device = best_device()  # the flags of the Trainer make the first GPU the current one
    with redirect_stdout(io.StringIO()):
        options = parse(argv, None, has_launch=True)
        device = options.training.device
        if device.type == "cuda":
            device = own_device
            torch.cuda.set_device(device)
        base = resolve_id(options.model.model, options.role, options.model.revision)
        data = open_data(options, base)
        vlm = load(options, base, device)
        data = readable(options, vlm, data)
    return FeatureFiles.plan(vlm, data.units.images, Path(options.data.features_dir))
