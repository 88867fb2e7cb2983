"""The loss is that of the plain model on answers alone, and packing changes neither it nor its gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.factories import tiny_vlm
from tests.train.toys import stored, toy_image, toy_pairs
from vlm_detect.data.questions import QUESTION_KINDS
from vlm_detect.errors import UserError
from vlm_detect.records import Question
from vlm_detect.train.collate import IGNORE, Collator
from vlm_detect.train.examples import Example, QuestionOptions, Units
from vlm_detect.train.lora import LoraOptions, add_lora
from vlm_detect.train.loss import answer_loss
from vlm_detect.train.packing import packed_mask, packed_positions


@pytest.fixture
def vlm():
    vlm = tiny_vlm(text_config={"max_position_embeddings": 2048})
    add_lora(vlm, LoraOptions(lora_targets="all-linear+vision"))
    for name, parameter in vlm.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return vlm


@pytest.fixture
def units():
    questions = QuestionOptions(question_kinds=list(QUESTION_KINDS), questions_per_image=6)
    units = Units(toy_pairs(5), questions)
    return [units[0, index] for index in range(2)]


def gradients(vlm, loss):
    vlm.model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in vlm.model.named_parameters() if p.grad is not None}


def plain_loss(vlm, units):
    """One row at a time through the model's own labels, summed over all answers."""
    total, count = torch.zeros(()), 0
    for example in (example for unit in units for example in unit):
        for question in example.questions:
            prompt, answer = vlm.question_ids(question.question), vlm.answer_ids(question.answer)
            inputs = vlm.processor(images=[example.image.open()], prompt_ids=[prompt + answer])
            labels = torch.full_like(inputs["input_ids"], IGNORE)
            labels[0, -len(answer) :] = torch.tensor(answer)
            total = total + vlm.model(**inputs, labels=labels).loss * len(answer)
            count += len(answer)
    return total / count


@pytest.mark.parametrize("pack", [False, True])
def test_loss_and_gradients_equal_the_plain_model(vlm, units, pack):
    reference = plain_loss(vlm, units)
    expected = gradients(vlm, reference)
    loss = answer_loss(vlm, vlm.model, Collator(vlm, pack=pack)(units))
    torch.testing.assert_close(loss, reference, atol=1e-5, rtol=0)
    found = gradients(vlm, loss)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_packing_reads_each_image_once_and_puts_its_questions_in_one_row(vlm, units):
    packed, plain = Collator(vlm, pack=True)(units), Collator(vlm)(units)
    assert len(packed["prepared"]["pixel_values"]) == len(plain["prepared"]["pixel_values"]) == 4
    assert packed["ids"].shape[0] == 4
    assert plain["ids"].shape[0] == sum(len(example.questions) for unit in units for example in unit)
    assert (packed["labels"] != IGNORE).sum() == (plain["labels"] != IGNORE).sum()


def test_a_question_is_blind_to_its_neighbour(vlm):
    image = stored(toy_image(False, np.random.default_rng(0)))
    first = Question("yes_no", "Is this image AI-generated?", "No.")
    losses = []
    for neighbour in ("What is it?", "Say yes, say yes!"):
        batch = Collator(vlm, pack=True)([[Example(image, [first, Question("explain", neighbour, "Yes.")], "real")]])
        batch["labels"][batch["branch"] == 1] = IGNORE
        losses.append(answer_loss(vlm, vlm.model, batch).item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_positions_restart_and_the_mask_has_its_blocks():
    branch = torch.tensor([[0, 0, 1, 1, 1, -1]])
    assert packed_positions(branch, 2).tolist() == [[0, 1, 2, 3, 2, 3, 4, 2]]
    allowed = packed_mask(branch, 2, two_way_prefix=True, dtype=torch.float32)[0, 0] == 0
    assert allowed.int().tolist() == [
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 1],
    ]
    one_way = packed_mask(branch, 2, two_way_prefix=False, dtype=torch.float32)[0, 0] == 0
    assert one_way[:2, :2].int().tolist() == [[1, 0], [1, 1]]


def test_only_positions_that_predict_an_answer_reach_the_vocabulary(vlm, units, monkeypatch):
    seen = []
    head = vlm.model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    batch = Collator(vlm)([[Example(units[0][0].image, units[0][0].questions[:1], "real")]])
    answer_loss(vlm, vlm.model, batch)
    assert seen == [int((batch["labels"] != IGNORE).sum())]


def test_a_question_longer_than_the_context(vlm):
    long = Example(
        stored(toy_image(False, np.random.default_rng(0))), [Question("explain", "why " * 600, "No.")], "real"
    )
    with pytest.raises(UserError, match="context holds 2048"):
        Collator(vlm)([[long]])
