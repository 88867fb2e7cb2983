"""The loss is that of the plain model on answers alone, and packing changes neither it nor its gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from tests.factories import tiny_vlm
from tests.train.toys import stored, toy_image, toy_pairs
from vlm_detect.errors import UserError
from vlm_detect.models.rows import (
    IGNORE,
    Answered,
    Row,
    attention_mask,
    fill_rows,
    may_look,
    predicting,
    stack_rows,
)
from vlm_detect.questions.kind import training_kinds
from vlm_detect.records import Question
from vlm_detect.train.collate import Collator
from vlm_detect.train.examples import Example, Units
from vlm_detect.train.lora import add_lora
from vlm_detect.train.loss import CHUNK, answer_loss, row_inputs
from vlm_detect.train.options import LoraOptions, QuestionOptions
from vlm_detect.train.row_shapes import RowLengths


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
    questions = QuestionOptions(question_kinds=training_kinds(), questions_per_image=6)
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


@pytest.mark.parametrize(
    "layout",
    [
        {"pack": False},
        {"pack": True},
        {"pack": True, "row_tokens": 1600},
        {"pack": True, "row_tokens": 100_000},
        {"pack": True, "lengths": RowLengths(64)},
    ],
    ids=["one question a row", "one image a row", "two images a row", "all images in one row", "padded to 64"],
)
@pytest.mark.parametrize("chunk", [CHUNK, 7])
def test_loss_and_gradients_equal_the_plain_model(vlm, units, layout, chunk):
    reference = plain_loss(vlm, units)
    expected = gradients(vlm, reference)
    loss = answer_loss(vlm, vlm.model, Collator(vlm, **layout)(units), chunk=chunk)
    torch.testing.assert_close(loss, reference, atol=1e-5, rtol=0)
    found = gradients(vlm, loss)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_smoothed_labels_are_those_of_torch(vlm, units):
    batch = Collator(vlm, pack=True)(units)
    hidden = vlm.hidden_states(vlm.model, row_inputs(vlm, vlm.encode(batch["prepared"]), batch))
    logits = vlm.model.get_output_embeddings()(hidden[:, :-1]).flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, batch["labels"][:, 1:].flatten(), label_smoothing=0.2)
    torch.testing.assert_close(answer_loss(vlm, vlm.model, batch, smoothing=0.2), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", [{"pack": False}, {"pack": True, "row_tokens": 1600}])
def test_each_answer_counts_equally_in_the_loss_whatever_its_length(vlm, units, layout):
    losses = [
        float(plain_loss(vlm, [[replace(example, questions=[question])]]))
        for unit in units
        for example in unit
        for question in example.questions
    ]
    lengths = {len(vlm.answer_ids(q.answer)) for unit in units for example in unit for q in example.questions}
    assert len(lengths) > 1
    loss = answer_loss(vlm, vlm.model, Collator(vlm, loss_per="answer", **layout)(units), chunk=7)
    assert float(loss) == pytest.approx(sum(losses) / len(losses), abs=1e-5)


@pytest.mark.parametrize(("row_tokens", "rows"), [(None, 4), (1600, 2), (100_000, 1)])
def test_packing_encodes_each_image_once_and_fills_rows_up_to_the_budget(vlm, units, row_tokens, rows):
    packed, plain = Collator(vlm, pack=True, row_tokens=row_tokens)(units), Collator(vlm)(units)
    assert len(packed["prepared"]["pixel_values"]) == len(plain["prepared"]["pixel_values"]) == 4
    assert packed["ids"].shape[0] == rows
    assert plain["ids"].shape[0] == sum(len(example.questions) for unit in units for example in unit)
    assert row_tokens is None or packed["ids"].shape[1] <= row_tokens
    assert (packed["labels"] != IGNORE).sum() == (plain["labels"] != IGNORE).sum()


def test_rows_are_filled_longest_first():
    assert fill_rows([3, 9, 4, 6, 2], budget=10) == [[1], [2, 3], [0, 4]]
    assert fill_rows([12, 1], budget=10) == [[0], [1]]


def test_an_image_longer_than_the_budget(vlm, units):
    with pytest.raises(UserError, match=r"--pack_tokens 60: an image with its questions takes \d{3} tokens"):
        Collator(vlm, pack=True, row_tokens=60)(units)


def test_a_question_does_not_attend_to_its_neighbours(vlm):
    rng = np.random.default_rng(0)
    image, other = stored(toy_image(False, rng)), stored(toy_image(True, rng))
    first = Question("yes_no", "Is this image AI-generated?", "No.")
    losses = []
    for neighbour, behind in (("What is it?", image), ("Say yes, say yes!", other)):
        unit = [
            Example(image, [first, Question("explain", neighbour, "Yes.")], "real"),
            Example(behind, [Question("explain", neighbour, "Yes.")], "real"),
        ]
        batch = Collator(vlm, pack=True, row_tokens=1000)([unit])
        assert len(batch["ids"]) == 1
        batch["labels"][(batch["branch"] != 0) | (batch["image"] != 0)] = IGNORE
        batch["predicting"] = predicting(batch["labels"])
        losses.append(answer_loss(vlm, vlm.model, batch).item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def two_images_in_a_row(blocks=(0, 0)):
    row = Row()
    row.add(0, [8, 9], [Answered([20], [21]), Answered([22, 23], [24])], blocks[:2])
    row.add(1, [8], [Answered([25], [26])], blocks[:1])
    longer = Row()
    longer.add(2, [8, 9], [Answered([20] * 6, [21] * 3)], blocks[:2])
    return stack_rows([row, longer], pad_id=0)


def test_positions_restart_and_the_mask_has_its_blocks():
    rows = two_images_in_a_row()
    assert rows["ids"][0].tolist() == [8, 9, 20, 21, 22, 23, 24, 8, 25, 26, 0]
    assert rows["position_ids"][0].tolist() == [0, 1, 2, 3, 2, 3, 4, 0, 1, 2, 0]
    assert rows["labels"][0].tolist() == [IGNORE] * 3 + [21] + [IGNORE] * 2 + [24] + [IGNORE] * 2 + [26, IGNORE]
    allowed = may_look(rows)[0]
    assert allowed.int().tolist() == [
        [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    ]
    one_way = may_look(two_images_in_a_row(blocks=()))[0]
    assert one_way[:2, :2].int().tolist() == [[1, 0], [1, 1]]
    assert (one_way | allowed).equal(allowed)


def test_a_window_counts_positions_not_places_in_the_row():
    rows = two_images_in_a_row(blocks=())
    near = may_look(rows, window=2)[0].int()
    assert near[4].tolist() == [
        0,
        1,
        0,
        0,
        1,
        0,
        0,
        0,
        0,
        0,
        0,
    ]  # next to it is the prefix's end
    assert near[6].tolist() == [0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("blocks", [(), (0, 0)])
def test_flex_attention_has_the_same_mask(blocks, window):
    rows = two_images_in_a_row(blocks)
    flex = attention_mask(rows, torch.float32, flex=True, window=window)
    query, key, value = torch.randn(3, 2, 1, rows["ids"].shape[1], 16, generator=torch.Generator().manual_seed(0))
    plain = attention_mask(rows, torch.float32, window=window)
    torch.testing.assert_close(
        flex_attention(query, key, value, block_mask=flex),
        torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=plain),
    )


def test_only_positions_that_predict_an_answer_reach_the_vocabulary(vlm, units):
    seen = []
    head = vlm.model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[:-1].numel()))
    batch = Collator(vlm, pack=True)(units)
    with torch.no_grad():
        answer_loss(vlm, vlm.model, batch, chunk=50)
    rows, supervised = len(batch["ids"]), int((batch["labels"] != IGNORE).sum())
    assert supervised > 50
    assert seen == [rows] + [50] * (supervised // 50) + [supervised % 50]  # the forward itself makes one a row


def test_a_question_longer_than_the_context(vlm):
    long = Example(
        stored(toy_image(False, np.random.default_rng(0))), [Question("explain", "why " * 600, "No.")], "real"
    )
    with pytest.raises(UserError, match="context has 2048"):
        Collator(vlm)([[long]])
