"""The same answers and figures under lm-evaluation-harness as here, on a stock LLaVA of random weights.

python -m venv ~/lm_eval && ~/lm_eval/bin/pip install "lm_eval[hf]" -e .      # an environment of its own
LM_EVAL=~/lm_eval/bin/lm_eval pytest -m slow tests/scripts/test_lm_eval.py
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.benchmark.fakes import choice_row, verdict_rows, write_benchmark
from tests.models.tiny_chat import llava
from tests.scripts.here import run_here
from vlm_detect.config import REPOSITORY

LM_EVAL = os.environ.get("LM_EVAL") or shutil.which("lm_eval")
TOKENS = 1
LIKELIEST = 17  # what these weights would else say of nearly everything

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not LM_EVAL, reason='LM_EVAL names no lm_eval: pip install "lm_eval[hf]" -e . elsewhere'),
]


def answering_llava(folder: Path) -> Path:
    """Random weights that often say a letter: some of what they say can be read."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = llava()
    letters = processor.tokenizer.convert_tokens_to_ids(["A", "B", "C", "D"])
    with torch.no_grad():
        model.lm_head.weight[letters] += 2 * model.lm_head.weight[LIKELIEST]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def noisy_benchmark(folder: Path) -> Path:
    rows = verdict_rows(folder, 10)
    rows += [choice_row(folder, f"choice{i}", "ABCD"[i % 4]) for i in range(40)]
    rng = np.random.default_rng(0)
    for path in sorted(folder.glob("*.png")):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return write_benchmark(folder, rows)


def test_equal_answers_and_equal_figures(tmp_path: Path) -> None:
    model, benchmark = answering_llava(tmp_path / "llava"), noisy_benchmark(tmp_path)
    command = [LM_EVAL, "--model", "hf-multimodal", "--model_args", f"pretrained={model},dtype=float32"]
    command += ["--include_path", REPOSITORY / "eval" / "tasks", "--tasks", "vlm_detect_vqa", "--apply_chat_template"]
    command += ["--metadata", json.dumps({"benchmark": str(benchmark)}), "--gen_kwargs", f"max_gen_toks={TOKENS}"]
    command += ["--device", "cpu", "--batch_size", "1", "--output_path", tmp_path / "harness", "--log_samples"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        list(map(str, command)), env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    (figures,) = (tmp_path / "harness").rglob("results_*.json")
    theirs = json.loads(figures.read_text())["results"]["vlm_detect_vqa"]
    (samples,) = (tmp_path / "harness").rglob("samples_*.jsonl")
    said = [json.loads(line) for line in samples.read_text().splitlines()]

    arguments = ("--model", model, "--benchmark", benchmark, "--out", tmp_path / "out", "--max_new_tokens", TOKENS)
    done = run_here("eval/vqa_benchmark.py", *arguments)
    assert done.returncode == 0, done.stderr
    ours = json.loads((tmp_path / "out" / "summary.json").read_text())["generate"]
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    answers = {row["id"]: row["answer"] for row in rows if row["scoring"] == "generate"}

    assert {sample["doc"]["id"]: sample["resps"][0][0].strip() for sample in said} == answers
    assert theirs["acc,none"] == pytest.approx(ours["accuracy"])
    assert theirs["unparsed,none"] == pytest.approx(ours["unparsed"] / len(answers))
    assert 0 < ours["accuracy"] < 1  # some right, some wrong,
    assert 0 < ours["unparsed"] < len(answers)  # and some that say nothing
