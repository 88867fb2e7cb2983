"""The published answers of the TeoScardov models give the published figures, and the recorded ones."""

import json
import os
from pathlib import Path

import pytest

from tests.benchmark.fakes import write_benchmark
from vlm_detect.benchmark.items import load_benchmark
from vlm_detect.benchmark.score import generated_result
from vlm_detect.benchmark.summary import summarise
from vlm_detect.benchmark.text_baselines import text_baselines
from vlm_detect.config import REPOSITORY
from vlm_detect.questions.kind import prompts_of

DATA = Path(os.environ.get("VLM_DETECT_DATA", "")) / "custom_vqa"
RECORDED = json.loads((REPOSITORY / "eval" / "results" / "published" / "teoscardov_tinyllava.json").read_text())
FILES = {
    "multiple_choice": "multiple-choice/vqa_multiple_choice_benchmark.json",
    "true_false": "true-false/vqa_true_false_benchmark.json",
}


@pytest.mark.skipif(
    not os.environ.get("VLM_DETECT_DATA") or not DATA.is_dir(), reason="VLM_DETECT_DATA names no folder with custom_vqa"
)
@pytest.mark.parametrize(("task", "published"), [("multiple_choice", 0.62), ("true_false", 0.52)])
def test_published_figures(task: str, published: float, tmp_path: Path) -> None:
    record = next(record for record in RECORDED if record["task"] == task)
    words = {"R": "Real", "F": "Fake"} if task == "true_false" else {}
    rows = json.loads((DATA / FILES[task]).read_text())
    answered = [
        {**row, "answer": words.get(letter, letter)} for row, letter in zip(rows, record["answers"], strict=True)
    ]
    benchmark = load_benchmark(write_benchmark(tmp_path, answered), need_images=False)
    results = [generated_result(prompts_of(item)[0], benchmark.answers[item.id]) for item in benchmark.items]
    summary = summarise(results, baselines=text_baselines(benchmark.items), resamples=200)
    assert summary["accuracy"] == summary["generate"]["exact_match"] == published == record["accuracy"]
    assert summary["generate"]["unparsed"] == 0
    for name in ("balanced_accuracy", "right_verdict_wrong_reason"):
        assert summary.get(name) == record[name]
    assert summary["floors"]["chance"] == record["floors"]["chance"]
    if task == "multiple_choice":
        assert summary["floors"]["longest"] == 0.81  # the model does worse than the longest option
