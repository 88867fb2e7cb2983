"""`vlm-detect benchmark --explanations` as a user runs it, on a LoRA of a model of a few thousand random weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model

from tests.benchmark.explained import write_edited, write_reasoned
from tests.benchmark.fakes import verdict_rows, write_benchmark
from tests.factories import tiny_moondream, tiny_vlm
from tests.pages.test_page import assert_self_contained
from tests.scripts.here import run_verb
from tests.scripts.test_vqa_benchmark import TWO
from tests.scripts.test_vqa_benchmark import run as run_as_two
from vlm_detect.models.cnn.configuration import CnnConfig
from vlm_detect.models.cnn.model import CnnForDetection

SETTINGS = ("--explanations", 6, "--base_explanations", 2, "--explanation_tokens", 8, "--generate", "false")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory: an adapter that names its base, a folder of its own."""
    folder = tmp_path_factory.mktemp("models")
    vlm = tiny_vlm()
    vlm.model.save_pretrained(folder / "base")
    vlm.processor.save_pretrained(folder / "base")
    tuned: Any = get_peft_model(tiny_moondream(), LoraConfig(r=2, target_modules=["qkv"]))
    tuned.peft_config["default"].base_model_name_or_path = str(folder / "base")
    tuned.save_pretrained(folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def reasoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reasoned(tmp_path_factory.mktemp("reasoned"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def summary(out: Path) -> dict[str, Any]:
    return json.loads((out / "summary.json").read_text())


@pytest.fixture(scope="module")
def whole(adapter: Path, reasoned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    done = run_verb("benchmark", "--model", adapter, "--benchmark", reasoned, *SETTINGS, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "specificity" in done.stdout
    return out


def test_a_record_an_explained_image_and_the_figures(whole: Path, reasoned: Path) -> None:
    asked = [row for row in lines(whole / "results.jsonl") if row["scoring"] == "generate"]
    assert len(asked) == 6
    assert {row["kind"] for row in asked} == {"open"}
    records = lines(whole / "explanations.jsonl")
    assert [row["id"] for row in records] == [row["id"] for row in asked]
    assert [row["answer"] for row in records] == [row["answer"] for row in asked]
    for row in records:
        for reason in row["reasons"]:
            assert {"text", "kind", "box", "status", "value", "percentile", "measure"} <= set(reason)
    found = summary(whole)
    assert found["n"] == 80  # every image of the split has its yes/no question
    assert "generate" not in found  # no closed question was answered freely
    explained = found["explanations"]
    assert (explained["n"], explained["base"]["n"]) == (6, 2)
    assert explained["measured_by"] == str(reasoned)
    assert explained["measured"]["truth_of_constant"]["n"] == 12
    html = (whole / "report.html").read_text()
    assert_self_contained(html)
    for part in ("Specificity: fits its own image", "blind", "checked against that very image"):
        assert part in html, part


def test_a_killed_run_continues_and_asks_nothing_twice(
    adapter: Path, reasoned: Path, whole: Path, tmp_path: Path
) -> None:
    out, args = tmp_path / "out", ("benchmark", "--model", adapter, "--benchmark", reasoned, *SETTINGS)
    out.mkdir()
    (out / "settings.json").write_text((whole / "settings.json").read_text())
    answered = [row for row in lines(whole / "results.jsonl") if row["scoring"] == "generate"][:4]
    answered = [{**row, "answer": f"AI-generated. Said before, {i}."} for i, row in enumerate(answered)]
    (out / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answered) + '{"id": "')
    done = run_verb(*args, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "4 of 178 prompts are already answered" in done.stderr
    said = [row["answer"] for row in lines(out / "explanations.jsonl")]
    assert [text for text in said if "Said before" in text] == [row["answer"] for row in answered]
    assert len(said) == 6
    again = run_verb(*args, "--out", out)
    assert "nothing is left to do" in again.stdout
    # More of them: those that are there stay.
    more = run_verb(*args, "--explanations", 10, "--out", out)
    assert more.returncode == 0, more.stderr
    assert "178 of 190 prompts are already answered" in more.stderr
    said = [row["answer"] for row in lines(out / "explanations.jsonl")]
    assert len(said) == summary(out)["explanations"]["n"] == 10
    assert sum("Said before" in text for text in said) == 4


@pytest.mark.slow
def test_two_processes_share_the_explanations(adapter: Path, reasoned: Path, whole: Path, tmp_path: Path) -> None:
    args = ("--model", adapter, "--benchmark", reasoned, *SETTINGS, "--out", tmp_path / "two")
    done = run_as_two(*args, launch=TWO)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2
    one, two = (summary(out)["explanations"] for out in (whole, tmp_path / "two"))
    assert one == two
    assert lines(whole / "explanations.jsonl") == lines(tmp_path / "two" / "explanations.jsonl")


def test_two_runs_are_compared_and_recorded(adapter: Path, reasoned: Path, whole: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "eval"
    done = run_verb(
        "benchmark", "--model", adapter.parent / "base", "--benchmark", reasoned, "--generate", "false", "--out", other
    )
    assert done.returncode == 0, done.stderr
    record = tmp_path / "record.json"
    done = run_verb("compare", whole, other, "--explanations", record, "--out", tmp_path / "compared")
    assert done.returncode == 0, done.stderr
    found = json.loads(record.read_text())
    keys = {"truth", "truth_of_another_image", "specificity", "false_faults_on_photos", "contradictions"}
    keys |= {"yes_no_accuracy", "yes_no_accuracy_without"}
    assert keys <= set(found)
    for name in keys:
        assert set(found[name]) >= {"value", "n", "ci95", "command", "commit", "seed", "device"}, name
        assert f"--benchmark {reasoned}" in found[name]["command"]
    assert found["yes_no_accuracy"]["n"] == found["yes_no_accuracy_without"]["n"] == 80
    assert found["yes_no_accuracy"]["value"] == summary(whole)["by_kind"]["true_false"]["accuracy"]
    assert found["yes_no_accuracy_without"]["value"] == summary(other)["accuracy"]
    difference = found["yes_no_accuracy"]["value"] - found["yes_no_accuracy_without"]["value"]
    assert found["yes_no_accuracy"]["difference"] == pytest.approx(difference, abs=1e-6)
    low, high = found["yes_no_accuracy"]["difference_ci95"]
    assert low <= difference <= high
    assert found["specificity"]["value"] == summary(whole)["explanations"]["measured"]["specificity"]["share"]
    compared = json.loads((tmp_path / "compared" / "compare.json").read_text())
    assert compared["runs"][whole.name]["explanations"] == summary(whole)["explanations"]
    html = (tmp_path / "compared" / "report.html").read_text()
    assert "Specificity: fits its own image" in html
    assert html.count("too few photos to say") == 1  # of all six
    turned = run_verb("compare", other, whole, "--explanations", record, "--out", tmp_path / "turned")
    assert turned.returncode == 1
    assert "--explanations N" in turned.stderr


def test_without_measures_a_message_says_that_nothing_is_checked(adapter: Path, tmp_path: Path) -> None:
    edits = write_edited(tmp_path / "edits")
    done = run_verb("benchmark", "--model", adapter, "--benchmark", edits, *SETTINGS, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "add-reasons makes a dataset that has" in done.stderr
    found = summary(tmp_path / "out")["explanations"]
    assert "measured" not in found
    assert found["edits"]["place_named"]["n"] == 6


def test_models_that_cannot_explain_are_refused(adapter: Path, reasoned: Path, tmp_path: Path) -> None:
    path = write_benchmark(tmp_path, verdict_rows(tmp_path, 4))
    done = run_verb("benchmark", "--model", adapter, "--benchmark", path, "--explanations", 2, "--out", tmp_path / "a")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "dataset folder" in done.stderr
    CnnForDetection(CnnConfig(heads={"verdict": ["real", "generated"]})).save_pretrained(tmp_path / "cnn")
    done = run_verb(
        "benchmark", "--model", tmp_path / "cnn", "--benchmark", reasoned, "--explanations", 2, "--out", tmp_path / "b"
    )
    assert done.returncode == 1
    assert "error: --explanations" in done.stderr
    assert "answers no question in words" in done.stderr


def test_named_places_are_hidden_mapped_and_judged(adapter: Path, tmp_path: Path) -> None:
    """The answers are those of an earlier run, since random weights name no place."""
    edits, out = write_edited(tmp_path / "edits"), tmp_path / "out"
    args = ["benchmark", "--model", adapter, "--benchmark", edits, *SETTINGS, "--base_explanations", 0]
    args += ["--faithfulness", 4, "--judge", adapter.parent / "base", "--out", out]
    assert run_verb(*args, "--faithfulness", 0, "--limit", 8).returncode == 0
    rows = lines(out / "results.jsonl")
    (out / "results.sha256").unlink()
    said = [{**row, "answer": "Altered. Blur at the top."} if row["scoring"] == "generate" else row for row in rows]
    (out / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    assert not (out / "faithfulness.jsonl").exists()
    done = run_verb(*args, "--limit", 8)
    assert done.returncode == 0, done.stderr
    found = summary(out)["explanations"]
    named = sum(row["answer"].endswith("top.") for row in said if row["scoring"] == "generate")
    assert found["faithfulness"]["hiding"]["n"] == found["faithfulness"]["pasting"]["n"] == named == 4
    assert found["hits"]["named"]["hit"]["n"] == found["hits"]["evidence_map"]["hit"]["n"] == named
    assert found["judged"]["specificity"]["n"] == named
    assert re.search(r"faithfulness, hiding +[01]\.\d{3}  \[.*\]  n 4, too few photos to say\n", done.stdout)
    assert found["faithfulness"]["hiding"]["groups"] == 4
    assert "--explanations 6: there are 4 images to explain" in done.stderr
    assert (found["judged"]["by"], found["judged"]["is_the_model_itself"]) == (str(adapter.parent / "base"), False)
    html = (out / "report.html").read_text()
    for part in ("Hiding the named place", "too few photos to say", "by the evidence map", "was put to a judge"):
        assert part in html, part
    kept = {path.name: path.read_text() for path in out.glob("*.jsonl")}
    assert len(kept) == 5
    (out / "run.json").unlink()  # as a run that was killed before its last line
    assert run_verb(*args, "--limit", 8).returncode == 0
    assert kept == {path.name: path.read_text() for path in out.glob("*.jsonl")}
