"""Who runs the shards of a plan: processes of this machine, actors of a Ray cluster, or a Slurm array.

    job = run_shards(task, plan, folder, Launch(executor="local", workers=4))      # task(shard) for what is missing

A worker takes the next shard when it is free, and keeps what it has loaded from shard to shard. A worker that dies ends
the run at once, with the shard that it had; what is finished stays, and the same command continues from there.

Slurm is only handed the work: `run_shards` returns when the array is queued, and the same call again, when the job is
done, finds nothing missing.
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
    """A worker went away in the middle of a shard."""


def run_shards(
    task: Task, plan: Plan, folder: Path, launch: Launch | None = None, after: str | None = None
) -> str | None:
    """Call `task(shard)` for each shard of `plan` that is not in `folder` yet.

    `task` is pickled for each shard: it holds settings, and loads its models by a function that has a cache. Returns
    None when all is done, and the id of the job where a cluster was only handed the work; it starts after job `after`.

    Raises:
        WorkerDied: a worker was killed.
        UserError: the cluster cannot be reached, or what the task raises.
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
    """Hand each worker the next shard when it is free; the shards finished since the last time, twice a second."""
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
                    f"the worker of shard {shard} died, most likely for want of memory; what is finished is kept: run "
                    "the same command again, with fewer --workers or smaller batches"
                ) from error
            finished.append(shard)
            idle.append(worker)
        yield finished


# --- processes of this machine -------------------------------------------------------------------------------------


def _run_in_processes(task: Task, missing: Sequence[int], workers: int, bar: tqdm[Any]) -> None:
    """One pool for each worker: a pool that breaks names the shard of its only process."""
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        # Torch is imported once, not once a worker, and what a process of ours settles comes before it.
        context.set_forkserver_preload(["vlm_detect.jobs.worker", type(task).__module__])
    counts = context.RawArray("q", workers)  # images that each worker has finished
    start = bar.n
    reader, writer = context.Pipe(duplex=False)  # nothing is written: who reads an end of file has lost its parent
    with ExitStack() as stack, writer:
        settings = ((number, counts, reader) for number in range(workers))
        pools = [stack.enter_context(ProcessPoolExecutor(1, context, _start_worker, each)) for each in settings]
        try:
            runs = [lambda shard, pool=pool: pool.submit(task, shard) for pool in pools]
            for _ in _share_out(missing, runs, BrokenProcessPool):
                bar.update(start + sum(counts) - bar.n)
        except BaseException as error:
            if isinstance(error, WorkerDied) or not isinstance(error, Exception):
                writer.close()  # ends the workers; after an error of the task they finish the shards that they have
            raise


def _start_worker(number: int, counts: Any, parent: Any) -> None:
    set_up_process()
    import torch

    def leave_with_parent() -> None:
        with suppress(OSError):
            parent.poll(None)
        os._exit(1)  # a worker that outlives its run would write into the next one's folder

    def count(images: int) -> None:
        counts[number] += images

    threading.Thread(target=leave_with_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a worker that leaves in haste leaves behind
    shards.count_with(count)
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())  # a GPU each, as far as there are enough


# --- clusters ------------------------------------------------------------------------------------------------------


class _Actor:
    def __init__(self) -> None:
        set_up_process()

    def run(self, task: Task, shard: int) -> None:
        task(shard)


def _run_on_ray(task: Task, plan: Plan, missing: Sequence[int], launch: Launch, workers: int, bar: tqdm[Any]) -> None:
    """Connects to the cluster that RAY_ADDRESS names or that runs here, and else starts one of this machine."""
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
    """The shards of one task of a Slurm array."""

    task: Task
    folder: Path

    def __call__(self, part: Sequence[int]) -> None:
        for shard in part:
            if not shards.is_done(self.folder, shard):  # a job that Slurm starts again does the rest
                self.task(shard)


def _submit(task: Task, plan: Plan, folder: Path, missing: Sequence[int], launch: Launch, after: str | None) -> str:
    """The id of the queued array, one task a worker: that of the last call while it is still queued or running."""
    require("slurm", "submitit")
    import submitit
    from submitit.core.utils import FailedJobError

    if lacking := [program for program in ("sbatch", "srun", "squeue") if shutil.which(program) is None]:
        raise UserError(f"--executor slurm: no {lacking[0]} on this machine; run it where jobs are submitted")
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
        gpus_per_node=launch.gpus or None,  # not 0: a cluster without GPUs may know no such resource
        slurm_partition=launch.slurm_partition,
        slurm_array_parallelism=workers,
        slurm_dependency=f"afterok:{after}" if after else None,
        slurm_additional_parameters={
            "time": launch.slurm_time,
            "kill_on_invalid_dep": "yes",  # else it waits for ever for a job that failed
            **dict(argument.split("=", 1) for argument in launch.slurm_args),
        },
    )
    try:
        queued = executor.map_array(_Part(task, folder.absolute()), [missing[i::workers] for i in range(workers)])
    except FailedJobError as error:
        raise UserError(f"--executor slurm: sbatch refused the job: {error}") from error
    job = queued[0].job_id.partition("_")[0]
    ticket.write_text(json.dumps({"job": job}), encoding="utf-8")
    return job


def _is_queued(job: str) -> bool:
    asked = subprocess.run(["squeue", "-h", "-j", job], capture_output=True, text=True, check=False)
    return asked.returncode == 0 and bool(asked.stdout.strip())
