"""The same answers and figures under inspect_ai as here, from one model behind an endpoint.

python -m venv ~/inspect && ~/inspect/bin/pip install inspect_ai openai -e .      # an environment of its own
INSPECT=~/inspect/bin/inspect pytest -m slow tests/scripts/test_inspect_ai.py
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.benchmark.fakes import choice_row, verdict_rows, write_benchmark
from tests.infer.fake_endpoint import fake_endpoint
from tests.scripts.here import run_here
from vlm_detect.config import REPOSITORY

INSPECT = os.environ.get("INSPECT") or shutil.which("inspect")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not INSPECT, reason="INSPECT names no inspect: pip install inspect_ai openai -e . elsewhere"),
]


def test_equal_answers_and_equal_figures(tmp_path: Path) -> None:
    rows = [*verdict_rows(tmp_path, 8), *(choice_row(tmp_path, f"choice{i}", "ABCD"[i % 4]) for i in range(4))]
    benchmark = write_benchmark(tmp_path, rows)
    with fake_endpoint() as server:
        command = [INSPECT, "eval", "eval/tasks/vlm_detect_inspect.py"]  # a relative path is required
        command += ["--model", "openai-api/local/fake-vlm", "-T", f"benchmark={benchmark}", "--display", "none"]
        command += ["--log-dir", tmp_path / "logs", "--log-format", "json"]
        environment = {**os.environ, "LOCAL_API_KEY": "none", "LOCAL_BASE_URL": server.url, "CUDA_VISIBLE_DEVICES": ""}
        run = subprocess.run(
            list(map(str, command)), env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr[-3000:]
        arguments = ("--endpoint", server.url, "--model", "fake-vlm", "--benchmark", benchmark)
        done = run_here("eval/vqa_benchmark.py", *arguments, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    (log,) = (tmp_path / "logs").glob("*.json")
    theirs = json.loads(log.read_text())
    assert theirs["status"] == "success"
    figures = {score["name"]: score["metrics"]["mean"]["value"] for score in theirs["results"]["scores"]}
    ours = json.loads((tmp_path / "out" / "summary.json").read_text())["generate"]
    answers = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    said = {row["id"]: row["answer"] for row in answers if row["scoring"] == "generate"}
    assert {sample["id"]: sample["output"]["choices"][0]["message"]["content"] for sample in theirs["samples"]} == said
    assert 0 < ours["accuracy"] < 1
    assert figures["accuracy"] == pytest.approx(ours["accuracy"])
    assert figures["unparsed"] == pytest.approx(ours["unparsed"] / len(said))
