"""`eval/evidence.py` as a user runs it, on a model of random weights: its figures follow from its maps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset

from tests.apps.conftest import make_photo
from tests.factories import tiny_vlm
from tests.scripts.here import run_here
from vlm_detect.infer.engine import Ask, Engine
from vlm_detect.infer.evidence import evidence_map
from vlm_detect.infer.verdict import log_odds
from vlm_detect.places import place_of
from vlm_detect.questions.ask import EDIT_EXPLAIN_QUESTION
from vlm_detect.questions.kinds.operation import OPERATION_QUESTION
from vlm_detect.questions.kinds.place import PLACE_QUESTION

BOXES = [(0, 0, 16, 12), (16, 12, 32, 24), (4, 4, 30, 22), (0, 12, 16, 24), (2, 2, 10, 9), (16, 0, 32, 12)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    vlm = tiny_vlm()
    vlm.model.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    return folder


def write_edits(folder: Path, kind: str = "edit") -> Path:
    rows = [
        {
            "pair_id": f"pair{i}",
            "image_label": "real",
            "kind": kind,
            "group": f"photo{i // 2}",
            "image": make_photo(i, (32, 24)),
            "twin": make_photo(10 + i, (32, 24)),
            "edit": {"operation": "blur" if i % 2 else "splice", "box": list(box), "strength": 0.1 * i},
        }
        for i, box in enumerate(BOXES)
    ]
    (folder / "data").mkdir(parents=True)
    Dataset.from_list(rows).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    return folder


def test_the_figures_follow_from_the_maps(model: Path, tmp_path: Path) -> None:
    data = write_edits(tmp_path / "edits")
    done = run_here("eval/evidence.py", "--model", model, "--data", data, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "evidence.json").read_text())
    engine = Engine(tiny_vlm())
    hits, odds = [], []
    for i, (x0, y0, x1, y1) in enumerate(BOXES):
        evidence = evidence_map(engine, make_photo(10 + i, (32, 24)), topic="edit")
        x, y = evidence.peak[0] * 32, evidence.peak[1] * 24
        hits.append(x0 <= x < x1 and y0 <= y < y1)
        odds.append((evidence.log_odds, log_odds(engine, [make_photo(i, (32, 24))], topic="edit")[0]))
    chance = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in BOXES) / 6 / (32 * 24)
    assert (found["n"], found["groups"]) == (6, 3)
    assert found["hit_rate"] == pytest.approx(sum(hits) / 6)
    assert found["chance"] == pytest.approx(chance)
    assert found["ratio"] == pytest.approx(sum(hits) / 6 / chance)
    low, high = found["ci95"]["ratio"]
    assert low <= found["ratio"] <= high
    above = sum((e > u) + 0.5 * (e == u) for e, _ in odds for _, u in odds) / 36
    assert found["auroc"] == pytest.approx(above, abs=1e-3)
    assert {name: one["n"] for name, one in found["by_operation"].items()} == {"blur": 3, "splice": 3}
    stronger = found["stronger_half"]  # the last two of the three of each operation
    assert (stronger["n"], stronger["hit_rate"]) == (4, pytest.approx(sum(hits[2:]) / 4))


def test_words_are_checked_against_the_edit(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = {
        OPERATION_QUESTION: "Blur.",
        PLACE_QUESTION: "At the centre.",
        EDIT_EXPLAIN_QUESTION: "Altered. Splice at the centre.",
    }

    def generate(self: Engine, images, questions, max_new_tokens):
        if len(questions[0]) == 1:  # of the untouched images
            return [["Nothing."] if i % 3 else ["Blur."] for i in range(len(images))]
        return [[words[question] for question in some] for some in questions]

    monkeypatch.setattr(Engine, "generate", generate)
    data = write_edits(tmp_path / "edits")
    done = run_here("eval/evidence.py", "--model", model, "--data", data, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "evidence.json").read_text())
    # Of the boxes only the third, spliced, has its middle in the middle of the image.
    places = [place_of(box, (32, 24)) for box in BOXES]
    assert places.count("centre") == 1
    rights = {what: one["right"] for what, one in found["words"].items()}
    engine, naming = Engine(tiny_vlm()), [Ask(OPERATION_QUESTION, ("Blur.", "Splice."))]
    scores = engine.score([make_photo(10 + i, (32, 24)) for i in range(6)], [naming] * 6)
    likeliest = [blur.logprob > splice.logprob for ((blur, splice),) in scores]
    assert rights.pop("likeliest") == pytest.approx(sum(is_blur == i % 2 for i, is_blur in enumerate(likeliest)) / 6)
    assert rights == pytest.approx({"operation": 3 / 6, "place": 1 / 6, "explanation": 1 / 6})
    chances = {what: one["chance"] for what, one in found["words"].items()}
    most = max(map(places.count, places)) / 6
    assert (chances["operation"], chances["place"]) == pytest.approx((0.5, most))
    assert found["nothing_of_untouched"] == pytest.approx(4 / 6)
    assert {name: one["named"] for name, one in found["by_operation"].items()} == {"blur": 1, "splice": 0}
    assert found["by_operation"]["splice"]["said"] == {"Blur.": 3}


def test_a_dataset_without_edits_is_refused(model: Path, tmp_path: Path) -> None:
    data = write_edits(tmp_path / "twins", kind="caption")
    done = run_here("eval/evidence.py", "--model", model, "--data", data)
    assert (done.returncode, done.stderr.count("error:")) == (1, 1)
    assert "make-pairs --twins edit" in done.stderr


def test_bad_input(model: Path, tmp_path: Path) -> None:
    data = write_edits(tmp_path / "edits")
    for flags, status, said in (
        (("--data", tmp_path / "none"), 1, "cannot be opened as a dataset"),
        (("--data", data, "--split", "train"), 1, "has no split train (has test)"),
        (("--data", data, "--limit", 0), 2, "--limit 0: give 1 or more"),
    ):
        done = run_here("eval/evidence.py", "--model", model, *flags)
        assert (done.returncode, said in done.stderr) == (status, True), done.stderr


def test_folders_of_the_same_name_are_distinguished(model: Path, tmp_path: Path) -> None:
    """With its card `datasets` caches a folder by its name."""
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: test, path: data/test-*.parquet}\n---\n"
    for name, kind in (("one", "caption"), ("two", "edit")):
        (write_edits(tmp_path / name / "set", kind) / "README.md").write_text(card)
    args = ("--model", model, "--limit", 1, "--out", tmp_path / "out")
    assert run_here("eval/evidence.py", *args, "--data", tmp_path / "one" / "set").returncode == 1
    done = run_here("eval/evidence.py", *args, "--data", tmp_path / "two" / "set")
    assert done.returncode == 0, done.stderr


def test_a_hub_id_is_not_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_here("eval/evidence.py", "--model", "nano", "--data", write_edits(tmp_path / "edits"), "--limit", 1)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "nano" / "evidence" / "evidence.json").is_file()
    assert not (tmp_path / "nano").exists()
