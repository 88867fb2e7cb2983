"""What lmms-eval asks, answered by the engine: as asked one by one, and an item that cannot be read costs no other."""

from __future__ import annotations

import tomllib
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from PIL import Image

from tests.factories import tiny_vlm
from tests.python_files import ROOT
from vlm_detect.benchmark.lmms_manifest import manifest
from vlm_detect.benchmark.lmms_requests import DEFAULT_TOKENS, Decoding, Request, generate
from vlm_detect.errors import UserError
from vlm_detect.infer.engine import Engine

QUESTIONS = ["Is this image AI-generated?", "What?", "Why is that so, and where?"]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(tiny_vlm(text_config={"max_position_embeddings": 96}))


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    rng = np.random.default_rng(1)
    photos = [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in [(16, 16), (40, 30)]]
    shown = [photos[0], photos[1], photos[0]]  # two questions about one image
    return [Request(f"task, document {i}", image, QUESTIONS[i]) for i, image in enumerate(shown)]


@pytest.mark.parametrize(
    ("given", "decoding", "unknown"),
    [
        ({}, Decoding(DEFAULT_TOKENS), []),
        ({"max_new_tokens": 16, "until": [], "do_sample": False, "temperature": 0}, Decoding(16), []),
        (
            {"max_gen_toks": 8, "until": "\n", "temperature": 0.7},
            Decoding(8, ("\n",), (("do_sample", True), ("temperature", 0.7))),
            [],
        ),
        (
            {"max_new_tokens": 8, "until": ["", "x"], "do_sample": True, "top_p": 0.9},
            Decoding(8, ("x",), (("do_sample", True), ("top_p", 0.9))),
            [],
        ),
        ({"max_new_tokens": 8, "do_sample": True, "temperature": 0, "top_p": None}, Decoding(8), []),
        ({"max_new_tokens": 8, "do_sample": False, "temperature": 0.7, "num_beams": 1}, Decoding(8), []),
        ({"max_new_tokens": 8, "num_beams": 3, "seed": 1}, Decoding(8, options=(("num_beams", 3),)), ["seed"]),
    ],
)
def test_how_a_task_wants_text(given: dict, decoding: Decoding, unknown: list[str]) -> None:
    assert Decoding.read(given) == (decoding, unknown)


def test_text_is_cut_before_the_first_end() -> None:
    assert Decoding(8, ("\n\n", "Q:")).cut("Yes.\nQ: No\n\nNo") == "Yes.\n"
    assert Decoding(8).cut("Yes.\n\nNo") == "Yes.\n\nNo"


def test_what_a_task_shows() -> None:
    seen = Request.read("task, document 1", [Image.new("L", (4, 4), 7)], "<image>\nIs it real?")
    assert (seen.image.mode, seen.question) == ("RGB", "Is it real?")
    for none in (None, []):
        assert Request.read("task, document 1", none, "Why?") == ("task, document 1", None, "Why?")
    for shown, named in ((["a.mp4"], "1 of str"), ([Image.new("RGB", (4, 4))] * 2, "2 of image")):
        with pytest.raises(UserError, match=f"task, document 1 shows {named}: choose a task with one image at most"):
            Request.read("task, document 1", shown, "Why?")


def test_texts_are_those_of_the_engine(engine: Engine, requests: list[Request]) -> None:
    alone = [engine.generate([one.image], [[one.question]], 6)[0][0] for one in requests]
    assert generate(engine, requests, Decoding(6)) == alone
    assert len(set(alone)) == 3
    end = alone[0][2]
    assert generate(engine, requests[:1], Decoding(6, (end,))) == [alone[0].partition(end)[0]]
    assert (
        generate(engine, requests[:1], Decoding(6, options=(("do_sample", True), ("temperature", 50.0)))) != alone[:1]
    )


def test_a_question_without_room_is_answered_with_nothing(
    engine: Engine, requests: list[Request], capsys: pytest.CaptureFixture[str]
) -> None:
    """One that leaves room for fewer tokens than are wanted gets those, and changes no answer next to it."""
    long = requests[0]._replace(name="task, document 3", question="x" * 96)
    left = requests[0]._replace(question="x" * (engine.vlm.context - len(engine.vlm.prefix_ids()) - 7))
    texts = generate(engine, [long, left, *requests], Decoding(6))
    assert [texts[0], *texts[2:]] == ["", *generate(engine, requests, Decoding(6))]
    room = engine.room(engine.vlm.question_ids(left.question))
    assert 0 < room < 6
    assert texts[1] == engine.generate([left.image], [[left.question]], room)[0][0]
    assert capsys.readouterr().err == (
        f"task, document 3: the question leaves no room in the context of {engine.vlm.context} tokens; its answer is "
        "empty\n"
    )


def test_the_entry_point_names_the_manifest() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ((name, value),) = project["entry-points"]["lmms_eval.models"].items()
    assert EntryPoint(name, value, "lmms_eval.models").load() is manifest
