"""A benchmark as other harnesses ask it: the items of our own headline, once each, as written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmark.fakes import choice_row, verdict_rows, write_benchmark, write_image
from tests.train.toys import save_toy_pairs
from vlm_detect.benchmark.harness import asked_items
from vlm_detect.benchmark.items import load_benchmark
from vlm_detect.benchmark.summary import summarise
from vlm_detect.errors import UserError


def pair_row(folder: Path) -> dict:
    """An item that shows two images."""
    for name, size in (("left.png", (30, 10)), ("right.png", (8, 16))):
        write_image(folder / name, "red", size)
    return {
        "id": "pair",
        "kind": "which_of_two",
        "images": ["left.png", "right.png"],
        "question": "Which of the two images is AI-generated?",
        "options": ["The left one.", "The right one."],
        "ground_truth": "A",
    }


def edit_row(folder: Path, id_: str = "edit") -> dict:
    write_image(folder / f"{id_}.png", "green", (9, 9))
    question = "Was a part of this image altered?"
    about = {"asked": "edited", "label": "edited"}
    return {"id": id_, "image": f"{id_}.png", "question": question, "ground_truth": "Yes", "metadata": about}


def mixed(folder: Path) -> Path:
    rows = [*verdict_rows(folder, 4), choice_row(folder), pair_row(folder), edit_row(folder)]
    rows.append({**rows[0], "id": "open", "kind": "open", "ground_truth": "Because."})
    return write_benchmark(folder, rows)


def test_the_share_that_is_right_is_the_headline_of_the_summary(tmp_path: Path) -> None:
    """Whatever is answered: here "Fake" everywhere, which reads as an answer to some of the questions."""
    asked = asked_items(str(mixed(tmp_path)))
    results = [asked.judged(document["id"], "Fake") for document in asked.documents()]
    assert [result.id for result in results] == ["item0", "item1", "item2", "item3", "choice", "pair"]
    edit = asked_items(str(write_benchmark(tmp_path, [edit_row(tmp_path)], "edits.json"))).judged("edit", "Yes")
    ours = summarise([*results, edit])["generate"]
    assert sum(result.correct for result in results) / len(results) == pytest.approx(ours["accuracy"], abs=1e-6)
    assert 0 < ours["accuracy"] < 1
    assert sum(result.parsed is None for result in results) == ours["unparsed"] > 0


def test_what_is_not_asked_is_said(tmp_path: Path) -> None:
    assert asked_items(str(mixed(tmp_path))).left_out == (
        "benchmark.json: without 1 open questions, 1 questions about edits"
    )
    rows = [*verdict_rows(tmp_path, 2), {"id": "bad"}]
    asked = asked_items(str(write_benchmark(tmp_path, rows, "bad.json")), skip_bad=True)
    assert asked.left_out == "bad.json: without 1 bad items"
    assert asked_items(str(write_benchmark(tmp_path, rows[:2], "good.json"))).left_out == ""


def test_edits_are_asked_where_nothing_else_is(tmp_path: Path) -> None:
    asked = asked_items(str(write_benchmark(tmp_path, [edit_row(tmp_path, "one"), edit_row(tmp_path, "two")])))
    assert [document["id"] for document in asked.documents()] == ["one", "two"]
    assert asked.left_out == ""


def test_a_benchmark_of_open_questions_is_refused(tmp_path: Path) -> None:
    row = {**verdict_rows(tmp_path, 1)[0], "kind": "open", "ground_truth": "Because."}
    with pytest.raises(UserError, match="all 1 questions are open"):
        asked_items(str(write_benchmark(tmp_path, [row])))


def test_what_is_shown_and_asked(tmp_path: Path) -> None:
    asked = asked_items(str(mixed(tmp_path)))
    documents = {document["id"]: document for document in asked.documents()}
    assert documents["choice"]["question"].startswith("Is it real, and why?\nA: The image is real")
    assert documents["choice"] | {"question": ""} == {
        "id": "choice",
        "kind": "multiple_choice",
        "question": "",
        "ground_truth": "C",
    }
    assert asked.picture("choice").size == (20, 8)
    assert asked.picture("pair").size == (30 + 8 + 5, 10)  # side by side, at the height of the left one
    assert asked.judged("choice", " (c)\n").correct


def test_a_dataset_folder_is_asked_by_split(tmp_path: Path) -> None:
    folder = save_toy_pairs(tmp_path / "pairs")
    asked = asked_items(str(folder), split="validation")
    assert len(asked.documents()) == 2 * 4  # photos and twins
    documents = {document["id"]: document for document in asked.documents()}
    ours = {item.id: item for item in load_benchmark(folder, split="validation").items}
    assert {id_: document["ground_truth"] for id_, document in documents.items()} == {
        id_: item.ground_truth for id_, item in ours.items()
    }
    shown = {asked.picture(id_).tobytes() for id_ in documents}
    assert len(shown) == len({item.images for item in ours.values()})
    assert all(asked.judged(id_, document["ground_truth"]).correct for id_, document in documents.items())
