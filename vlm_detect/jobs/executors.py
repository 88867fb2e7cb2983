"""Who runs the shards: worker processes here, a Slurm array, or a Ray cluster; each is datatrove's executor.

    launch = Launch(executor="local", workers=4)              # the flags --executor, --workers, ...
    run_shards(task, plan, folder, launch)                    # shards.py; this module is imported by it alone

datatrove starts and logs each shard and hands it over to the cluster. What it would get wrong is done otherwise: its
local pool waits for ever for the shard of a worker that was killed, and under Ray it loads the models anew for each
shard. Here a dead worker ends the run at once, with the shard that it had, and a worker keeps its models.

Slurm is only handed the work: `run` returns when the job is queued, and the same command again, when the job is done,
goes on behind it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from pathlib import Path
from typing import Any, NoReturn

import loguru
import torch
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from tqdm import tqdm

from vlm_detect.errors import UserError
from vlm_detect.extras import require
from vlm_detect.jobs import shards
from vlm_detect.jobs.shards import Launch, Plan, Task

_POLL_S = 0.5


class Step:
    """The one step of datatrove's pipeline: a shard that is there already is left alone."""

    def __init__(self, task: Task, folder: Path) -> None:
        self.task, self.folder = task, folder

    def __call__(self, _data: Any, rank: int, _world_size: int) -> None:
        if not shards.is_done(self.folder, rank):
            self.task(rank)


def run(task: Task, plan: Plan, folder: Path, launch: Launch, after: str | None = None) -> str | None:
    """Do what is missing; the id of the job, where it was only handed over, which starts behind the job `after`."""
    loguru.logger.disable("datatrove")  # the bar tells what its log would, in one line
    missing = shards.missing(folder, plan)
    options: dict[str, Any] = {"tasks": plan.shards, "logging_dir": str(folder.absolute() / "logs")}
    options |= {"skip_completed": False}  # the shard itself is the marker: a removed shard is made again
    pipeline = [Step(task, folder)]
    workers = max(1, min(launch.workers, len(missing)))
    if launch.executor == "slurm":
        return _Slurm(pipeline, missing, launch, plan, after, **options).submit(folder)
    with _bar(plan, missing) as bar:
        if launch.executor == "ray":
            require("ray", "ray")
            resources = {"cpus_per_task": launch.cpus, "gpus_per_task": launch.gpus}
            _Ray(pipeline, workers=workers, **resources, **options).run_ranks(missing, plan, bar, launch.memory_gb)
        elif workers == 1:
            shards.count_with(bar.update)
            executor = LocalPipelineExecutor(pipeline, workers=1, **options)
            for rank in missing:
                executor._run_for_rank(rank)
        else:
            _Local(pipeline, workers=workers, **options).run_ranks(missing, folder, bar)
    return None


@contextlib.contextmanager
def _bar(plan: Plan, missing: Sequence[int]) -> Iterator[Any]:
    """Images a second and the time left of the whole step; silent where stderr is no terminal."""
    left = sum(stop - start for start, stop in map(plan.span, missing))
    with tqdm(
        desc=plan.step, unit="img", total=plan.items, initial=plan.items - left, disable=None, leave=False
    ) as bar:
        yield bar
    shards.count_with(None)


# --- processes of this machine -------------------------------------------------------------------------------------


class _Local(LocalPipelineExecutor):
    def run_ranks(self, ranks: Sequence[int], folder: Path, bar: Any) -> None:
        """Run the shards in a pool of processes that says so when one of them dies."""
        running = folder.absolute() / "logs" / "running"
        shutil.rmtree(running, ignore_errors=True)
        running.mkdir(parents=True)
        methods = multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            context.set_forkserver_preload(["vlm_detect.jobs.executors"])  # torch once, not once a worker
        numbers, counted, stop = context.SimpleQueue(), context.Value("q", 0), context.Event()
        for number in range(self.workers):
            numbers.put(number)
        start = bar.n
        with ProcessPoolExecutor(self.workers, context, _start_worker, (numbers, counted, stop)) as pool:
            pending = {pool.submit(_run_marked, self, rank, running / f"{rank:05d}") for rank in ranks}
            try:
                while pending:
                    finished, pending = wait(pending, _POLL_S, FIRST_COMPLETED)
                    bar.update(start + counted.value - bar.n)
                    for future in finished:
                        future.result()
            except BrokenProcessPool as error:
                pool.shutdown(wait=True)  # the others are told to end, and take their marks away
                raise UserError(_died(running)) from error
            except BaseException as error:
                if not isinstance(error, Exception):
                    stop.set()  # an interrupt does not wait for shards; an error lets those that run be finished
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _died(running: Path) -> str:
    names = sorted(path.name for path in running.iterdir())
    shard = f"shard {', '.join(str(int(name)) for name in names)}" if names else "a shard"
    return (
        f"the worker of {shard} was killed, most likely for want of memory; what is finished is kept: run the same "
        "command again, with fewer --workers or smaller batches"
    )


# What a worker process holds for as long as it lives.
_mark: Path | None = None


