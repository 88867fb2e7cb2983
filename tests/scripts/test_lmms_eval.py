"""The same answers and figures under lmms-eval as here, from one run of a model of ours under both.

python -m venv ~/lmms && ~/lmms/bin/pip install lmms-eval==0.7.3 -e .      # an environment of its own
LMMS_EVAL=~/lmms/bin/lmms-eval pytest -m slow tests/scripts/test_lmms_eval.py
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.benchmark.fakes import choice_row, write_benchmark
from tests.scripts.here import run_here
from vlm_detect.config import REPOSITORY

LMMS_EVAL = os.environ.get("LMMS_EVAL") or shutil.which("lmms-eval")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not LMMS_EVAL, reason="LMMS_EVAL names no lmms-eval: pip install lmms-eval -e . elsewhere"),
]


def noisy_benchmark(folder: Path) -> Path:
    """Questions of every number of images, with an open one and one about an edit, which are not asked."""
    rng = np.random.default_rng(0)
    rows: list[dict] = []
    for i in range(10):
        name = f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (24, 20 + i, 3), dtype=np.uint8)).resize((120, 90 + i)).save(folder / name)
        asked = ("Is this image AI-generated?", "Is this image a real photograph?")[i % 2]
        row = {"id": f"item{i}", "image": name, "question": asked, "ground_truth": ("Yes.", "No.")[i // 2 % 2]}
        rows.append({**row, "metadata": {"generator": "x"}})
    rows += [choice_row(folder, f"choice{i}", "ABCD"[i]) for i in range(2)]
    two = {"id": "pair", "kind": "which_of_two", "images": ["1.png", "2.png"], "question": "Which is AI-generated?"}
    rows.append({**two, "options": ["The left one.", "The right one."], "ground_truth": "A"})
    rows.append({**rows[0], "id": "edit", "metadata": {"asked": "edited", "label": "edited"}})
    rows.append({**rows[0], "id": "open", "kind": "open", "ground_truth": "Because."})
    return write_benchmark(folder, rows)


def harness(folder: Path, benchmark: Path) -> subprocess.CompletedProcess[str]:
    command = [LMMS_EVAL, "--model", "vlm_detect", "--model_args", "pretrained=nano,device=cpu", "--batch_size", "4"]
    command += ["--include_path", str(REPOSITORY / "eval" / "tasks" / "lmms"), "--tasks", "vlm_detect_lmms"]
    command += ["--output_path", "theirs", "--log_samples"]
    environment = {**os.environ, "VLM_DETECT_BENCHMARK": str(benchmark), "HF_HOME": str(folder / "hub")}
    environment |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


def test_equal_answers_and_equal_figures(tmp_path: Path) -> None:
    benchmark = noisy_benchmark(tmp_path)
    run = harness(tmp_path, benchmark)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "benchmark.json: without 1 open questions, 1 questions about edits" in run.stderr
    (found,) = tmp_path.rglob("*_results.json")
    theirs = json.loads(found.read_text())["results"]["vlm_detect_lmms"]
    (samples,) = tmp_path.rglob("*_samples_vlm_detect_lmms.jsonl")
    said = [json.loads(line) for line in samples.read_text().splitlines()]

    done = run_here("eval/vqa_benchmark.py", "--model", "nano", "--benchmark", benchmark, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    ours = json.loads((tmp_path / "out" / "summary.json").read_text())["generate"]
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    answers = {row["id"]: row["answer"] for row in rows if row["scoring"] == "generate"}

    asked = [*(f"item{i}" for i in range(10)), "choice0", "choice1", "pair"]
    assert [sample["filtered_resps"] for sample in said] == [answers[id_] for id_ in asked]
    assert ours["n"] == len(asked)
    assert theirs["accuracy,none"] == pytest.approx(ours["accuracy"], abs=1e-6)
    assert theirs["unparsed,none"] == pytest.approx(ours["unparsed"] / len(said))
    assert 0 < ours["accuracy"] < 1  # some right, some wrong,
    assert 0 < ours["unparsed"] < len(said)  # and some that say nothing


def test_a_benchmark_that_cannot_be_read_ends_the_program(tmp_path: Path) -> None:
    run = harness(tmp_path, tmp_path / "none.json")
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith(f"error: {tmp_path / 'none.json'}: no such benchmark file")
