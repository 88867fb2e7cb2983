"""The caption rules: they say what the pixels say, and they never say what would give a twin away."""

from random import Random

import numpy as np
import pytest

from vlm_detect.nano.captions import (
    COLOURS,
    LENGTHS,
    NOUNS,
    UNDECIDABLE,
    caption,
    colour_names,
    factual_question,
    named_class,
    read_facts,
    sample_texts,
    undecidable_question,
)


def painted(background: tuple[int, int, int], middle: tuple[int, int, int]) -> np.ndarray:
    image = np.full((32, 32, 3), background, np.uint8)
    image[8:24, 8:24] = middle
    return image


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((10, 10, 10), "black"),
        ((128, 128, 128), "grey"),
        ((250, 250, 250), "white"),
        ((220, 20, 20), "red"),
        ((250, 140, 20), "orange"),
        ((110, 80, 40), "brown"),
        ((240, 230, 40), "yellow"),
        ((40, 160, 50), "green"),
        ((40, 90, 220), "blue"),
        ((130, 40, 200), "purple"),
        ((240, 90, 200), "pink"),
    ],
)
def test_colours_have_the_names_people_give_them(rgb: tuple[int, int, int], name: str) -> None:
    assert COLOURS[int(colour_names(np.array(rgb, np.float32) / 255))] == name


def test_facts_of_a_painted_image() -> None:
    facts = read_facts(painted((40, 90, 220), (220, 20, 20)), "ship")
    assert (facts.colour, facts.background, facts.commonest) == ("red", "blue", "blue")
    assert (facts.texture, facts.kind) == ("plain", "vehicle")
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert read_facts(noise, "cat").texture == "busy"


def test_captions_are_seeded_and_name_the_class() -> None:
    facts = read_facts(painted((240, 240, 240), (110, 80, 40)), "automobile")
    for length in LENGTHS:
        texts = [caption(facts, length, Random(seed)) for seed in range(40)]
        assert texts == [caption(facts, length, Random(seed)) for seed in range(40)]
        assert len(set(texts)) > 2
        assert all(named_class(text) == "automobile" for text in texts)


def test_yes_and_no_are_asked_for_alike() -> None:
    rng = Random(0)
    facts = [read_facts(painted((40, 160, 50), (110, 80, 40)), name) for name in NOUNS]
    answers = [factual_question(fact, rng)[1] for fact in facts * 200]
    assert 0.4 < answers.count("Yes.") / (answers.count("Yes.") + answers.count("No.")) < 0.6
    assert [answer for _, answer in undecidable_question(rng)] == ["Yes.", "No."]


def test_captions_describe_content_only() -> None:
    rng = Random(0)
    facts = [read_facts(painted((40, 160, 50), (110, 80, 40)), name) for name in NOUNS]
    words = set(" ".join(caption(fact, length, rng) for fact in facts * 20 for length in LENGTHS).lower().split())
    assert not words & {"photo", "photograph", "image", "camera", "real", "blurry", "sharp", "quality", "render"}
    questions = {question for question, _ in (factual_question(fact, rng) for fact in facts * 50)}
    assert not questions & set(UNDECIDABLE)
    assert len(sample_texts(facts, rng)) == 9 * len(facts)
