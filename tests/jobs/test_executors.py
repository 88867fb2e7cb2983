"""Workers that die, fail or are orphaned; clusters that are handed the work."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from datasets import Features, Value

from vlm_detect.errors import UserError
from vlm_detect.jobs import shards
from vlm_detect.jobs.executors import run_shards
from vlm_detect.jobs.launch import Launch
from vlm_detect.jobs.shards import Plan, begin, check_finished, is_done, read_rows, write_shard

FEATURES = Features({"item": Value("int64")})
PLAN = Plan("count", items=12, shard_size=2, inputs="abc", settings={})


@dataclass(frozen=True)
class Work:
    """Writes a shard's items; does something else first for one shard."""

    folder: Path
    odd: int = -1
    how: str = ""

    def __call__(self, shard: int) -> None:
        if shard == self.odd:
            {"killed": self._killed, "once": self._once, "refused": self._refused, "waits": self._waits}[self.how]()
        rows = [{"item": item} for item in shards.counted(range(*PLAN.span(shard)))]
        write_shard(self.folder, shard, rows, FEATURES, [])

    def _killed(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _once(self) -> None:
        """Killed after its last word: all is written."""
        if not is_done(self.folder, self.odd):
            Work(self.folder)(self.odd)
            self._killed()

    def _refused(self) -> None:
        raise UserError("this shard cannot be made")

    def _waits(self) -> None:
        (self.folder / "waiting").write_text(str(os.getpid()))
        time.sleep(600)


def items(folder: Path) -> list[int]:
    return [row["item"] for shard in range(PLAN.shards) for row in read_rows(folder, shard)]


def test_the_shard_of_a_killed_worker_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vlm_detect.progress.EVERY_S", 0.01)
    run_shards(Work(tmp_path, 3, "once"), PLAN, tmp_path, Launch(workers=2))
    said = capsys.readouterr().err.splitlines()
    assert "the worker of shard 3 died: another one does it again" in said
    assert said[-1].startswith("count: 12 of 12 img")  # each image counts once
    assert items(tmp_path) == list(range(12))


def test_a_shard_that_kills_its_workers_is_reported_and_costs_nothing_else(tmp_path: Path) -> None:
    begin(tmp_path, PLAN)
    with pytest.raises(UserError, match=r"the worker of shard 3 died, 3 times.*--workers"):
        run_shards(Work(tmp_path, 3, "killed"), PLAN, tmp_path, Launch(workers=2))
    assert not is_done(tmp_path, 3)
    done = [shard for shard in range(PLAN.shards) if is_done(tmp_path, shard)]
    assert done  # what was finished before
    run_shards(Work(tmp_path), PLAN, tmp_path, Launch(workers=2))
    assert items(tmp_path) == list(range(12))
    assert check_finished(tmp_path, PLAN.step) == PLAN


def test_an_error_in_a_worker_is_the_error_of_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this shard cannot be made"):
        run_shards(Work(tmp_path, 1, "refused"), PLAN, tmp_path, Launch(workers=2))


@cache
def load_model(folder: Path) -> None:
    with (folder / "loads").open("a") as loads:
        loads.write(f"{os.getpid()}\n")


@dataclass(frozen=True)
class Modelled(Work):
    def __call__(self, shard: int) -> None:
        load_model(self.folder)
        super().__call__(shard)


def test_a_worker_loads_its_model_once_and_counts_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vlm_detect.progress.EVERY_S", 0.01)
    run_shards(Modelled(tmp_path), PLAN, tmp_path, Launch(workers=2))
    loads = (tmp_path / "loads").read_text().split()
    assert 1 <= len(loads) == len(set(loads)) <= 2
    assert str(os.getpid()) not in loads
    assert capsys.readouterr().err.splitlines()[-1].startswith("count: 12 of 12 img")


def test_workers_do_not_outlive_a_killed_run(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        "from pathlib import Path\n"
        "from tests.jobs.test_executors import PLAN, Work\n"
        "from vlm_detect.jobs.executors import run_shards\n"
        "from vlm_detect.jobs.launch import Launch\n"
        "if __name__ == '__main__':\n"
        f"    folder = Path({str(tmp_path)!r})\n"
        "    run_shards(Work(folder, 0, 'waits'), PLAN, folder, Launch(workers=2))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.Popen([sys.executable, str(script)], env=environment)
    waiting = tmp_path / "waiting"
    wait_until(lambda: waiting.exists() and waiting.read_text() != "")
    worker = int(waiting.read_text())
    run.kill()
    run.wait()
    wait_until(lambda: not is_running(worker))


def wait_until(true: object, seconds: float = 500) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_shard(tmp_path, 0, [{"item": 0}], FEATURES, [])
    monkeypatch.setattr(shards, "write_rows", full)
    with pytest.raises(UserError, match=r"no space left on this disk; finished shards are kept"):
        write_shard(tmp_path, 1, [{"item": 1}], FEATURES, [])
    assert (is_done(tmp_path, 0), is_done(tmp_path, 1)) == (True, False)


# A cluster of files: sbatch keeps what it is given, squeue shows what `queue` holds, srun runs the command.
CLUSTER = {
    "sbatch": 'cp "$1" {folder}/sbatch_script; echo >> {folder}/sbatch_calls; echo "Submitted batch job 4711"',
    "squeue": "cat {folder}/queue",
    "srun": 'while [ "$1" != {python} ]; do shift; done; "$@"',
}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in CLUSTER.items():
        (folder / name).write_text("#!/bin/sh\n" + text.format(folder=tmp_path, python=sys.executable) + "\n")
        (folder / name).chmod(0o755)
    (tmp_path / "queue").write_text("")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return tmp_path


def test_slurm_gets_an_array_of_the_missing_shards(cluster: Path) -> None:
    work = cluster / "work"
    begin(work, PLAN)
    Work(work)(2)
    launch = Launch("slurm", workers=2, gpus=1, cpus=4, memory_gb=32, slurm_partition="gpu", slurm_args=["account=me"])
    assert run_shards(Work(work), PLAN, work, launch, after="17") == "4711"
    script = (cluster / "sbatch_script").read_text()
    settings = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script, re.MULTILINE))
    expected = {"partition": "gpu", "cpus-per-task": "4", "mem": "32GB", "gpus-per-node": "1", "account": "me"}
    expected |= {"dependency": "afterok:17", "kill-on-invalid-dep": "yes", "time": "24:00:00"}
    expected |= {"array": "0-1%2", "job-name": "vlm-detect-count"}
    assert settings.items() >= expected.items()

    # what a node does, one task of the array after the other
    for task in ("0", "1"):
        node = {"SLURM_ARRAY_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": task, "SLURM_JOB_ID": f"471{task}"}
        node |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS": "1"}
        node |= {
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_JOB_NODELIST": "node1",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        command = ["sh", cluster / "sbatch_script"]
        done = subprocess.run(command, env=os.environ | node, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert items(work) == list(range(12))
    assert run_shards(Work(work), PLAN, work, launch) is None


def test_a_queued_slurm_job_is_not_submitted_twice(cluster: Path) -> None:
    work = cluster / "work"
    launch = Launch("slurm", workers=2)
    assert run_shards(Work(work), PLAN, work, launch) == "4711"
    (cluster / "queue").write_text("4711 gpu R\n")
    assert run_shards(Work(work), PLAN, work, launch) == "4711"
    assert len((cluster / "sbatch_calls").read_text().splitlines()) == 1
    (cluster / "queue").write_text("")
    run_shards(Work(work), PLAN, work, launch)
    assert len((cluster / "sbatch_calls").read_text().splitlines()) == 2
    assert "gpu" not in (cluster / "sbatch_script").read_text()  # none was asked for


def test_an_error_of_sbatch_is_one_line(cluster: Path) -> None:
    (cluster / "bin" / "sbatch").write_text("#!/bin/sh\necho 'invalid partition' >&2\nexit 1\n")
    with pytest.raises(UserError, match=r"sbatch rejected the job.*invalid partition"):
        run_shards(Work(cluster / "work"), PLAN, cluster / "work", Launch("slurm"))


def test_slurm_without_sbatch_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no sbatch on this machine"):
        run_shards(Work(tmp_path), PLAN, tmp_path, Launch("slurm"))


@pytest.mark.slow
def test_ray_makes_the_same_shards_and_reports_a_dead_worker(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    places = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = {"env_vars": {"PYTHONPATH": places}}
    ray.init(num_cpus=2, include_dashboard=False, runtime_env=environment, log_to_driver=False)
    launch = Launch("ray", workers=2, memory_gb=1)
    try:
        with pytest.raises(UserError, match="the worker of shard 3 died"):
            run_shards(Work(tmp_path / "ray", 3, "killed"), PLAN, tmp_path / "ray", launch)
        with pytest.raises(UserError, match="this shard cannot be made"):
            run_shards(Work(tmp_path / "ray", 3, "refused"), PLAN, tmp_path / "ray", launch)
        run_shards(Work(tmp_path / "ray"), PLAN, tmp_path / "ray", launch)
    finally:
        ray.shutdown()
    run_shards(Work(tmp_path / "local"), PLAN, tmp_path / "local")
    for shard in range(PLAN.shards):
        rows = f"shards/{shard:05d}/rows.parquet"
        assert (tmp_path / "ray" / rows).read_bytes() == (tmp_path / "local" / rows).read_bytes()
