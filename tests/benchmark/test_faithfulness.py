"""Places that matter to a made-up model, and places that do not: hidden, pasted over, pointed at, judged."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from tests.benchmark.explained import asked_for_reasons, explained, open_items, write_reasoned, write_split
from tests.benchmark.fakes import FakeEngine
from vlm_detect.benchmark import faithfulness, judged
from vlm_detect.benchmark.benchmark import Benchmark
from vlm_detect.benchmark.checked import Checked
from vlm_detect.benchmark.faithfulness import Probe, faithfulness_figures, probes, random_boxes
from vlm_detect.benchmark.hits import hit_figures, iou, planted, strongest_ninth
from vlm_detect.benchmark.judged import judged_figures, judged_statements
from vlm_detect.benchmark.stored_answers import StoredAnswers
from vlm_detect.columns import PAIR_FEATURES
from vlm_detect.infer.endpoint import Prompt, Reply
from vlm_detect.places import PLACES, box_of
from vlm_detect.records import Item

SIDE = 30
PLANTED = ("upper left", "centre", "lower right", "top")


def cell(pixels: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture(scope="module")
def edits(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    """Eight grey photos; each edit is a white ninth, except for a pixel at its border."""
    rows = []
    for i in range(8):
        photo = np.full((SIDE, SIDE, 3), 100 + i, np.uint8)
        x0, y0, x1, y1 = box_of(PLANTED[i % 4], (SIDE, SIDE))
        box = [x0 + 1, y0 + 1, x1 - 1, y1 - 1]
        twin = photo.copy()
        twin[box[1] : box[3], box[0] : box[2]] = 255
        edit = {"of": "photo", "operation": "blur", "box": box, "strength": 0.5, "donor": None, "attempt": 0}
        facts = {"pair_id": f"p{i}", "group": f"g{i}", "image_label": "real", "kind": "edit", "generator": ""}
        images = {"image": cell(photo), "twin": cell(twin), "edit": edit}
        rows.append({**dict.fromkeys(PAIR_FEATURES), **facts, **images})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        folder = write_split(tmp_path_factory.mktemp("edits"), Dataset.from_list(rows, features=PAIR_FEATURES))
        return asked_for_reasons(folder)


def right_place(item: Item) -> str:
    return f"Altered. Blur at the {item.metadata['edit']['place']}."


def wrong_place(item: Item) -> str:
    return "Altered. Blur at the lower left."


def checked(benchmark: Benchmark, say: Any) -> list[Checked]:
    return [row.checked for row in explained(benchmark, say) if row.checked]


def white_means_altered(image: Image.Image, question: str, candidates: Sequence[str]) -> list[float]:
    odds = 20 * float((np.asarray(image) == 255).mean())
    return [odds, 0.0] if "free of" not in question else [0.0, odds]


def asked(benchmark: Benchmark, say: Any, out: Path) -> tuple[dict[str, Any], FakeEngine]:
    assert benchmark.dataset is not None
    engine = FakeEngine(white_means_altered)
    wanted = probes(checked(benchmark, say), most=100)
    ask = faithfulness.asker(engine, benchmark.dataset)
    found = faithfulness_figures(
        wanted, StoredAnswers(out / "f.jsonl").all(wanted, ask, batch=3, about=""), resamples=50
    )
    assert found is not None
    return found, engine


def test_hiding_the_relevant_place_costs_more_than_hiding_another(edits: Benchmark, tmp_path: Path) -> None:
    found, engine = asked(edits, right_place, tmp_path)
    assert engine.images_seen == 8 * 9  # itself, four boxes hidden, four pasted over
    for side in found.values():
        assert (side["n"], side["share"]) == (8, 1)
        assert side["nats"] > side["nats_random"] + 1
    assert set(found) == {"hiding", "pasting"}


def test_hiding_an_irrelevant_place_costs_less(edits: Benchmark, tmp_path: Path) -> None:
    found, _ = asked(edits, wrong_place, tmp_path)
    for side in found.values():
        assert side["share"] <= 0.5
        assert side["nats"] == pytest.approx(0, abs=1e-9)


def test_generated_images_without_a_pair_are_only_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    benchmark = asked_for_reasons(write_reasoned(tmp_path / "set"), 4)
    found, _ = asked(benchmark, lambda item: "Real. The sky at the top is blue.", tmp_path)
    assert set(found) == {"hiding"}
    assert found["hiding"]["share"] == 0.5  # nothing is white: no box moves this model


def test_without_a_named_place_there_is_no_figure(edits: Benchmark) -> None:
    assert probes(checked(edits, lambda item: "Altered. Somewhere."), most=9) == []
    assert faithfulness_figures([], []) is None
    assert len(probes(checked(edits, right_place), most=3)) == 3


def test_random_boxes_have_the_same_size_elsewhere() -> None:
    rng = random.Random(0)
    for place in PLACES:
        box = box_of(place, (31, 20))
        for other in random_boxes(box, (31, 20), rng, n=20):
            assert (other[2] - other[0], other[3] - other[1]) == (box[2] - box[0], box[3] - box[1])
            assert 0 <= other[0] < other[2] <= 31
            assert 0 <= other[1] < other[3] <= 20
            assert iou(box, other) == 0
    # As large as the image: there is no other place.
    assert random_boxes((0, 0, 9, 9), (9, 9), rng) == ((0, 0, 9, 9),) * 3


def test_answered_questions_are_not_asked_again(tmp_path: Path) -> None:
    item = Item("a", "open", ("a",), "", "")
    wanted = [Probe(item, (0, 0, i, i), ()) for i in range(1, 6)]
    seen: list[Probe] = []

    def ask(some: Sequence[Probe]) -> list[dict[str, Any]]:
        seen.extend(some)
        if len(seen) > 4:
            raise KeyboardInterrupt
        return [{"side": one.box[2]} for one in some]

    path = tmp_path / "kept.jsonl"
    with pytest.raises(KeyboardInterrupt):
        StoredAnswers(path).all(wanted, ask, batch=2, about="")
    path.write_text(path.read_text() + '{"key": "cut o')
    again: list[Probe] = []

    def ask_again(some: Sequence[Probe]) -> list[dict[str, Any]]:
        again.extend(some)
        return [{"side": one.box[2]} for one in some]

    records = StoredAnswers(path).all(wanted, ask_again, batch=2, about="")
    assert again == wanted[4:]
    assert [one["side"] for one in records] == [1, 2, 3, 4, 5]
    whole = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    assert [line["found"]["side"] for line in whole] == [1, 2, 3, 4, 5]


def test_hits_by_hand(edits: Benchmark) -> None:
    rows = planted(checked(edits, right_place))
    assert len(rows) == 8
    places = [row.item.metadata["edit"]["place"] for row in rows]
    found = hit_figures(rows, [*places[:4], None, None, None, None], resamples=50)
    assert found is not None
    assert found["named"]["hit"]["share"] == 1
    assert found["named"]["iou"]["share"] == pytest.approx(64 / 100)  # 8x8 in a ninth of 10x10
    assert (found["evidence_map"]["hit"]["n"], found["evidence_map"]["hit"]["share"]) == (4, 1)
    assert found["chance"]["hit"]["share"] == pytest.approx(1 / 9)
    assert found["chance"]["iou"]["share"] == pytest.approx(0.64 / 9)
    for say in (wrong_place, lambda item: "Altered. At the top. At the left.", lambda item: "Altered."):
        missed = hit_figures(planted(checked(edits, say)), [None] * 8, resamples=50)
        assert missed is not None
        assert missed["named"]["hit"]["share"] == missed["named"]["iou"]["share"] == 0
        assert "evidence_map" not in missed
    assert hit_figures([], []) is None


def test_the_strongest_ninth_of_a_map() -> None:
    for i, place in enumerate(PLACES):
        values = np.zeros((14, 11))
        values[14 * (i // 3) // 3 + 2, 11 * (i % 3) // 3 + 2] = 1
        assert strongest_ninth(values) == place


class FakeJudge:
    """Says yes of images with as many white pixels as the statement's number says."""

    def __init__(self, *, gives_logprobs: bool) -> None:
        self.gives_logprobs = gives_logprobs
        self.questions: list[str] = []

    def _is_so(self, image: Image.Image, question: str) -> bool:
        self.questions.append(question)
        return f"is {np.asarray(image)[15, 29, 0]} " in question

    def log_odds(self, questions: Sequence[tuple[Image.Image, str]], candidates: tuple[str, str]) -> list[float | None]:
        return [1.0 if self._is_so(image, question) else -1.0 for image, question in questions]

    def answer(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[Reply]:
        return [Reply("Yes." if self._is_so(prompt.images[0], prompt.text) else "No.") for prompt in prompts]


@pytest.mark.parametrize("gives_logprobs", [True, False])
def test_a_judge_distinguishes_specific_sentences_from_generic_ones(edits: Benchmark, gives_logprobs: bool) -> None:
    """Own brightness named: always its own; another's, or nothing: neither."""
    assert edits.dataset is not None
    images = edits.dataset

    def own(item: Item) -> str:
        return f"Altered. The brightness is {np.asarray(images.image(item.images[0]))[15, 29, 0]} at the top."

    for say, share in ((own, 1), (lambda item: "Altered. The brightness is 7 today.", 0.5)):
        wanted = judged_statements(checked(edits, say))
        assert len(wanted) == len(open_items(edits))
        assert all(one.item.group != one.other.group for one in wanted)
        judge = FakeJudge(gives_logprobs=gives_logprobs)
        found = judged_figures(wanted, judged.asker(judge, images)(wanted), resamples=50)
        assert found is not None
        assert (found["n"], found["share"]) == (8, share)
        assert not any("ltered" in question for question in judge.questions)
    assert judge.questions[0].startswith("Is this true of the image?")
    assert judged_figures([], []) is None
