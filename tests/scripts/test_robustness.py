"""`eval/robustness.py` as a user runs it, on a model of a few thousand random weights."""

import json
from pathlib import Path

import pytest

from tests.benchmark.fakes import choice_row, verdict_rows, write_benchmark
from tests.factories import tiny_vlm
from tests.scripts.here import run_here
from vlm_detect.benchmark.perturb import Condition


def test_tiers_and_resuming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[str] = []
    apply = Condition.apply
    monkeypatch.setattr(Condition, "apply", lambda self, image, seed: seeds.append(seed) or apply(self, image, seed))
    vlm = tiny_vlm()
    vlm.model.save_pretrained(tmp_path / "model")
    vlm.processor.save_pretrained(tmp_path / "model")
    rows = [*verdict_rows(tmp_path, 4), choice_row(tmp_path)]
    benchmark = write_benchmark(tmp_path, rows)
    out = tmp_path / "out"
    args = ("--model", tmp_path / "model", "--benchmark", benchmark, "--out", out, "--conditions", "tiers")
    done = run_here("eval/robustness.py", *args)
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "robustness.json").read_text())
    assert found["items"] == 4  # verdicts only
    assert list(found["conditions"]) == ["clean", "web", "hard", "thumb", "typographic", "hard_photos"]
    assert set(found["conditions"]["typographic"]["flips"]) == {"to_real", "to_generated", "by_variant"}
    assert found["conditions"]["hard_photos"]["false_alarms"]["n"] == 2
    assert "hard_photos: photos called generated" in done.stdout
    assert set(found["conditions"]["web"]) >= {"both", "real_only", "generated_only"}
    assert "generated only" in done.stdout
    html = (out / "report.html").read_text()
    assert "judges the treatment" in html
    assert "The text says" in html
    assert "Photos called generated" in html

    again = run_here("eval/robustness.py", *args)
    assert again.returncode == 0
    assert "prompts," not in again.stderr  # nothing was asked again
    assert json.loads((out / "robustness.json").read_text()) == found

    first_seeds, seeds[:] = seeds.copy(), []
    monkeypatch.chdir(tmp_path)
    elsewhere = ("--benchmark", benchmark.name, "--out", "elsewhere")
    assert run_here("eval/robustness.py", *args[:2], *elsewhere, *args[-2:]).returncode == 0
    names = [f"{i}.png" for i in range(4)]
    assert seeds == first_seeds
    assert seeds[:20] == names * 5
    assert len(seeds[20:]) == 2  # photos alone are made hard


def test_a_benchmark_without_verdicts(tmp_path: Path) -> None:
    benchmark = write_benchmark(tmp_path, [choice_row(tmp_path)])
    refused = run_here("eval/robustness.py", "--model", "nano", "--benchmark", benchmark, "--out", tmp_path / "out")
    assert (refused.returncode, "asks for a verdict" in refused.stderr) == (1, True)
