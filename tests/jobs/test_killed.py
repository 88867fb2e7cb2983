"""A run that is killed at random moments, and runs of one, two and four workers, make the same files byte for byte."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data.factories import photo, save_tiny_pipeline

ROOT = Path(__file__).parents[2]
KILLS = 20
PHOTOS = 24


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """make_pairs on a few photos, one of them unreadable, in shards of two."""
    folder = tmp_path_factory.mktemp("killed")
    generator = save_tiny_pipeline(folder / "sd3")
    (folder / "photos").mkdir()
    lines = ["file_name,caption"]
    for i in range(PHOTOS):
        photo(i).save(folder / "photos" / f"{i}.png")
        lines.append(f"{i}.png,a thing of kind {i}")
    (folder / "photos" / "broken.jpg").write_bytes(b"\xff\xd8 broken")
    (folder / "photos" / "metadata.csv").write_text("\n".join(lines) + "\n")
    return [
        *(sys.executable, str(ROOT / "data_gen" / "make_pairs.py"), "--images", str(folder / "photos")),
        *("--generator", str(generator), "--captioner", "column", "--steps", "8", "--max_sequence_length", "8"),
        *("--shard_size", "2", "--twins", "caption,vae,edit", "--allow_small", "True"),
    ]


def start(command: list[str], out: Path, workers: int) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    arguments = [*command, "--out", str(out), "--workers", str(workers)]
    return subprocess.Popen(arguments, env=environment, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)


def finish(command: list[str], out: Path, workers: int) -> dict[str, str]:
    run = start(command, out, workers)
    _, errors = run.communicate()
    assert run.returncode == 0, errors
    return digests(out)


def digests(out: Path) -> dict[str, str]:
    """Every file but run.json, which tells when and by which command."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name != "run.json"]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_output_bytes_do_not_depend_on_kills_or_workers(command: list[str], tmp_path: Path) -> None:
    undisturbed, seconds = {}, {}
    for workers in (1, 2, 4):
        started = time.monotonic()
        undisturbed[workers] = finish(command, tmp_path / f"by{workers}", workers)
        seconds[workers] = time.monotonic() - started
    assert undisturbed[1] == undisturbed[2] == undisturbed[4]
    assert {"README.md", "audit.json", "rejects.parquet", "data/train-00000-of-00001.parquet"} <= undisturbed[1].keys()

    rng = random.Random(0)
    kills, runs, amid_work = 0, 0, 0
    out = tmp_path / "killed"
    while kills < KILLS:
        workers = 1 + kills % 2
        run = start(command, out, workers)
        # Reading in takes half of the time and leaves no trace; the moments are spread over the rest.
        moment = time.monotonic() + rng.uniform(0.3, 1.1) * seconds[workers]
        while run.poll() is None and time.monotonic() < moment:
            time.sleep(0.02)
        if run.poll() is None:
            run.send_signal(signal.SIGKILL)
            run.wait()
            kills += 1
            amid_work += (tmp_path / "killed.work").exists()
        else:
            assert run.returncode == 0, run.stderr and run.stderr.read()
        if (out / "run.json").exists() and not (tmp_path / "killed.work").exists():
            assert digests(out) == undisturbed[1]
            runs += 1
            shutil.rmtree(out)
    assert finish(command, out, 2) == undisturbed[1]
    assert amid_work >= KILLS // 2, f"only {amid_work} of {kills} kills hit work; {runs} runs were finished between"
