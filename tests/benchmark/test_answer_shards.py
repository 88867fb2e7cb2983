"""A benchmark in shards: the files of one process by two workers, after kills, interruptions and Slurm jobs."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.benchmark.fakes import choice_row, verdict_rows, write_benchmark
from tests.factories import tiny_vlm
from tests.jobs.test_executors import cluster  # noqa: F401
from tests.scripts.here import run_verb
from vlm_detect.benchmark import answer_shards, scoring
from vlm_detect.benchmark.answer_shards import AnswerShard
from vlm_detect.benchmark.results import WORK
from vlm_detect.errors import UserError
from vlm_detect.jobs import shards

IN_THIS_PROCESS = ("--workers", 1, "--gpus", 0)  # in shards, without the seconds that a process takes to start
WRITTEN = ("results.jsonl", "results.sha256", "summary.json", "report.html")


@dataclass(frozen=True)
class KilledOnce(AnswerShard):
    """Its process dies in the midst of the second shard, once."""

    def __call__(self, shard: int) -> None:
        mark = self.out / "was_killed"
        if shard == 1 and not mark.exists():
            partial = self.out / WORK / "shards" / ".00001.partial"
            partial.mkdir(parents=True)
            (partial / "results.jsonl").write_text('{"id": "item2", ')
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        super().__call__(shard)


@dataclass(frozen=True)
class Interrupted(AnswerShard):
    def __call__(self, shard: int) -> None:
        if shard == 2:
            raise KeyboardInterrupt
        super().__call__(shard)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_shards, "SHARD_BATCHES", 1)


@pytest.fixture(scope="module")
def args(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """Nine questions about eight images, in batches of two."""
    folder = tmp_path_factory.mktemp("asked")
    vlm = tiny_vlm()
    vlm.model.save_pretrained(folder / "model")
    vlm.processor.save_pretrained(folder / "model")
    first, *others = [*verdict_rows(folder, 7), choice_row(folder)]
    rows = [first, {**first, "id": "again", "question": "Is it fake? Answer with Real or Fake."}, *others]
    path = write_benchmark(folder, rows)
    asked = ("--model", folder / "model", "--benchmark", path, "--max_new_tokens", 4, "--batch_size", 2)
    return ("benchmark", *asked)


@pytest.fixture(scope="module")
def expected(args: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one process writes."""
    out = tmp_path_factory.mktemp("one") / "out"
    done = run_verb(*args, "--out", out)
    assert done.returncode == 0, done.stderr
    assert len((out / "results.jsonl").read_text().splitlines()) == 8 * 3 + 5
    return written(out)


def written(out: Path) -> dict[str, str]:
    return {name: (out / name).read_text() for name in WRITTEN}


