"""The engine against the plain path: same scores, same text, in any batch, within bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.factories import tiny_vlm
from vlm_detect.errors import UserError
from vlm_detect.infer.engine import Ask, Engine, until
from vlm_detect.infer.reference import generate_plain, score_plain
from vlm_detect.models.moondream.family import MoondreamVLM

ASKS = [
    [Ask("Is this image AI-generated?", ("Yes.", "No.")), Ask("What is it?", ("a ship", "a big red dog", "x"))],
    [Ask("Real?", ("Yes.", "No.", "Maybe."))],
    [Ask("Is this image AI-generated?", ("Yes.", "No."))],
]
QUESTIONS = [["Is this image AI-generated?", "What?"], ["y"], ["Why is that so, and where?", "zz", "?"]]


@pytest.fixture(scope="module")
def vlm() -> MoondreamVLM:
    return tiny_vlm()


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(1)
    sizes = [(16, 16), (40, 30), (20, 64)]
    return [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("batch_images", [1, 2, 8])
def test_scores_equal_the_plain_path(vlm, images, batch_images, implementation) -> None:
    vlm.model.set_attn_implementation(implementation)
    scores = Engine(vlm, batch_images=batch_images).score(images, ASKS)
    for image, asks, of_image in zip(images, ASKS, scores, strict=True):
        for ask, of_ask in zip(asks, of_image, strict=True):
            for candidate, score in zip(ask.candidates, of_ask, strict=True):
                plain = score_plain(vlm, image, ask.question, candidate)
                assert score.n_tokens == plain.n_tokens == len(candidate) + 1  # one token a byte, and the end
                assert score.logprob == pytest.approx(plain.logprob, abs=1e-5)
    vlm.model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("batch", [1, 2, 64])
@pytest.mark.parametrize("options", [{}, {"num_beams": 1}], ids=["packed", "rows"])
def test_generated_text_equals_the_plain_path(vlm, images, batch, options) -> None:
    engine = Engine(vlm, batch_images=batch, batch_rows=batch)
    answers = engine.generate(images, QUESTIONS, max_new_tokens=10, **options)
    plain = [
        [generate_plain(vlm, image, vlm.question_ids(question), 10) for question in questions]
        for image, questions in zip(images, QUESTIONS, strict=True)
    ]
    assert answers == plain
    assert len({answer for some in plain for answer in some}) > 1, "every answer is the same: nothing was compared"


def test_an_image_without_questions_has_no_answers(vlm, images) -> None:
    assert Engine(vlm).generate(images, [[], ["x"], []], max_new_tokens=3)[::2] == [[], []]
    assert Engine(vlm).generate(images[:1], [[]], max_new_tokens=3) == [[]]


def test_captions_equal_the_plain_path(vlm, images) -> None:
    captions = Engine(vlm).caption(images, "short", max_new_tokens=10)
    assert captions == [generate_plain(vlm, image, vlm.caption_ids("short"), 10) for image in images]


def test_prefixes_are_bounded_in_bytes_and_the_oldest_is_evicted_first(vlm, images) -> None:
    one = Engine(vlm).prefixes(images[:1])[0].nbytes
    engine = Engine(vlm, cache_bytes=2 * one)
    encoded = []
    encode = vlm.encode

    def counting(prepared):
        encoded.append(len(prepared["tilings"]))
        return encode(prepared)

    vlm.encode = counting
    try:
        engine.prefixes(images[:2])
        engine.prefixes(images[:2])  # held: nothing is encoded
        assert encoded == [2]
        engine.prefixes(images[2:])  # the first goes
        assert engine.memory.held_bytes == 2 * one
        engine.prefixes(images[1:])
        assert encoded == [2, 1]
        engine.prefixes(images[:1])
        assert encoded == [2, 1, 1]
    finally:
        vlm.encode = encode


def test_a_repeated_image_is_encoded_once_and_scored_alike(vlm, images) -> None:
    engine = Engine(vlm)
    first, second = engine.score([images[0], images[0].copy()], [ASKS[0], ASKS[0]])
    assert first == second
    assert engine.memory.held_bytes == engine.prefixes(images[:1])[0].nbytes


def test_images_that_differ_only_in_their_palette_are_distinct(vlm) -> None:
    green = Image.new("P", (32, 32))
    green.putpalette([0, 255, 0])
    red = green.copy()
    red.putpalette([255, 0, 0])
    one, other = Engine(vlm).prefixes([green, red])
    assert not torch.equal(one.layers[0][0], other.layers[0][0])


def test_a_question_beyond_the_context_is_refused_with_its_numbers(vlm, images) -> None:
    with pytest.raises(UserError, match="context is 512"):
        Engine(vlm).score(images[:1], [[Ask("x" * 600, ("Yes.",))]])
    with pytest.raises(UserError, match="context is 512"):
        Engine(vlm).generate(images[:1], [["x" * 490]], max_new_tokens=100)


def test_the_stream_of_tokens_spells_the_answers(vlm, images) -> None:
    engine = Engine(vlm)
    prompts = [[vlm.question_ids(question) for question in some] for some in QUESTIONS]
    answers = engine.continue_prompts(images, prompts, 8)
    tokens = [step.tolist() for step in engine.stream(images, prompts, 8)]
    assert len(tokens) == 8
    spelled = [
        [vlm.decode(until([step[i][j] for step in tokens], vlm.eos_token_id)).strip() for j in range(len(some))]
        for i, some in enumerate(prompts)
    ]
    assert spelled == answers


def test_a_beginning_is_scored_without_the_end_of_text(vlm, images) -> None:
    (((whole,), (beginning,)),) = Engine(vlm).score(images[:1], [[Ask("y", ("No.",)), Ask("y", ("No.",), whole=False)]])
    assert beginning.n_tokens == whole.n_tokens - 1
    assert beginning.logprob > whole.logprob


def test_generation_is_limited_by_the_remaining_context(vlm, images) -> None:
    engine = Engine(vlm)
    prompt = vlm.question_ids("x" * 400)
    room = engine.room(prompt)
    engine.continue_prompts(images[:1], [[prompt]], 1)
    assert room == 512 - len(vlm.prefix_ids()) - len(prompt)
    with pytest.raises(UserError, match="context is 512"):
        engine.continue_prompts(images[:1], [[prompt]], room + 1)