def _start_worker(numbers: Any, counted: Any, stop: Any) -> None:
    loguru.logger.disable("datatrove")
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, left behind where a worker is told to go
    number = numbers.get()
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())  # a GPU each, as far as there are enough

    def count(images: int) -> None:
        with counted.get_lock():
            counted.value += images

    def leave_with_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        while not connection.wait([parent.sentinel], _POLL_S):
            if stop.is_set():
                break
        os._exit(1)  # a worker that outlives its run would write into the next one's folder

    shards.count_with(count)
    signal.signal(signal.SIGTERM, _end_worker)
    threading.Thread(target=leave_with_parent, daemon=True).start()


def _end_worker(_signal: int, _frame: Any) -> NoReturn:
    """Told to end because another worker died: not this one's shard is to be reported."""
    if _mark is not None:
        _mark.unlink(missing_ok=True)
    os._exit(1)


def _run_marked(executor: _Local, rank: int, mark: Path) -> None:
    """Run a shard, with a mark that stays behind where the process dies of it."""
    global _mark
    _mark = mark  # first: told to end between the two, it must not leave the mark behind
    mark.touch()
    try:
        executor._run_for_rank(rank)
    finally:
        mark.unlink(missing_ok=True)


# --- clusters ------------------------------------------------------------------------------------------------------


class _Ray(RayPipelineExecutor):
    def run_ranks(self, ranks: Sequence[int], plan: Plan, bar: Any, memory_gb: int) -> None:
        """One actor a worker, which keeps its models from shard to shard; connects to the cluster that RAY_ADDRESS or
        the machine has, and starts one of this machine otherwise."""
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        if not ray.is_initialized():
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        needs = {"num_cpus": self.cpus_per_task, "num_gpus": self.gpus_per_task, "memory": memory_gb * 1024**3}
        worker_class: Any = ray.remote(**needs)(_RayWorker)
        idle = [worker_class.remote(self) for _ in range(self.workers)]
        waiting, running = list(ranks), dict[Any, tuple[int, Any]]()
        while waiting or running:
            while waiting and idle:
                rank, worker = waiting.pop(0), idle.pop()
                running[worker.run.remote(rank)] = rank, worker
            for done in ray.wait(list(running), timeout=_POLL_S)[0]:
                rank, worker = running.pop(done)
                try:
                    ray.get(done)
                except RayActorError as error:
                    raise UserError(
                        f"the worker of shard {rank} died ({str(error).splitlines()[0]}); what is finished is kept: "
                        "run the same command again"
                    ) from error
                except RayTaskError as error:
                    raise error.cause from error
                bar.update(len(range(*plan.span(rank))))
                idle.append(worker)


class _RayWorker:
    def __init__(self, executor: _Ray) -> None:
        self.executor = executor
        loguru.logger.disable("datatrove")

    def run(self, rank: int) -> None:
        self.executor._run_for_rank(rank)


class _Slurm(SlurmPipelineExecutor):
    """One array, one task a worker, each with its part of the missing shards."""

    def __init__(
        self, pipeline: list[Any], missing: list[int], launch: Launch, plan: Plan, after: str | None, **options: Any
    ) -> None:
        activate = Path(sys.prefix) / "bin" / "activate"
        super().__init__(
            pipeline,
            time=launch.slurm_time,
            partition=launch.slurm_partition or "",
            cpus_per_task=launch.cpus,
            mem_per_cpu_gb=math.ceil(launch.memory_gb / launch.cpus),
            gpus_per_task=launch.gpus,
            job_name=f"vlm-detect-{plan.step}",
            qos="",
            venv_path=str(activate) if activate.is_file() else None,
            sbatch_args=dict(argument.split("=", 1) for argument in launch.slurm_args),
            depends_job_id=after,
            tasks_per_job=math.ceil(len(missing) / max(1, launch.workers)),
            **options,
        )
        self.missing = missing

    def get_incomplete_ranks(self, ranks: Any = None, skip_completed: bool | None = None) -> list[int]:
        return self.missing

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, Any]:
        return {key: value for key, value in super().get_sbatch_args(max_array).items() if key != "partition" or value}

    def launch_merge_stats(self) -> None:
        """No job of its own for datatrove's statistics, which nobody reads here."""

    def submit(self, folder: Path) -> str:
        """The id of the queued job: the one of the last call, while it is still queued or running."""
        if shutil.which("sbatch") is None:
            raise UserError("--executor slurm: no sbatch on this machine; run it where jobs are submitted")
        ticket = folder / "logs" / "slurm_job.json"
        if ticket.is_file():
            job = str(json.loads(ticket.read_text(encoding="utf-8"))["job"])
            if self._is_queued(job):
                return job
        self.launch_job()
        ticket.write_text(json.dumps({"job": self.job_id}), encoding="utf-8")
        return str(self.job_id)

    @staticmethod
    def _is_queued(job: str) -> bool:
        asked = subprocess.run(["squeue", "-h", "-j", job], capture_output=True, text=True, check=False)
        return asked.returncode == 0 and bool(asked.stdout.strip())
