"""Which images `--explanations N` asks about."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.benchmark.explained import asked_for_reasons, open_items, write_edited, write_reasoned
from tests.benchmark.fakes import verdict_rows, write_benchmark
from vlm_detect.benchmark.explained_items import with_explanations
from vlm_detect.benchmark.items import load_benchmark
from vlm_detect.benchmark.score import plan
from vlm_detect.errors import UserError
from vlm_detect.places import place_of
from vlm_detect.questions.ask import EDIT_EXPLAIN_QUESTION, EXPLAIN_QUESTION


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_both_labels_have_equally_many_items_that_come_first(tmp_path: Path) -> None:
    benchmark = asked_for_reasons(write_reasoned(tmp_path / "set"), 10)
    items = open_items(benchmark)
    assert Counter(item.metadata["label"] for item in items) == {"real": 5, "generated": 5}
    assert {item.question for item in items} == {EXPLAIN_QUESTION}
    assert len({item.images for item in items}) == 10
    assert len(benchmark.items) == 90
    # All prompts about an image are asked together, those with an explanation in the first batches.
    asked = plan(benchmark, generate=False, explain=True)
    assert [sum(how == "generate" for _, how in image) for image in asked] == [1] * 10 + [0] * 70


def test_a_larger_number_extends_the_same_items(tmp_path: Path) -> None:
    folder = write_reasoned(tmp_path / "set")
    few, many = ({item.id for item in open_items(asked_for_reasons(folder, n))} for n in (7, 20))
    assert few < many
    other = {item.id for item in open_items(with_explanations(load_benchmark(folder), 7, seed=1))}
    assert other != few


def test_the_reference_is_the_measured_reasons(tmp_path: Path) -> None:
    benchmark = asked_for_reasons(write_reasoned(tmp_path / "set"))
    assert benchmark.dataset is not None
    for item in open_items(benchmark):
        subject = benchmark.dataset.subject(item.images[0])
        assert all(reason.text in item.ground_truth for reason in (subject.reasons or ())[:2])


def test_edits_have_items_with_boxes_but_their_sources_have_none(tmp_path: Path) -> None:
    benchmark = asked_for_reasons(write_edited(tmp_path / "edits"))
    items = open_items(benchmark)
    assert {item.question for item in items} == {EDIT_EXPLAIN_QUESTION}
    assert {item.images[0].partition(":")[2] for item in items} == {"twin"}
    assert len(items) == 12
    for item in items:
        edit = item.metadata["edit"]
        assert place_of(edit["box"], (48, 48)) == edit["place"]
    assert benchmark.dataset is not None
    assert benchmark.dataset.photo_of("3:twin") == "3:image"
    assert benchmark.dataset.photo_of("3:image") is None


def test_a_file_of_items_has_no_images_to_explain(tmp_path: Path) -> None:
    benchmark = load_benchmark(write_benchmark(tmp_path, verdict_rows(tmp_path, 4)))
    with pytest.raises(UserError, match="dataset folder"):
        with_explanations(benchmark, 2)
