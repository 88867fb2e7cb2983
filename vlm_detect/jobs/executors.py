"""Executors of the shards of a plan: local processes, actors of a Ray cluster, or a Slurm array.

    job = run_shards(task, plan, folder, Launch(executor="local", workers=4))      # task(shard) for each missing shard

A free worker takes the next shard, and keeps loaded models between shards. If a worker dies, another one takes its
place and its shard is done again; a shard whose workers die `ATTEMPTS` times ends the run. Finished shards are kept,
and the same command resumes.

With Slurm `run_shards` returns when the array is queued; the same call after the job finds nothing missing.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from vlm_detect.errors import UserError, first_line, set_up_process
from vlm_detect.extras import require
from vlm_detect.jobs import shards
from vlm_detect.jobs.launch import Launch
from vlm_detect.jobs.shards import Plan, Task
from vlm_detect.locks import held
from vlm_detect.progress import progress

ATTEMPTS = 3  # at a shard whose worker dies
_POLL_S = 0.5


class WorkerDied(UserError):
    """The workers of a shard died, one after the other."""


class _Worker(Protocol):
    def run(self, shard: int) -> Future[None]: ...

    def restart(self) -> None:
        """Take the place of a process that died."""


_W = TypeVar("_W", bound=_Worker)


def run_shards(
    task: Task, plan: Plan, folder: Path, launch: Launch | None = None, after: str | None = None
) -> str | None:
    """Call `task(shard)` for each shard of `plan` that is missing in `folder`.

    `task` is pickled for each shard: it has settings, and loads models by a cached function. Returns None when all is
    done, or the id of a queued cluster job, which starts after job `after`.

    Raises:
        WorkerDied: a shard's workers were killed, `ATTEMPTS` times.
        UserError: the cluster cannot be reached, or the task raised it.
    """
    launch = launch or Launch()
    missing = shards.missing(folder, plan)
    if not missing:
        return None
    if launch.executor == "slurm":
        return _submit(task, plan, folder, missing, launch, after)
    done = plan.items - sum(map(plan.length, missing))
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
            _run_in_processes(task, plan, missing, workers, bar)
    return None


def check_executor(launch: Launch) -> None:
    """`UserError` if a package or program of the executor is missing, which is known before any work."""
    if launch.executor == "ray":
        require("ray", "ray")
    if launch.executor == "slurm":
        require("slurm", "submitit")
        if lacking := [program for program in ("sbatch", "srun", "squeue") if shutil.which(program) is None]:
            raise UserError(f"--executor slurm: no {lacking[0]} on this machine; run it on a submit host")


def threads_of(launch: Launch) -> int | None:
    """A worker's part of this machine's cores: with torch's default, each worker has threads for all of them."""
    if launch.executor != "local" or launch.workers == 1 or "OMP_NUM_THREADS" in os.environ:
        return None
    from vlm_detect.machine import cpu_cores  # lazy: imports torch

    return max(1, cpu_cores() // launch.workers)


def queued_job(folder: Path) -> str | None:
    """The Slurm job that is still queued, or running, for the shards in `folder`."""
    ticket = _ticket(folder)
    if not ticket.is_file():
        return None
    job = str(json.loads(ticket.read_text(encoding="utf-8"))["job"])
    return job if _is_queued(job) else None


def _share_out(missing: Sequence[int], workers: Sequence[_W], death: type[Exception]) -> Iterator[list[tuple[int, _W]]]:
    """Give each free worker the next shard; yields the newly finished ones and their workers, twice a second."""
    waiting, idle, running = deque(missing), list(workers), dict[Future[None], tuple[int, _W]]()
    deaths = Counter[int]()
    while waiting or running:
        while waiting and idle:
            shard, worker = waiting.popleft(), idle.pop()
            running[worker.run(shard)] = shard, worker
        finished = []
        for future in wait(running, _POLL_S, FIRST_COMPLETED).done:
            shard, worker = running.pop(future)
            try:
                future.result()
                finished.append((shard, worker))
            except death as error:
                deaths[shard] += 1
                if deaths[shard] == ATTEMPTS:
                    raise WorkerDied(
                        f"the worker of shard {shard} died, {ATTEMPTS} times, most likely out of memory; finished "
                        "shards are kept: run the same command again, with fewer --workers or smaller batches"
                    ) from error
                print(f"the worker of shard {shard} died: another one does it again", file=sys.stderr)
                worker.restart()
                waiting.append(shard)
            idle.append(worker)
        yield finished


# --- processes of this machine -------------------------------------------------------------------------------------


class _Process:
    """A pool of one process, so that a broken pool identifies its shard; `done` counts the shard's finished images."""

    def __init__(self, task: Task, context: Any, number: int, done: Any, parent: Any) -> None:
        self._task, self._context, self._number, self._done, self._parent = task, context, number, done, parent
        self.restart()

    def restart(self) -> None:
        self.forget()
        settings = (self._number, self._done, self._parent)
        self._pool = ProcessPoolExecutor(1, self._context, _start_worker, settings)

    def run(self, shard: int) -> Future[None]:
        return self._pool.submit(self._task, shard)

    def stop(self) -> None:
        """After its current shard."""
        self._pool.shutdown()

    def forget(self) -> None:
        """Its shard is finished, or lost: its images count no longer."""
        self._done[self._number] = 0


def _run_in_processes(task: Task, plan: Plan, missing: Sequence[int], workers: int, bar: tqdm[Any]) -> None:
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        # Torch is imported once, not once per worker, after our process settings.
        context.set_forkserver_preload(["vlm_detect.jobs.worker", type(task).__module__])
    done = context.RawArray("q", workers)
    before = bar.n
    reader, writer = context.Pipe(duplex=False)  # nothing is written: an end of file means that the parent is gone
    with ExitStack() as stack, writer:
        processes = [_Process(task, context, number, done, reader) for number in range(workers)]
        for process in processes:
            stack.callback(process.stop)
        try:
            for finished in _share_out(missing, processes, BrokenProcessPool):
                for shard, process in finished:
                    process.forget()
                    before += plan.length(shard)
                bar.update(before + sum(done) - bar.n)
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
    check_executor(launch)
    import ray
    from ray.exceptions import RayActorError, RayError, RayTaskError

    try:
        ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise UserError(f"--executor ray: no cluster at {os.environ.get('RAY_ADDRESS')} (RAY_ADDRESS)") from error
    needs = {"num_cpus": launch.cpus, "num_gpus": launch.gpus or 0, "memory": launch.memory_gb * 1024**3}
    actor_class: Any = ray.remote(**needs)(_Actor)
    _report_lacking(needs, ray.cluster_resources())

    class Remote:
        def __init__(self) -> None:
            self.restart()

        def restart(self) -> None:
            self._actor = actor_class.remote()

        def run(self, shard: int) -> Future[None]:
            found: Future[None] = self._actor.run.remote(task, shard).future()
            return found

    try:
        for finished in _share_out(missing, [Remote() for _ in range(workers)], RayActorError):
            bar.update(sum(plan.length(shard) for shard, _ in finished))
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:  # no worker could be started
        raise UserError(f"--executor ray: {first_line(error)}") from error


def _report_lacking(needs: Mapping[str, float], has: Mapping[str, float]) -> None:
    """Report on stderr what no node can give a worker: Ray waits for it, since a cluster may grow."""
    for need, resource, flag in (("num_cpus", "CPU", "--cpus"), ("num_gpus", "GPU", "--gpus")):
        if needs[need] > has.get(resource, 0):
            asked = f"a worker asks for {needs[need]:g} {resource} ({flag})"
            print(
                f"--executor ray: {asked}, the cluster has {has.get(resource, 0):g}: waiting for more", file=sys.stderr
            )


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
    check_executor(launch)
    import submitit
    from submitit.core.utils import FailedJobError

    if job := queued_job(folder):
        return job
    ticket = _ticket(folder.absolute())
    executor = submitit.AutoExecutor(ticket.parent, cluster="slurm")
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


def _ticket(folder: Path) -> Path:
    return folder / "logs" / "slurm_job.json"


def _is_queued(job: str) -> bool:
    if shutil.which("squeue") is None:  # on a node that submits no jobs
        return False
    asked = subprocess.run(["squeue", "-h", "-j", job], capture_output=True, text=True, check=False)
    return asked.returncode == 0 and bool(asked.stdout.strip())
