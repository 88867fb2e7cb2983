"""Weighted parts of several datasets: the weights hold in every epoch, and no unit is left out for good."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.train.toys import toy_images, toy_pairs
from vlm_detect.errors import UserError
from vlm_detect.train.examples import Units
from vlm_detect.train.mixture import Mixture
from vlm_detect.train.options import DataOptions, QuestionOptions


def parts():
    return [Units(toy_pairs(6), QuestionOptions()), Units(toy_images(["real", "generated"] * 3, 9), QuestionOptions())]


def sampled(mixture, epoch):
    return [mixture[epoch, i][1].image.key for i in range(len(mixture))]


def test_without_weights_every_unit_occurs_once():
    first, second = parts()
    mixture = Mixture([first, second])
    assert len(mixture) == len(first) + len(second) == 9
    assert set(Counter(sampled(mixture, 0)).values()) == {1}


def test_weights_hold_in_an_epoch_and_the_next_epoch_continues():
    first, second = parts()
    mixture = Mixture([first, second], [1, 2])
    assert mixture.quotas == [3, 6]
    of_first = {first[0, i][1].image.key for i in range(6)}
    epochs = [sampled(mixture, epoch) for epoch in range(2)]
    assert [sum(key in of_first for key in keys) for keys in epochs] == [3, 3]
    assert of_first <= {key for keys in epochs for key in keys}


def test_every_image_is_used_and_a_second_pass_samples_again():
    images = Units(toy_images(["real", "generated"] * 6, 9), QuestionOptions())
    mixture = Mixture([Units(toy_pairs(6), QuestionOptions()), images], [3, 1])
    assert mixture.quotas == [9, 3]
    own = {images[0, i][1].image.key for i in range(6)}
    assert own <= {key for epoch in range(2) for key in sampled(mixture, epoch)}
    asked = [[example.questions for i in range(6) for example in mixture.parts[0][passes, i]] for passes in (0, 1)]
    again = [example.questions for i in range(6, 9) for example in mixture[0, i]]
    assert again == asked[1][:6] != asked[0][:6]


def test_images_are_those_of_all_parts():
    first, second = parts()
    mixture = Mixture([first, second])
    keys = {mixture.images[i].key for i in range(len(mixture.images))}
    assert len(mixture.images) == 12 + 6
    assert set(sampled(mixture, 0)) <= keys
    with pytest.raises(IndexError):
        mixture.images[18]


@pytest.mark.parametrize("weights", [[1.0], [1, 2, 3], [1, 0]])
def test_wrong_weights(weights):
    with pytest.raises(UserError, match="a number above 0 for each of the 2 datasets"):
        DataOptions(mix=["other"], weights=weights)
