"""Shards appear whole, once, and only for the plan that was begun."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from datasets import Features, Value

from vlm_detect.errors import UserError
from vlm_detect.jobs.executors import run_shards
from vlm_detect.jobs.launch import Launch
from vlm_detect.jobs.shards import Plan, begin, check_finished, differences, read_rejects, read_rows, write_shard
from vlm_detect.records import Reject

FEATURES = Features({"item": Value("int64")})
PLAN = Plan("count", items=5, shard_size=2, inputs="abc", settings={"steps": 4})


@dataclass(frozen=True)
class Count:
    folder: Path
    broken: int = -1

    def __call__(self, shard: int) -> None:
        if shard == self.broken:
            raise UserError("the last straw")
        rows = [{"item": item} for item in range(*PLAN.span(shard))]
        with (self.folder / "calls").open("a") as calls:
            calls.write(f"{shard}\n")
        write_shard(self.folder, shard, rows, FEATURES, [Reject(str(shard), "count", "odd")])


def items(folder: Path) -> list[int]:
    return [row["item"] for shard in range(PLAN.shards) for row in read_rows(folder, shard)]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_run_continues_where_it_stopped(tmp_path: Path, workers: int) -> None:
    begin(tmp_path, PLAN)
    with pytest.raises(UserError, match="the last straw"):
        run_shards(Count(tmp_path, broken=2), PLAN, tmp_path)
    with pytest.raises(UserError, match=r"2 of 3 shards are done; run the count step again"):
        check_finished(tmp_path, PLAN.step)
    (tmp_path / "shards" / ".00002.partial").mkdir()  # what a killed worker leaves
    begin(tmp_path, PLAN)
    run_shards(Count(tmp_path), PLAN, tmp_path, Launch(workers=workers))
    assert items(tmp_path) == [0, 1, 2, 3, 4]
    assert read_rejects(tmp_path, 1) == [Reject("1", "count", "odd")]
    assert check_finished(tmp_path, PLAN.step) == PLAN
    run_shards(Count(tmp_path), PLAN, tmp_path)
    assert (tmp_path / "calls").read_text().split() == ["0", "1", "2"]


def test_another_plan_is_refused(tmp_path: Path) -> None:
    begin(tmp_path, PLAN)
    with pytest.raises(UserError, match=r"steps was 4, is 8.*--out") as caught:
        begin(tmp_path, replace(PLAN, settings={"steps": 8}))
    assert "items" not in str(caught.value)


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not the output of a sharded step"):
        check_finished(tmp_path, "render")
    begin(tmp_path, replace(PLAN, step="caption"))
    with pytest.raises(UserError, match="the output of the caption step, but the output of the render step is needed"):
        check_finished(tmp_path, "render", "pairs")


def test_differences_are_reported_once_and_in_words() -> None:
    plans = [{"items": 6, "inputs": digest * 32, "seed": 0} for digest in ("ab", "cd")]
    old, new = ({"caption": plan, "render": plan} for plan in plans)
    assert differences(old, old) == []
    assert differences(old, new) == ["the list of images has changed"]
    assert differences(old, old | {"size": 32}) == ["size was None, is 32"]
    assert differences(old, old | {"size": None, "views": []}) == []  # settings that came later, off


def test_full_size_models_get_a_gpu_unless_the_flag_is_set() -> None:
    assert Launch("ray").with_models(full_size=True).gpus == 1
    assert Launch("ray").with_models(full_size=False).gpus == 0
    assert Launch("ray", gpus=0).with_models(full_size=True).gpus == 0


def test_a_launch_is_checked_before_anything_runs() -> None:
    for wrong, message in (
        ({"workers": 0}, "--workers 0: give 1 or more"),
        ({"gpus": -1}, "--gpus -1"),
        ({"slurm_args": ["account=me", "exclusive"]}, "--slurm_args exclusive: give each as NAME=VALUE"),
    ):
        with pytest.raises(UserError, match=message):
            Launch(**wrong)
