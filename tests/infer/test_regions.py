"""The engine's boxes, points, gazes, thoughts and questions without an image against the loops for one prompt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.factories import tiny_vlm
from tests.models.test_moondream_skills import ENDING, PHRASES, REFERENCES, talkative
from tests.models.tiny_chat import save_tiny
from vlm_detect.errors import UserError
from vlm_detect.infer.asks import Ask
from vlm_detect.infer.engine import Engine
from vlm_detect.infer.locate import random_eyes, steady_gaze
from vlm_detect.infer.reference import generate_plain, score_plain
from vlm_detect.models.moondream import skills
from vlm_detect.models.moondream.family import MoondreamVLM
from vlm_detect.models.regions import Box, Point
from vlm_detect.models.registry import load_vlm

EYES = [Point(0.25, 0.5), Point(0.7, 0.1), Point(0.0, 1.0)]


def make_vlm(seed: int = 0, **biases: float) -> MoondreamVLM:
    model = talkative(seed, **biases)
    return MoondreamVLM(model, tiny_vlm().processor, "tiny")


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(1)
    sizes = [(16, 16), (40, 30), (20, 64)]
    return [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def near(places):
    return [pytest.approx(tuple(place), abs=1e-6) for place in places]


@pytest.mark.parametrize("skill", ["detect", "point"])
@pytest.mark.parametrize("batch_images", [1, 8])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_objects_found_in_a_batch_equal_those_found_alone(images, skill, batch_images, implementation) -> None:
    vlm = make_vlm(**ENDING[skill])
    vlm.model.set_attn_implementation(implementation)
    phrases = [PHRASES, PHRASES[:1], PHRASES[2:]]
    engine = Engine(vlm, batch_images=batch_images)
    found = getattr(engine, skill)(images, phrases, max_objects=6)
    counts = set()
    for image, some, of_image in zip(images, phrases, found, strict=True):
        for phrase, places in zip(some, of_image, strict=True):
            inputs = vlm.processor(images=[image], prompt_ids=[vlm.processor.object_ids(skill, phrase)])
            alone = getattr(skills, skill)(vlm.model, inputs, max_objects=6)
            assert [tuple(place) for place in places] == near(alone)
            counts.add(len(places))
    assert len(counts) > 2, f"every phrase found {counts} objects: nothing was compared"
    one = getattr(engine, skill)(images, phrases, max_objects=2)
    assert [[places[:2] for places in of_image] for of_image in found] == one


@pytest.mark.parametrize("force", [False, True])
def test_gazes_in_a_batch_equal_those_alone(images, force: bool) -> None:
    vlm = make_vlm(eos=2.5)
    found = Engine(vlm).gaze(images, [EYES, EYES[:1], []], force=force)
    alone = [
        [
            skills.gaze(vlm.model, vlm.processor(images=[image], prompt_ids=[vlm.processor.gaze_ids(eye)]), force=force)
            for eye in eyes
        ]
        for image, eyes in zip(images, [EYES, EYES[:1], []], strict=True)
    ]
    assert [[point and near([point])[0] for point in some] for some in alone] == [
        [point and tuple(point) for point in some] for some in found
    ]
    assert any(point is None for some in found for point in some) != force


def test_a_stable_gaze_ignores_outliers() -> None:
    near_points = [Point(0.5 + 0.001 * i, 0.5 - 0.002 * (i % 3)) for i in range(12)]
    middle = np.array(near_points).mean(axis=0)
    assert steady_gaze([*near_points, Point(0.9, 0.1), None, None]) == pytest.approx(tuple(middle))
    assert steady_gaze([*near_points[:9], *[None] * 11]) is None
    assert steady_gaze([Point(0.5, 0.5)] * 10) == pytest.approx((0.5, 0.5))


def test_the_gaze_of_a_face_is_the_mean_over_its_eyes_and_those_of_the_mirrored_image(images) -> None:
    engine, face = Engine(make_vlm()), Box(0.2, 0.3, 0.4, 0.6)
    eyes, flipped = random_eyes(face, seed=5)
    assert all(0.2 <= x <= 0.4 and 0.3 <= y <= 0.6 for x, y in eyes)
    assert all(0.6 <= x <= 0.8 and 0.3 <= y <= 0.6 for x, y in flipped)
    mirrored = images[1].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    (own,), (other,) = engine.gaze(images[1:2], [eyes], force=True), engine.gaze([mirrored], [flipped], force=True)
    expected = steady_gaze([*own, *(Point(1 - x, y) for x, y in other)])
    assert engine.gaze_of_face(images[1], face, force=True, seed=5) == pytest.approx(expected)


@pytest.mark.parametrize("batch_images", [1, 8])
def test_thoughts_and_answers_in_a_batch_equal_those_alone(images, batch_images: int) -> None:
    lengths, grounded = set(), 0
    for seed in range(4):
        vlm = make_vlm(seed, answer=2.5, coord=4, start=2, end=2)
        everything = [*images, None]
        questions = [["How many?", "Where is it, and what?"], ["x"], ["Why?", "yy", "?"], ["What is a ship?", "z"]]
        found = Engine(vlm, batch_images=batch_images).reason(everything, questions, max_new_tokens=12)
        for image, some, answers in zip(everything, questions, found, strict=True):
            for question, answer in zip(some, answers, strict=True):
                prompt = vlm.processor.reasoning_ids(question)
                inputs = vlm.processor(images=None if image is None else [image], prompt_ids=[prompt])
                thoughts, answer_ids = skills.reason(vlm.model, inputs, max_new_tokens=12)
                reasoning = thoughts.ground(vlm.decode)
                assert answer.reasoning.text == reasoning.text
                assert answer.answer == vlm.decode(answer_ids).strip()
                for (start, end, points), (*span, expected) in zip(
                    answer.reasoning.grounding, reasoning.grounding, strict=True
                ):
                    assert ([start, end], points) == (span, near(expected))
                grounded += len(reasoning.grounding)
                lengths.add(len(thoughts.ids))
    assert len(lengths) > 2
    assert grounded, "no thought points anywhere: nothing was compared"


def test_thoughts_leave_room_for_an_answer(images) -> None:
    vlm = make_vlm(answer=-50, eos=-50)  # neither thoughts nor answers end of themselves
    question = "x" * 470
    room = vlm.context - len(vlm.prefix_ids()) - len(vlm.processor.reasoning_ids(question))
    ((answer,),) = Engine(vlm).reason(images[:1], [[question]], max_new_tokens=768)
    assert answer.cut_off
    assert 16 < room < 24
    assert answer.n_tokens == (room - 1 - room // 4, room // 4)  # and the marker between them
    with pytest.raises(UserError, match="context is 512"):
        Engine(vlm).reason(images[:1], [["x" * 488]])


@pytest.mark.parametrize("references", REFERENCES)
@pytest.mark.parametrize("options", [{}, {"num_beams": 1}], ids=["packed", "rows"])
def test_spatial_references_in_the_engine_are_those_of_the_plain_path(images, references, options) -> None:
    vlm = make_vlm()
    prompts = [[vlm.question_ids("What is this?", references), vlm.question_ids("And?")], [vlm.question_ids("y")]]
    found = Engine(vlm).continue_prompts(images[:2], prompts, 8, **options)
    expected = [
        [generate_plain(vlm, image, prompt, 8) for prompt in some]
        for image, some in zip(images[:2], prompts, strict=True)
    ]
    assert found == expected
    assert found[0][0] != generate_plain(vlm, images[0], vlm.question_ids("What is this?"), 8)


@pytest.mark.parametrize("options", [{}, {"num_beams": 1}], ids=["packed", "rows"])
def test_questions_without_an_image_can_be_batched_with_others(images, options) -> None:
    vlm = make_vlm()
    everything, questions = [images[0], None, images[1], None], [["a"], ["b", "What?"], ["c", "d"], ["b"]]
    found = Engine(vlm).generate(everything, questions, max_new_tokens=8, **options)
    expected = [
        [generate_plain(vlm, image, vlm.question_ids(question), 8) for question in some]
        for image, some in zip(everything, questions, strict=True)
    ]
    assert found == expected
    assert found[1][0] == found[3][0]
    ask = Ask("b", ("Yes.", "No."))
    ((scores,), _) = Engine(vlm).score([None, images[0]], [[ask], [ask]])
    assert [one.logprob for one in scores] == pytest.approx(
        [score_plain(vlm, None, "b", answer).logprob for answer in ask.candidates], abs=1e-5
    )


def test_other_models_and_empty_phrases_are_refused(images, tmp_path) -> None:
    with pytest.raises(UserError, match="phrase is empty"):
        Engine(tiny_vlm()).detect(images[:1], [[" "]])
    engine = Engine(load_vlm(str(save_tiny("llava", tmp_path)), device="cpu"))
    for call in (
        lambda: engine.detect(images[:1], [["ship"]]),
        lambda: engine.gaze(images[:1], [[Point(0.5, 0.5)]]),
        lambda: engine.reason(images[:1], [["Why?"]]),
    ):
        with pytest.raises(UserError, match="use a moondream2"):
            call()
    with pytest.raises(UserError, match="answers about images only"):
        engine.generate([None], [["Hello?"]])


def test_a_lora_reaches_every_step(images) -> None:
    from peft import LoraConfig, get_peft_model

    vlm = make_vlm(eos=1.5)
    bare = Engine(vlm).detect(images, [PHRASES] * 3, max_objects=6)
    tuned = get_peft_model(vlm.model, LoraConfig(r=4, target_modules=r".*text.blocks.\d+.mlp.fc1"))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    wrapped = MoondreamVLM(tuned.eval(), vlm.processor, "tuned")
    found = Engine(wrapped).detect(images, [PHRASES] * 3, max_objects=6)
    assert found != bare
    inputs = vlm.processor(images=images[:1], prompt_ids=[vlm.processor.object_ids("detect", PHRASES[0])])
    alone = skills.detect(tuned.get_base_model(), inputs, max_objects=6)
    assert [tuple(box) for box in found[0][0]] == near(alone)
