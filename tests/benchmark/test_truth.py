"""Explanations that are known to be true, false, another image's, or the same of all: what the figures say of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.benchmark.explained import asked_for_reasons, explained, open_items, write_reasoned
from vlm_detect.benchmark.benchmark import Benchmark
from vlm_detect.benchmark.checked import OTHERS, others_of
from vlm_detect.benchmark.explanations import explanations
from vlm_detect.measures.claims import check_claim, read_claim
from vlm_detect.measures.registry import MEASURES
from vlm_detect.measures.wording import write_sentence
from vlm_detect.questions.kinds.explain import NOTHING_STANDS_OUT
from vlm_detect.records import Item


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        return asked_for_reasons(write_reasoned(tmp_path_factory.mktemp("set")))


def figures(benchmark: Benchmark, say: Callable[[Item], str]) -> dict[str, Any]:
    found = explanations(explained(benchmark, say), resamples=100)
    assert found is not None
    return found


def measured(benchmark: Benchmark, say: Callable[[Item], str]) -> dict[str, Any]:
    return figures(benchmark, say)["measured"]


def test_measured_reasons_are_true_and_specific(benchmark: Benchmark) -> None:
    found = measured(benchmark, lambda item: item.ground_truth)
    assert found["truth"]["share"] == 1
    assert found["truth"]["n"] == round(found["n"] * found["claims_an_image"]["share"])
    assert found["specificity"]["share"] > 0.7
    assert found["specificity"]["ci95"][0] > 0.6
    assert found["truth_above_another_image"]["ci95"][0] > 0.1
    assert found["false_faults_on_photos"]["share"] == found["unchecked_sentences"]["share"] == 0
    assert 0 < found["recall"]["share"] <= 1
    assert set(found["by_label"]) == {"real", "generated"}
    parts = found["by_label"].values()
    assert sum(part["truth"]["n"] for part in parts) == found["truth"]["n"]


def test_another_images_explanation_is_no_better_than_the_blind_baseline(benchmark: Benchmark) -> None:
    texts: dict[str, list[str]] = {}
    for item in open_items(benchmark):
        texts.setdefault(item.metadata["label"], []).append(item.ground_truth)
    for some in texts.values():
        random.Random(0).shuffle(some)
    found = measured(benchmark, lambda item: texts[item.metadata["label"]].pop())
    low, high = found["truth_above_another_image"]["ci95"]
    assert low < 0 < high
    low, high = found["specificity"]["ci95"]
    assert low < 0.5 < high


def test_a_text_that_fits_every_image_is_not_specific(benchmark: Benchmark) -> None:
    """It is as true of its own image as of another, and no truer than the best constant."""
    assert benchmark.dataset is not None
    calibration = benchmark.dataset.calibration
    assert calibration is not None
    name = calibration.informative[0]
    direction = calibration.scales[name].generated
    sentence = write_sentence(MEASURES[name], direction, 0.75, random.Random(0))
    found = measured(benchmark, lambda item: f"AI-generated. {sentence}")
    assert found["specificity"]["share"] == pytest.approx(0.5, abs=0.03)
    assert found["truth_of_another_image"]["share"] == pytest.approx(found["truth"]["share"], abs=0.05)
    for part in found["by_label"].values():
        assert part["truth_of_constant"]["share"] > 0
    generated = found["by_label"]["generated"]
    assert generated["truth"]["share"] <= generated["truth_of_constant"]["share"] + 0.1
    # Of photos it is mostly false, and then a fault that they do not have.
    photos = found["by_label"]["real"]
    assert found["false_faults_on_photos"]["share"] == pytest.approx(1 - photos["truth"]["share"])


def test_a_text_without_claims_is_neither_true_nor_specific(benchmark: Benchmark) -> None:
    found = measured(benchmark, lambda item: "Real. The sky is a wonderful blue.")
    assert found["truth"] is None
    assert found["truth_above_another_image"] is None
    assert found["specificity"]["share"] == 0.5
    assert found["claims_an_image"]["share"] == found["recall"]["share"] == 0
    assert found["unchecked_sentences"]["share"] == 1
    found = measured(benchmark, lambda item: f"Real. {NOTHING_STANDS_OUT}")
    assert found["says_ordinary"]["share"] == 1
    assert found["unchecked_sentences"] is None


def test_a_claim_for_the_other_label_contradicts_the_verdict(benchmark: Benchmark) -> None:
    fine = figures(benchmark, lambda item: item.ground_truth)
    assert fine["contradictions"]["share"] == 0
    swapped = {"Real.": "AI-generated.", "AI-generated.": "Real."}

    def other_verdict(item: Item) -> str:
        verdict, _, reasons = item.ground_truth.partition(" ")
        return f"{swapped[verdict]} {reasons}"

    found = figures(benchmark, other_verdict)
    with_reasons = [item for item in open_items(benchmark) if NOTHING_STANDS_OUT not in item.ground_truth]
    assert found["contradictions"]["share"] == len(with_reasons) / 80


def test_an_unchecked_fault_claimed_on_a_photo_is_false(benchmark: Benchmark) -> None:
    found = measured(benchmark, lambda item: "AI-generated. The hands are deformed.")
    assert found["false_faults_on_photos"]["share"] == 1


def test_repeated_claims_are_counted_as_written(benchmark: Benchmark) -> None:
    """Truth by hand: every sentence against its own image, none by the functions under test."""
    (item,) = [one for one in open_items(benchmark) if len(one.ground_truth) > 80][:1]
    (row,) = explained(benchmark, lambda one: one.ground_truth, [item])
    assert row.checked is not None
    assert benchmark.dataset is not None
    calibration = benchmark.dataset.calibration
    assert calibration is not None
    numbers = benchmark.dataset.measured(item.images[0], calibration)
    for reason, line in zip(row.checked.reasons, row.to_json()["reasons"], strict=True):
        claim = read_claim(reason.text)
        assert claim is not None
        assert check_claim(claim, numbers, calibration).status == line["status"] == "confirmed"
        assert (line["measure"], line["text"]) == (claim.measure, reason.text)


def test_the_other_images_have_the_same_label_and_other_photos(benchmark: Benchmark) -> None:
    rows = [row.checked for row in explained(benchmark, lambda item: "Real.") if row.checked]
    assert len(rows) == 80
    for row, others in zip(rows, others_of(rows), strict=True):
        assert len(others) == OTHERS
        assert len({other.item.id for other in others}) == OTHERS
        assert {other.label for other in others} == {row.label}
        assert row.item.group not in {other.item.group for other in others}
