"""From the steps' shards to a finished dataset: the last part of the data generation programs.

    build_dataset(out, settings, steps=caption_and_render, pack=pack_pairs_of, push_to_hub="me/pairs")

Unfinished work is in OUT.work. An existing dataset is not rebuilt, only uploaded if requested.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlm_detect.data.audit import read_audit
from vlm_detect.errors import UsageError
from vlm_detect.generate.dataset_files import Packed, is_finished
from vlm_detect.generate.hub import push_dataset
from vlm_detect.jobs.shards import Plan
from vlm_detect.locks import held


def build_dataset(
    out: Path,
    settings: dict[str, Any],
    *,
    steps: Callable[[Path], str | None],
    pack: Callable[[Path], Packed],
    push_to_hub: str | None = None,
    keep_work: bool = False,
) -> None:
    """Make the dataset `out` with these `settings` and print a summary, including its audit.

    Args:
        steps: does the work in the given folder; returns the id of a cluster job if it was only queued.
        pack: writes `out` from that folder.
        push_to_hub: OWNER/NAME to upload the finished folder to.
    """
    work = work_folder(out)
    with held(out):
        if is_finished(out, settings):
            print(finished(out))
        else:
            if job := steps(work):
                print(queued(out, job))
                return
            print(f"{out}: {pack(work)}")
            print(read_audit(out) or "Too few photos for an audit.")
        if not keep_work:
            shutil.rmtree(work, ignore_errors=True)  # also the remains of a run that was killed after its last step
    if push_to_hub:
        print(f"uploaded to {push_dataset(out, push_to_hub)}")


def settings_of_renders(plans: Sequence[Plan]) -> dict[str, Any]:
    """The settings of the render steps as they stand in `run.json`: `render`, or `renders` where there are several."""
    return {"render": asdict(plans[0])} if len(plans) == 1 else {"renders": [asdict(plan) for plan in plans]}


def work_folder(out: Path) -> Path:
    if out.name in ("", ".."):
        raise UsageError(
            f"--out {out}: give the path of the new folder itself; it is written under a temporary name and renamed"
        )
    return out.with_name(f"{out.name}.work")


def finished(out: Path) -> str:
    return f"{out}: finished, nothing left to do"


def queued(out: Path, job: str) -> str:
    return f"{out}: job {job} is queued; run the same command again when it is done"
