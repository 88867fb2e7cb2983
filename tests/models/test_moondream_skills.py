"""detect(), point(), gaze, spatial references and grounded reasoning against loops without a cache, step by step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import Image

from tests.factories import tiny_moondream
from tests.models.test_moondream import make_processor, noise_images
from vlm_detect.errors import UserError
from vlm_detect.models.moondream import MoondreamConfig, MoondreamForConditionalGeneration, MoondreamProcessor
from vlm_detect.models.moondream.skills import Thoughts, detect, gaze, point, reason
from vlm_detect.models.regions import Box, Point

EOS, ANSWER, THINKING, COORD, SIZE, START_POINTS, END_GROUND = 0, 3, 4, 5, 6, 7, 9


def talkative(seed: int = 0, **biases: float) -> MoondreamForConditionalGeneration:
    """A tiny model whose special tokens come up, each with a bias of its own."""
    model = tiny_moondream(seed)
    ids = {"eos": EOS, "answer": ANSWER, "coord": COORD, "size": SIZE, "start": START_POINTS, "end": END_GROUND}
    with torch.no_grad():
        for name, bias in biases.items():
            model.model.text.lm_head.bias[ids[name]] += bias
    return model


class Naive:
    """A sequence of embeddings that is read as a whole at every step, as the rules say and with no cache."""

    def __init__(self, model: MoondreamForConditionalGeneration, processor: MoondreamProcessor, image: Image.Image):
        self.model, self.region = model, model.model.region
        inputs = processor.image_processor(image, return_tensors="pt")
        self.embeds = torch.cat([self.word(EOS), model.encode_images(**inputs)], dim=1)
        self.prefix = self.embeds.shape[1]

    def word(self, token_id: int) -> torch.Tensor:
        return self.model.model.text.wte(torch.tensor([[token_id]]))

    def coordinate(self, value: float) -> torch.Tensor:
        angles = 2 * math.pi * torch.tensor([[[value]]]) @ self.region.coord_features
        return self.region.coord_encoder(torch.cat([angles.cos(), angles.sin()], dim=-1))

    def size(self, width: float, height: float) -> torch.Tensor:
        angles = 2 * math.pi * torch.tensor([[[width, height]]]) @ self.region.size_features
        return self.region.size_encoder(torch.cat([angles.cos(), angles.sin()], dim=-1))

    def read(self, *embeds: torch.Tensor) -> None:
        self.embeds = torch.cat([self.embeds, *embeds], dim=1)
        length = self.embeds.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        mask[: self.prefix, : self.prefix] = True
        out = self.model.model(inputs_embeds=self.embeds, attention_mask=mask[None, None], use_cache=False)
        self.hidden = out.region_hidden_state[0, -1]
        self.logits = self.model.model.text.lm_head(out.last_hidden_state[0, -1])

    def likeliest(self, *forbidden: int) -> int:
        logits = self.logits.clone()
        logits[list(forbidden)] = -torch.inf
        return int(logits.argmax())

    def next_coordinate(self) -> float:
        logits = self.region.coord_decoder(self.hidden)
        return int(logits.argmax()) / len(logits)

    def next_size(self) -> tuple[float, float]:
        width, height = self.region.size_decoder(self.hidden).view(2, -1).argmax(-1).tolist()
        last_bin = self.model.config.region_config.size_output_size // 2 - 1
        return 2 ** (width / last_bin * 10 - 10), 2 ** (height / last_bin * 10 - 10)

    def objects(self, with_sizes: bool, max_objects: int = 50) -> list[Sequence[float]]:
        found: list[Sequence[float]] = []
        while self.likeliest() != EOS and len(found) < max_objects:
            x = self.next_coordinate()
            self.read(self.coordinate(x))
            y = self.next_coordinate()
            self.read(self.coordinate(y))
            if not with_sizes:
                found.append((x, y))
                continue
            width, height = self.next_size()
            self.read(self.size(width, height))
            found.append((x - width / 2, y - height / 2, x + width / 2, y + height / 2))
        return found


def naive(model: MoondreamForConditionalGeneration, image: Image.Image, prompt: Sequence[int]) -> Naive:
    sequence = Naive(model, make_processor(model), image)
    sequence.read(*map(sequence.word, prompt))
    return sequence


# Models whose loops end after nothing, after some objects, and not at all.
ENDING: dict[str, dict[str, Any]] = {"detect": {"seed": 0, "eos": 1.5}, "point": {"seed": 1, "eos": 2.5}}
PHRASES = ["ship", "a red car", "x", "the left eye"]


@pytest.mark.parametrize("skill", ["detect", "point"])
@torch.no_grad()
def test_objects_equal_those_of_the_loop_without_a_cache(skill: str) -> None:
    model = talkative(**ENDING[skill])
    processor = make_processor(model)
    counts = set()
    for image in noise_images():
        for phrase in PHRASES:
            prompt = processor.object_ids(skill, phrase)
            template = model.config.templates[skill]
            assert prompt == [*template["prefix"], *processor.encode(f" {phrase}"), *template["suffix"]]
            inputs = processor(images=[image], prompt_ids=[prompt])
            found: Any = (detect if skill == "detect" else point)(model, inputs, max_objects=6)
            expected = naive(model, image, prompt).objects(skill == "detect", 6)
            assert len(found) == len(expected)
            for ours, theirs in zip(found, expected, strict=True):
                assert tuple(ours) == pytest.approx(tuple(theirs), abs=1e-6)
            counts.add(len(found))
    assert len(counts) > 2, f"every prompt found {counts} objects: nothing was compared"


@torch.no_grad()
def test_a_gaze_is_the_first_point_after_an_eye() -> None:
    model = talkative(eos=2.5)
    processor = make_processor(model)
    nowhere = 0
    for image in noise_images():
        for eye in [(0.25, 0.5), (0.7, 0.1), (0.0, 1.0)]:
            sequence = Naive(model, processor, image)
            before, after = processor.encode("\n\nPoint:"), processor.encode(" gaze\n\n")
            x, y = (float(torch.tensor(one).bfloat16()) for one in eye)
            sequence.read(*map(sequence.word, before), sequence.coordinate(x), sequence.coordinate(y))
            sequence.read(*map(sequence.word, after))
            is_nowhere = sequence.likeliest() == EOS
            sequence.logits[EOS] = -torch.inf
            (expected,) = sequence.objects(False, 1)
            inputs = processor(images=[image], prompt_ids=[processor.gaze_ids(eye)])
            assert gaze(model, inputs, force=True) == pytest.approx(expected)
            assert gaze(model, inputs) == (None if is_nowhere else pytest.approx(expected))
            nowhere += is_nowhere
    assert 0 < nowhere < 12, "only one of the two cases was compared"


REFERENCES = [[(0.25, 0.75)], [(0.1, 0.2, 0.5, 0.9)], [(0.5, 0.5), (0.0, 0.0, 1.0, 0.5), (1.0, 0.0)]]


@pytest.mark.parametrize("references", REFERENCES)
@torch.no_grad()
def test_spatial_references_are_between_prefix_and_question(references: list[tuple[float, ...]]) -> None:
    model = talkative()
    processor = make_processor(model)
    image = noise_images()[1]
    sequence = Naive(model, processor, image)
    embeds = [sequence.word(token) for token in model.config.templates["query"]["prefix"]]
    for reference in references:
        if len(reference) == 2:
            embeds += map(sequence.coordinate, reference)
        else:
            x0, y0, x1, y1 = reference
            embeds += map(sequence.coordinate, ((x0 + x1) / 2, (y0 + y1) / 2))
            embeds.append(sequence.size(x1 - x0, y1 - y0))
    embeds += [sequence.word(token) for token in [*processor.encode("What is this?"), ANSWER, ANSWER]]
    sequence.read(*embeds)
    inputs = processor(images=[image], prompt_ids=[processor.query_ids("What is this?", references)])
    assert torch.allclose(model(**inputs).logits[0, -1], sequence.logits, atol=1e-5)
    plain = processor(images=[image], prompt_ids=[processor.query_ids("What is this?")])
    assert not torch.allclose(model(**plain).logits[0, -1], sequence.logits, atol=1e-2)

    prompts = [processor.query_ids("What is this?", references), [1, 2] * 30]
    for padding_side in ("left", "right"):
        padded = processor(images=[image] * 2, prompt_ids=prompts, padding_side=padding_side)
        last = int(padded["attention_mask"][0].nonzero().max())
        assert torch.allclose(model(**padded).logits[0, last], sequence.logits, atol=1e-4)
    generated = model.generate(**inputs, max_new_tokens=6)
    assert torch.equal(generated, model.generate(**inputs, max_new_tokens=6, use_cache=False))


@pytest.mark.parametrize("reference", [(0.5,), (0.5, 1.5), (0.5, 0.1, 0.2, 0.3), (0.1, 0.2, 0.3), (math.nan, 0.5)])
def test_an_invalid_reference_is_refused(reference: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="spatial reference"):
        make_processor(tiny_moondream()).query_ids("What?", [reference])


@torch.no_grad()
def test_reasoning_reads_coordinates_and_answers_after_the_templates_suffix() -> None:
    suffix = [ANSWER, 11]  # not the answer marker alone
    lengths, with_points = set(), 0
    for seed in range(4):
        model = talkative(seed, answer=2.5, coord=4, start=2, end=2)
        model.config.templates["query"]["suffix"] = suffix
        processor = make_processor(model)
        for image in noise_images():
            prompt = processor.reasoning_ids("How many?", [(0.5, 0.25)])
            assert prompt[-3:] == [*suffix, THINKING]
            thoughts, answer = reason(model, processor(images=[image], prompt_ids=[prompt]), max_new_tokens=12)

            sequence = Naive(model, processor, image)
            embeds = [sequence.word(token) for token in prompt]
            embeds[3:5] = [sequence.coordinate(0.5), sequence.coordinate(0.25)]
            sequence.read(*embeds)
            ids: list[int] = []
            coordinates: list[float] = []
            token = sequence.likeliest()
            while token != ANSWER and len(ids) < 12:
                ids.append(token)
                if token == COORD:
                    coordinates.append(sequence.next_coordinate())
                    sequence.read(sequence.coordinate(coordinates[-1]))
                else:
                    sequence.read(sequence.word(token))
                token = sequence.likeliest(EOS, SIZE)
            sequence.read(*map(sequence.word, suffix))
            expected: list[int] = []
            token = sequence.likeliest()
            while token != EOS and len(expected) < 12:
                expected.append(token)
                sequence.read(sequence.word(token))
                token = sequence.likeliest(ANSWER)
            assert (thoughts.ids, answer) == (ids, expected)
            assert thoughts.coordinates == pytest.approx(coordinates)
            lengths.add(len(ids))
            with_points += len(coordinates) > 1
    assert len(lengths) > 2
    assert with_points


def test_grounding_counts_characters_of_the_joined_text() -> None:
    words = {20: "Two", 21: " ships", 22: " here", COORD: "", START_POINTS: "", END_GROUND: ""}
    thoughts = Thoughts(MoondreamConfig())
    upcoming = iter([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    ids = [20, START_POINTS, 21, COORD, COORD, COORD, COORD, COORD, END_GROUND, 22, START_POINTS, COORD, 21]
    for token in ids:
        thoughts.add(token, next(upcoming) if token == COORD else math.nan)
    text, grounding = thoughts.ground(lambda chunk: "".join(words[token] for token in chunk))
    assert text == "Two ships here ships"
    # One chunk has five coordinates, so the last has no partner; another has a single one, which makes no point.
    assert grounding == [(3, 9, [Point(0.1, 0.2), Point(0.3, 0.4)])]
    assert text[3:9] == " ships"


def test_the_first_release_has_other_size_bins_and_no_extras() -> None:
    old = MoondreamConfig.from_dict({"model_type": "moondream1", "config": {}}, release="2025-01-09")
    assert (old.region_config.size_bins, MoondreamConfig().region_config.size_bins) == ("linear", "log2")
    model = tiny_moondream(release="2025-01-09")
    hidden = torch.randn(3, 64)
    width, height = model.region.decode_size(hidden).argmax(-1)
    assert torch.equal(model.region.read_size(hidden), torch.stack([width, height], dim=-1) / 16)
    processor = make_processor(model)
    for prompt in (lambda: processor.reasoning_ids("What?"), lambda: processor.query_ids("What?", [(0.5, 0.5)])):
        with pytest.raises(UserError, match="release 2025-01-09 has no"):
            prompt()


@pytest.mark.parametrize(
    ("box", "margin", "pixels"),
    [
        (Box(0.25, 0.5, 0.75, 1.0), 0.0, (10, 10, 30, 20)),
        (Box(-0.5, -0.1, 1.5, 0.5), 0.0, (0, 0, 40, 10)),
        (Box(0.25, 0.5, 0.75, 1.0), 0.5, (0, 5, 40, 20)),
        (Box(0.5, 0.5, 0.5, 0.5), 0.0, (20, 10, 21, 11)),
        (Box(1.2, 1.2, 1.4, 1.4), 0.0, (39, 19, 40, 20)),
    ],
)
def test_a_box_in_pixels_is_within_the_image(box: Box, margin: float, pixels: tuple[int, ...]) -> None:
    assert box.pixels(40, 20, margin) == pixels
