"""Executors of the shards of a plan: local processes, actors of a Ray cluster, or a Slurm array.

    job = run_shards(task, plan, folder, Launch(executor="local", workers=4))      # task(shard) for each missing shard

A free worker takes the next shard, and keeps loaded models between shards. If a worker dies, the run stops at once and
reports its shard; finished shards are kept, and the same command resumes.

With Slurm `run_shards` returns when the array is queued; the same call after the job finds nothing missing.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vlm_detect.errors import UserError, first_line, set_up_process
from vlm_detect.extras import require
from vlm_detect.jobs import shards
from vlm_detect.jobs.launch import Launch
from vlm_detect.jobs.shards import Plan, Task
from vlm_detect.locks import held
from vlm_detect.progress import progress

_POLL_S = 0.5


class WorkerDied(UserError):
    """A worker died during a shard."""


def run_shards(
    task: Task, plan: Plan, folder: Path, launch: Launch | None = None, after: str | None = None
) -> str | None:
    """Call `task(shard)` for each shard of `plan` that is missing in `folder`.

    `task` is pickled for each shard: it has settings, and loads models by a cached function. Returns None when all is
    done, or the id of a queued cluster job, which starts after job `after`.

    Raises:
        WorkerDied: a worker was killed.
        UserError: the cluster cannot be reached, or the task raised it.
    """
    launch = launch or Launch()
    missing = shards.missing(folder, plan)
    if not missing:
        return None
    if launch.executor == "slurm":
        return _submit(task, plan, folder, missing, launch, after)
    done = plan.items - sum(len(range(*plan.span(shard))) for shard in missing)
    workers = min(launch.workers, len(missing))
    with held(folder), progress(desc=plan.step, total=plan.items, unit="img", initial=done) as bar:
        if launch.executor == "ray":
            _run_on_ray(task, plan, missing, launch, workers, bar)
        elif workers == 1:
            shards.count_with(bar.update)
            for shard in missing:
                task(shard)
            shards.count_with(None)
        else:
            _run_in_processes(task, missing, workers, bar)
    return None


def _share_out(
    missing: Sequence[int], workers: Sequence[Callable[[int], Future[None]]], death: type[Exception]
) -> Iterator[list[int]]:
    """Give each free worker the next shard; yields the newly finished shards, twice a second."""
    waiting, idle, running = deque(missing), list(workers), dict[Future[None], tuple[int, Any]]()
    while waiting or running:
        while waiting and idle:
            shard, worker = waiting.popleft(), idle.pop()
            running[worker(shard)] = shard, worker
        finished = []
        for future in wait(running, _POLL_S, FIRST_COMPLETED).done:
            shard, worker = running.pop(future)
            try:
                future.result()
            except death as error:
                raise WorkerDied(
                    f"the worker of shard {shard} died, most likely out of memory; finished shards are kept: run "
                    "the same command again, with fewer --workers or smaller batches"
                ) from error
            finished.append(shard)
            idle.append(worker)
        yield finished


# --- processes of this machine -------------------------------------------------------------------------------------


def _run_in_processes(task: Task, missing: Sequence[int], workers: int, bar: tqdm[Any]) -> None:
    """One pool per worker, so that a broken pool identifies the shard of its only process."""
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        # Torch is imported once, not once per worker, after our process settings.
        context.set_forkserver_preload(["vlm_detect.jobs.worker", type(task).__module__])
    counts = context.RawArray("q", workers)  # finished images of each worker
    start = bar.n
    reader, writer = context.Pipe(duplex=False)  # nothing is written: an end of file means that the parent is gone
    with ExitStack() as stack, writer:
        settings = ((number, counts, reader) for number in range(workers))
        pools = [stack.enter_context(ProcessPoolExecutor(1, context, _start_worker, each)) for each in settings]
        try:
            runs = [lambda shard, pool=pool: pool.submit(task, shard) for pool in pools]
            for _ in _share_out(missing, runs, BrokenProcessPool):
                bar.update(start + sum(counts) - bar.n)
        except BaseException as error:
            if isinstance(error, WorkerDied) or not isinstance(error, Exception):
                writer.close()  # ends the workers; after an error of the task they finish their current shards
            raise


def _start_worker(number: int, counts: Any, parent: Any) -> None:
    set_up_process()
    import torch

    def leave_with_parent() -> None:
        with suppress(OSError):
            parent.poll(None)
        os._exit(1)  # a worker that outlives its run could write into the next run's folder

    def count(images: int) -> None:
        counts[number] += images

    threading.Thread(target=leave_with_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # the default is a semaphore, which a killed worker would leak
    shards.count_with(count)
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())  # one GPU each, if there are enough


# --- clusters ------------------------------------------------------------------------------------------------------


class _Actor:
    def __init__(self) -> None:
        set_up_process()

    def run(self, task: Task, shard: int) -> None:
        task(shard)


def _run_on_ray(task: Task, plan: Plan, missing: Sequence[int], launch: Launch, workers: int, bar: tqdm[Any]) -> None:
    """Connects to the cluster of RAY_ADDRESS or a local one, or else starts one on this machine."""
    require("ray", "ray")
    import ray
    from ray.exceptions import RayActorError, RayError, RayTaskError

    try:
        ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise UserError(f"--executor ray: no cluster at {os.environ.get('RAY_ADDRESS')} (RAY_ADDRESS)") from error
    needs = {"num_cpus": launch.cpus, "num_gpus": launch.gpus or 0, "memory": launch.memory_gb * 1024**3}
    actor_class: Any = ray.remote(**needs)(_Actor)
    actors = [actor_class.remote() for _ in range(workers)]
    runs = [lambda shard, actor=actor: actor.run.remote(task, shard).future() for actor in actors]
    try:
        for finished in _share_out(missing, runs, RayActorError):
            bar.update(sum(len(range(*plan.span(shard))) for shard in finished))
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:  # no worker could be started
        raise UserError(f"--executor ray: {first_line(error)}") from error


@dataclass(frozen=True)
class _Part:
    """Run the shards of one task of a Slurm array."""

    task: Task
    folder: Path

    def __call__(self, part: Sequence[int]) -> None:
        for shard in part:
            if not shards.is_done(self.folder, shard):  # a job requeued by Slurm does the rest
                self.task(shard)


def _submit(task: Task, plan: Plan, folder: Path, missing: Sequence[int], launch: Launch, after: str | None) -> str:
    """The id of the queued array, one task per worker; that of the last call if it is still queued or running."""
    require("slurm", "submitit")
    import submitit
    from submitit.core.utils import FailedJobError

    if lacking := [program for program in ("sbatch", "srun", "squeue") if shutil.which(program) is None]:
        raise UserError(f"--executor slurm: no {lacking[0]} on this machine; run it on a submit host")
    logs = folder.absolute() / "logs"
    ticket = logs / "slurm_job.json"
    if ticket.is_file() and _is_queued(job := str(json.loads(ticket.read_text(encoding="utf-8"))["job"])):
        return job
    executor = submitit.AutoExecutor(logs, cluster="slurm")
    workers = min(launch.workers, len(missing))
    executor.update_parameters(
        name=f"vlm-detect-{plan.step}",
        cpus_per_task=launch.cpus,
        mem_gb=launch.memory_gb,
        gpus_per_node=launch.gpus or None,  # not 0: a cluster without GPUs may not define this resource
        slurm_partition=launch.slurm_partition,
        slurm_array_parallelism=workers,
        slurm_dependency=f"afterok:{after}" if after else None,
        slurm_additional_parameters={
            "time": launch.slurm_time,
            "kill_on_invalid_dep": "yes",  # otherwise it waits forever for a failed job
            **dict(argument.split("=", 1) for argument in launch.slurm_args),
        },
    )
    try:
        queued = executor.map_array(_Part(task, folder.absolute()), [missing[i::workers] for i in range(workers)])
    except FailedJobError as error:
        raise UserError(f"--executor slurm: sbatch rejected the job: {error}") from error
    job = queued[0].job_id.partition("_")[0]
    ticket.write_text(json.dumps({"job": job}), encoding="utf-8")
    return job


def _is_queued(job: str) -> bool:
    asked = subprocess.run(["squeue", "-h", "-j", job], capture_output=True, text=True, check=False)
    return asked.returncode == 0 and bool(asked.stdout.strip())