def test_two_workers_write_the_files_of_one_process(
    args: tuple[object, ...], expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them is killed on its way."""
    monkeypatch.setattr(answer_shards, "AnswerShard", KilledOnce)
    out = tmp_path / "out"
    done = run_verb(*args, "--out", out, "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "8 images in 4 shards, by 2 workers (local)" in done.stderr
    assert "the worker of shard 1 died: another one does it again" in done.stderr
    assert written(out) == expected
    assert not (out / WORK).exists()
    record = json.loads((out / "run.json").read_text())
    assert (record["processes"], record["executor"]) == (2, "local")
    again = run_verb(*args, "--out", out, "--workers", 2)
    assert (again.returncode, "nothing is left to do" in again.stdout) == (0, True)


@pytest.mark.parametrize("launch", [IN_THIS_PROCESS, ()], ids=["in shards again", "without shards"])
def test_an_interrupted_run_is_asked_only_what_is_missing(
    args: tuple[object, ...],
    expected: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    launch: tuple[object, ...],
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(answer_shards, "AnswerShard", Interrupted)
        assert run_verb(*args, "--out", out, *IN_THIS_PROCESS).returncode == 130
    assert [shards.is_done(out / WORK, shard) for shard in range(4)] == [True, True, False, False]
    asked: list[int] = []
    shards_call = AnswerShard.__call__

    def noted(self: AnswerShard, shard: int) -> None:
        asked.append(shard)
        shards_call(self, shard)

    monkeypatch.setattr(AnswerShard, "__call__", noted)
    done = run_verb(*args, "--out", out, *launch)
    assert done.returncode == 0, done.stderr
    assert asked == ([2, 3] if launch else [])
    assert launch or "prompts are already answered; continuing" in done.stderr
    assert written(out) == expected


def test_answers_of_other_settings_are_kept_and_not_asked_again(
    args: tuple[object, ...], expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(answer_shards, "AnswerShard", Interrupted)
        assert run_verb(*args, "--out", out, *IN_THIS_PROCESS, "--limit", 6).returncode == 130
    kept = {path.name for path in (out / WORK / "shards").glob("0*")}
    assert kept == {"00000", "00001"}
    done = run_verb(*args, "--out", out, *IN_THIS_PROCESS)
    assert done.returncode == 0, done.stderr
    assert written(out) == expected
    # All is answered: the figures are made again, and no worker is started.
    (out / "summary.json").unlink()
    monkeypatch.setattr(answer_shards, "AnswerShard", None)
    assert run_verb(*args, "--out", out, *IN_THIS_PROCESS).returncode == 0
    assert written(out) == expected


def test_slurm_answers_and_the_same_command_merges(
    args: tuple[object, ...],
    expected: dict[str, str],
    cluster: Path,  # noqa: F811
) -> None:
    out = cluster / "out"
    slurm = ("--executor", "slurm", "--workers", 2, "--gpus", 0)
    queued = run_verb(*args, "--out", out, *slurm)
    assert (queued.returncode, "job 4711 is queued; run the same command again" in queued.stdout) == (0, True)
    assert "array=0-1%2" in (cluster / "sbatch_script").read_text()
    (cluster / "queue").write_text("4711 gpu R\n")
    for flags in ((), (*slurm, "--limit", 3)):
        refused = run_verb(*args, "--out", out, *flags)
        assert refused.returncode == 1
        assert refused.stderr.splitlines()[-1].startswith(f"error: {out}: Slurm job 4711 is answering there")
    assert "is queued" in run_verb(*args, "--out", out, *slurm).stdout
    (cluster / "queue").write_text("")
    assert run_verb(*args, "--out", out, *slurm, "--generate", "false").returncode == 0  # of the same model
    assert len((cluster / "sbatch_calls").read_text().splitlines()) == 2
    assert run_verb(*args, "--out", out, *slurm).returncode == 0
    task = AnswerShard(out, json.dumps(options_of(args)))
    for shard in range(4):  # what the nodes do
        task(shard)
    done = run_verb(*args, "--out", out, *slurm)
    assert done.returncode == 0, done.stderr
    assert written(out) == expected
    record = json.loads((out / "run.json").read_text())
    assert (record["executor"], record["device"]) == ("slurm", None)


def options_of(args: tuple[object, ...]) -> dict[str, object]:
    flags = {str(name).removeprefix("--"): value for name, value in zip(args[1::2], args[2::2], strict=True)}
    return {name: str(value) if isinstance(value, Path) else value for name, value in flags.items()}


def test_a_benchmark_that_changes_meanwhile_is_noticed(args: tuple[object, ...], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "settings.json").write_text(json.dumps({"benchmark_sha256": "of another file"}))
    shards.begin(out / WORK, shards.Plan("benchmark", 8, 2, "", {}))
    with pytest.raises(UserError, match=r"model has changed since this run was started.*--out"):
        AnswerShard(out, json.dumps(options_of(args)))(0)


def test_what_does_not_go_together_is_said(
    args: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    refused = run_verb(*args, "--out", tmp_path / "out", "--executor", "slurm")
    assert (refused.returncode, refused.stderr.count("\n"), "no sbatch" in refused.stderr) == (1, 1, True)
    monkeypatch.setattr(scoring, "PartialState", lambda **_: SimpleNamespace(num_processes=2))
    refused = run_verb(*args, "--out", tmp_path / "out", "--workers", 2)
    assert (refused.returncode, "accelerate has started 2: use one of them" in refused.stderr) == (1, True)
    assert not (tmp_path / "out").exists()
