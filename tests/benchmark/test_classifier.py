from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.benchmark.fakes import choice_row, verdict_rows, write_benchmark, write_image
from vlm_detect.benchmark.benchmark import Benchmark
from vlm_detect.benchmark.classifier import Belief, candidate_probabilities, classify
from vlm_detect.benchmark.items import load_benchmark
from vlm_detect.benchmark.summary import summarise
from vlm_detect.questions.ask import CAMERA, EDIT_QUESTION
from vlm_detect.questions.kind import prompts_of
from vlm_detect.questions.kinds.attribution import ATTRIBUTION_QUESTION
from vlm_detect.questions.kinds.multiple_choice import EDIT_CHOICE_QUESTION
from vlm_detect.questions.kinds.which_of_two import SIDES, WHICH_QUESTION
from vlm_detect.records import Item


@dataclass(frozen=True)
class FoundScores:
    odds: np.ndarray
    heads: dict[str, np.ndarray]


class RedIsGenerated:
    """Suspects red images, and knows which generator makes what shade of it."""

    positive_class = "generated"

    def __init__(self, classes: tuple[str, ...] = ("real", "generated")) -> None:
        self.heads = {"verdict": list(classes)}

    def scores(self, images) -> FoundScores:
        red = np.array([image.getpixel((0, 0))[0] > 100 for image in images])
        n = len(self.heads["verdict"])
        p = np.where(red[:, None], [0.1, *[0.9 / (n - 1)] * (n - 1)], [0.9, *[0.1 / (n - 1)] * (n - 1)])
        return FoundScores(np.where(red, 2.0, -2.0), {"verdict": p})


def answers(benchmark: Benchmark, **options) -> list:
    return [result for batch in classify(benchmark, RedIsGenerated(), **options) for result in batch]


def test_verdicts_and_multiple_choice(tmp_path: Path) -> None:
    rows = [*verdict_rows(tmp_path), choice_row(tmp_path)]
    results = answers(load_benchmark(write_benchmark(tmp_path, rows)))
    assert {result.scoring for result in results} == {"logprob"}
    summary = summarise(results, resamples=20)
    assert summary["by_kind"]["true_false"]["accuracy"] == summary["auroc"] == 1
    # The class is right; of its two reasons each gets half the point, whatever the letters.
    choice = summary["by_kind"]["multiple_choice"]
    assert choice["accuracy"] == 0.5
    assert choice["choice_verdict_accuracy"] == 1
    assert choice["right_verdict_wrong_reason"] == 0.5


def test_which_of_two_judges_each(tmp_path: Path) -> None:
    write_image(tmp_path / "real.png", "blue")
    write_image(tmp_path / "fake.png", "red")
    row = {
        "id": "w",
        "kind": "which_of_two",
        "images": ["real.png", "fake.png"],
        "question": WHICH_QUESTION,
        "options": list(SIDES),
        "ground_truth": "B",
    }
    sought = {**row, "id": "s", "ground_truth": "A", "metadata": {"seeks": "real"}}
    results = answers(load_benchmark(write_benchmark(tmp_path, [row, sought])))
    assert len(results) == 4
    assert all(result.correct for result in results)


def prompt(kind: str, question: str, options: tuple[str, ...] = (), truth: str = "A", **metadata):
    return prompts_of(Item("x", kind, ("x.png",), question, truth, options, {"generator": "glide", **metadata}))[0]


def test_attribution_by_the_generators_probabilities() -> None:
    options = ("Big GAN.", CAMERA, "glide.")
    asked = prompt("attribution", ATTRIBUTION_QUESTION, options)
    knows = Belief(0.7, None, {"real": 0.3, "glide": 0.6, "big_gan": 0.1})
    assert candidate_probabilities(asked, knows).tolist() == pytest.approx([0.1, 0.3, 0.6])
    # One that is asked about a generator it never saw, or was taught none, tells the camera from the rest.
    assert candidate_probabilities(asked, Belief(0.7, None, {"real": 0.3, "glide": 0.7})).tolist() == pytest.approx(
        [0.35, 0.3, 0.35]
    )


def test_edits() -> None:
    asked = prompt("true_false", EDIT_QUESTION, truth="Yes.", label="edited")
    assert candidate_probabilities(asked, Belief(0.9, None, {})).tolist() == [0.5, 0.5]  # never taught
    assert candidate_probabilities(asked, Belief(None, 0.8, {})).tolist() == pytest.approx([0.8, 0.2])
    options = ("Blur at the centre.", "Splice at the centre.", "Blur at the upper left.", "Splice at the upper left.")
    where = prompt("multiple_choice", EDIT_CHOICE_QUESTION, options, label="edited")
    assert candidate_probabilities(where, Belief(None, 0.8, {})).tolist() == [0.25] * 4


def test_ties_share_the_point(tmp_path: Path) -> None:
    benchmark = load_benchmark(write_benchmark(tmp_path, verdict_rows(tmp_path, 5)))
    whole = answers(benchmark)
    halves = [*answers(benchmark, shard=slice(0, None, 2)), *answers(benchmark, shard=slice(1, None, 2))]
    assert sorted(r.key for r in halves) == sorted(r.key for r in whole)
    assert answers(benchmark, done={r.key for r in whole}) == []
    red = benchmark.image(benchmark.items[1].images[0])
    stood_in = answers(benchmark, image_of=lambda item: red)
    assert {round(r.p_fake, 3) for r in stood_in} == {0.881}
