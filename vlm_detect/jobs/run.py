"""Run the missing shards of a step, wherever the launch says."""

from __future__ import annotations

from pathlib import Path

from vlm_detect.jobs import shards
from vlm_detect.jobs.shards import Launch, Plan, Task


def run_shards(
    task: Task, plan: Plan, folder: Path, launch: Launch | None = None, after: str | None = None
) -> str | None:
    """Call `task(shard)` for each shard that is not there yet.

    `task` may be pickled and run elsewhere: it holds settings and loads its models itself. Returns None when all is
    done, and where a cluster was only handed the work the id of its job, which waits for the job `after`.
    """
    if not shards.missing(folder, plan):
        return None
    from vlm_detect.jobs import executors  # late: datatrove is an extra, and nothing but data generation needs it

    return executors.run(task, plan, folder, launch or Launch(), after)
