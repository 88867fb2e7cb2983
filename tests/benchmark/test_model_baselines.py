from functools import partial
from pathlib import Path

import pytest

from tests.benchmark.fakes import FakeAsk, FakeEngine, choice_row, verdict_rows, write_benchmark, write_image
from vlm_detect.benchmark.items import load_benchmark
from vlm_detect.benchmark.model_baselines import GREY, model_baselines
from vlm_detect.benchmark.respondents import Respondent
from vlm_detect.benchmark.run import needed_keys
from vlm_detect.benchmark.score import score
from vlm_detect.questions.ask import EDIT_QUESTION


def edit_rows(folder: Path) -> list[dict]:
    rows = []
    for i, (label, colour, answer) in enumerate([("edited", "red", "Yes."), ("real", "blue", "No.")]):
        write_image(folder / f"edit{i}.png", colour, (50 + i, 8))
        facts = {"label": label, "asked": "edited", "generator": "blur" if label == "edited" else "real"}
        row = {"id": f"edit{i}", "kind": "true_false", "image": f"edit{i}.png", "question": EDIT_QUESTION}
        rows.append(row | {"ground_truth": answer, "metadata": facts})
    return rows


def test_blind_baselines_of_each_kind_edits_included(tmp_path: Path) -> None:
    """A model that sees the colour: blank images tell it nothing, another's image now and then the wrong thing."""
    seen: list[tuple[int, int]] = []

    def rule(image, question, candidates):
        seen.append(image.size)
        red, _, blue = image.getpixel((0, 0))
        if len(candidates) != 2 or red == blue:
            return [0.0] * len(candidates)
        affirms = "altered" in question or "artificially generated or" in question
        first = (red > blue) == affirms
        return [0.0, -5.0] if first else [-5.0, 0.0]

    rows = [*verdict_rows(tmp_path, 4), choice_row(tmp_path), *edit_rows(tmp_path)]
    benchmark = load_benchmark(write_benchmark(tmp_path, rows))
    answer = partial(score, engine=FakeEngine(rule), ask=FakeAsk, generate=False)
    respondent = Respondent(lambda: answer, {}, generate=False)
    counts: list[int] = []
    floors = model_baselines(benchmark, answer, count=counts.append)
    assert sum(counts) == 2 * len(needed_keys(benchmark, respondent)) > 0
    assert set(floors) == {"all", "true_false", "multiple_choice", "edit_true_false"}
    assert all(set(row) == {"blank_image", "other_image"} for row in floors.values())
    assert floors["true_false"]["blank_image"] == floors["edit_true_false"]["blank_image"] == 0.5
    assert floors["multiple_choice"]["blank_image"] == 0.25
    assert floors["true_false"]["other_image"] < 1


def test_another_items_image_is_of_another_group(tmp_path: Path) -> None:
    """Six questions about one image and one about another: the six are shown the other, whatever the order."""
    shown: dict[str, set[tuple[int, int]]] = {}

    def rule(image, question, candidates):
        shown.setdefault(question[-3:], set()).add(image.size)
        return [0.0] * len(candidates)

    first, second = verdict_rows(tmp_path, 2)
    rows = [{**first, "id": f"a{i}", "question": f"{first['question']} (a)"} for i in range(6)]
    rows.append({**second, "question": f"{second['question']} (b)"})
    benchmark = load_benchmark(write_benchmark(tmp_path, rows))
    model_baselines(benchmark, partial(score, engine=FakeEngine(rule), ask=FakeAsk, generate=False))
    assert shown == {"(a)": {(256, 256), (9, 8)}, "(b)": {(256, 256), (8, 8)}}


@pytest.mark.parametrize("seed", range(3))
def test_questions_on_pairs_are_shown_pairs(tmp_path: Path, seed: int) -> None:
    rows = verdict_rows(tmp_path, 4)
    question = {"question": "Which is AI-generated?", "kind": "which_of_two", "options": ["Left.", "Right."]}
    pairs = [("0.png", "1.png", "B"), ("3.png", "2.png", "A")]
    rows += [
        {"id": f"pair{i}", "images": [a, b], "ground_truth": right, **question} for i, (a, b, right) in enumerate(pairs)
    ]
    sizes: set[int] = set()

    def rule(image, question, candidates):
        if "Which" in question and image.getpixel((0, 0)) != GREY:
            sizes.add(image.width)
        return [0.0] * len(candidates)

    benchmark = load_benchmark(write_benchmark(tmp_path, rows))
    model_baselines(benchmark, partial(score, engine=FakeEngine(rule), ask=FakeAsk, generate=False), seed=seed)
    assert sizes == {8 + 9 + 8, 11 + 10 + 8}  # widths and the gap
