"""A benchmark's answers in shards, by workers of this machine, of a Slurm or of a Ray cluster.

    job = answer_in_shards(options, launch, out, benchmark, respondent)    # the id of a queued job; None: all answered
    results = answer_all(benchmark, out, state, respondent)                # merges the shards into results.jsonl

    OUT/results.work/plan.json                     what is asked: number and digest; the identity of the run
    OUT/results.work/shards/00000/results.jsonl    the answers about the images of a shard; removed when merged
    OUT/results.work/logs/                         Slurm scripts and their output

The executors are those of data generation and scans. A shard has complete batches of consecutive images, so its answers
are those of one process. A finished shard is not asked about again, nor what `results.jsonl` has when the work begins.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from vlm_detect.benchmark.asked import asked_items, identity_of, respondent_of
from vlm_detect.benchmark.benchmark import Benchmark
from vlm_detect.benchmark.options import BenchmarkOptions
from vlm_detect.benchmark.respondents import Answer, Respondent
from vlm_detect.benchmark.results import RESULTS, WORK, Key, ResultWriter, merge, read_results
from vlm_detect.benchmark.run import check_unchanged
from vlm_detect.benchmark.score import key_of, plan
from vlm_detect.errors import UserError
from vlm_detect.jobs import shards
from vlm_detect.jobs.executors import check_executor, queued_job, run_shards, threads_of
from vlm_detect.jobs.launch import Launch
from vlm_detect.jobs.shards import Plan
from vlm_detect.models.registry import check_reachable, is_full_size, resolve_id

SHARD_BATCHES = 16  # a shard is of so many batches; of a multiple of 4 images each, also of complete batches of a CNN


@dataclass(frozen=True)
class AnswerShard:
    """Answers about the images of one shard; called in any process. `options` are those of the run, as JSON."""

    out: Path
    options: str
    threads: int | None = None  # torch's, on a CPU; None for its default

    def __call__(self, shard: int) -> None:
        work = self.out / WORK
        if shards.is_done(work, shard):  # its worker died between its last word and its end
            return
        asked = _open(self.out, self.options, self.threads)
        share = slice(*shards.read_plan(work).span(shard))
        with shards.new_shard(work, shard) as folder, ResultWriter(folder) as writer:
            for results in asked.answer(asked.benchmark, done=asked.done, shard=share):
                with shards.full_disk_as_user_error(work):
                    writer.write(results)
                shards.count(len({asked.images[result.id] for result in results}))


def check_launch(launch: Launch, model: str) -> None:
    """`UserError` if the executor or the model cannot be had, which is known before any work."""
    check_executor(launch)
    check_reachable(resolve_id(model))


def check_no_job(out: Path) -> None:
    """`UserError` while a Slurm job is answering in `out`."""
    if job := queued_job(out / WORK):
        raise UserError(
            f"{out}: Slurm job {job} is answering there; run the command that submitted it when it is done, or end it "
            f"with scancel {job}"
        )


def answer_in_shards(
    options: BenchmarkOptions, launch: Launch, out: Path, benchmark: Benchmark, respondent: Respondent
) -> str | None:
    """Answer what is missing in `out`, in shards for `answer_all` to merge.

    Returns the id of a cluster job where the work was only queued.

    Raises:
        UserError: a job with other settings is still at work, the cluster cannot be reached, or a worker failed.
    """
    out = out.absolute()
    work = out / WORK
    wanted = _plan(options, benchmark, respondent)
    if not shards.is_begun(work) or shards.changes(work, wanted):
        check_no_job(out)
        merge(out, [item.id for item in benchmark.items])  # what an interrupted run of other settings has answered
        shards.begin(work, wanted)
    launch = launch.with_models(is_full_size(options.adapter or options.model))
    workers = min(launch.workers, len(shards.missing(work, wanted)))
    if workers:
        by = f"{workers} worker{'s' * (workers > 1)} ({launch.executor})"
        print(f"{wanted.items} images in {wanted.shards} shards, by {by}, model {options.model}", file=sys.stderr)
    task = AnswerShard(out, json.dumps(asdict(options)), threads_of(launch))
    try:
        return run_shards(task, wanted, work, launch)
    finally:
        _open.cache_clear()  # one worker is this process, which may load the model again for explanations


def _plan(options: BenchmarkOptions, benchmark: Benchmark, respondent: Respondent) -> Plan:
    asked = plan(benchmark, logprob=respondent.logprob, generate=respondent.generate, explain=respondent.explain)
    keys = [[key_of(*one) for one in image] for image in asked]
    digest = hashlib.sha256(json.dumps(keys).encode()).hexdigest()
    identity = identity_of(options, benchmark, respondent)
    return Plan("benchmark", len(asked), options.batch_size * SHARD_BATCHES, digest, identity)


class _Asked(NamedTuple):
    benchmark: Benchmark
    images: Mapping[str, tuple[str, ...]]  # of each item
    answer: Answer
    done: Collection[Key]


@cache
def _open(out: Path, options_json: str, threads: int | None) -> _Asked:
    """What this process asks, and its loaded model: a worker answers many shards."""
    if threads is not None:
        torch.set_num_threads(threads)
    options = BenchmarkOptions(**json.loads(options_json))
    benchmark = asked_items(options, quiet=True)
    respondent = respondent_of(options, out)
    check_unchanged(out, identity_of(options, benchmark, respondent))
    images = {item.id: item.images for item in benchmark.items}
    return _Asked(benchmark, images, respondent.start(), {result.key for result in read_results(out / RESULTS)})
