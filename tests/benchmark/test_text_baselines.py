import os
from pathlib import Path

import numpy as np
import pytest

from vlm_detect.benchmark.items import load_benchmark
from vlm_detect.benchmark.text_baselines import text_baselines
from vlm_detect.questions.ask import FAKE_QUESTION, REAL_QUESTION
from vlm_detect.records import Item


def choice(i: int, options: tuple[str, ...], truth: str) -> Item:
    return Item(f"i{i}", "multiple_choice", (f"{i}.png",), "Which?", truth, options)


def test_length_and_letter_by_hand() -> None:
    items = [choice(0, ("aa", "a", "a", "a"), "A"), choice(1, ("bb", "bb", "b", "b"), "B"), choice(2, ("c", "cc"), "A")]
    floors = text_baselines(items)
    assert floors["longest"] == pytest.approx((1 + 1 / 2 + 0) / 3, abs=1e-6)  # a tie shares the point
    assert floors["shortest"] == pytest.approx((0 + 0 + 1) / 3, abs=1e-6)
    assert floors["commonest_letter"] == pytest.approx(2 / 3, abs=1e-6)
    assert floors["chance"] == pytest.approx((1 / 4 + 1 / 4 + 1 / 2) / 3, abs=1e-6)


def test_words_that_leak_the_answer_are_found() -> None:
    rng = np.random.default_rng(0)
    items = []
    for i in range(80):
        truth = int(rng.integers(4))
        options = tuple(f"it has {'six fingers' if place == truth else 'a hat'} number {place}" for place in range(4))
        items.append(choice(i, options, "ABCD"[truth]))
    assert text_baselines(items)["bag_of_words"] > 0.95


def test_fair_options_leak_nothing() -> None:
    rng = np.random.default_rng(0)
    items = []
    for i in range(400):
        options = tuple(rng.permutation(["grain", "blur", "hand", "text"]).tolist())
        items.append(choice(i, options, "ABCD"[i % 4]))
    floors = text_baselines(items)
    assert abs(floors["bag_of_words"] - 0.25) < 0.08
    assert floors["commonest_letter"] == 0.25


def test_one_photo_has_no_words_to_learn_from() -> None:
    items = [Item(f"{i}", "true_false", ("a.png",), FAKE_QUESTION, "Yes.") for i in range(2)]
    assert text_baselines(items) == {"chance": 0.5, "commonest_answer": 1.0}
    assert text_baselines([]) == {}


def test_two_way_questions() -> None:
    # The question gives the answer: the words see it, the commonest answer does not.
    items = [
        Item(f"{i}", "true_false", (f"{i}.png",), FAKE_QUESTION if i % 2 else REAL_QUESTION, "Yes." if i % 2 else "No.")
        for i in range(40)
    ]
    floors = text_baselines(items)
    assert floors["commonest_answer"] == 0.5
    assert floors["bag_of_words"] == 1
    assert "longest" not in floors


DATA = Path(os.environ.get("VLM_DETECT_DATA", "")) / "custom_vqa"


@pytest.mark.skipif(
    not os.environ.get("VLM_DETECT_DATA") or not DATA.is_dir(), reason="VLM_DETECT_DATA names no folder with custom_vqa"
)
def test_published_multiple_choice_is_solved_by_length() -> None:
    floors = text_baselines(load_benchmark(DATA / "multiple-choice" / "vqa_multiple_choice_benchmark.json").items)
    assert floors["longest"] == 0.81
    assert floors["commonest_letter"] == 0.3
    assert floors["bag_of_words"] > 0.7
