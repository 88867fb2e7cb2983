"""Heads and targets of every task, and the one score that an image gets."""

from __future__ import annotations

import numpy as np
import pytest

from vlm_detect.cnn.evaluation import head_figures, verdict_results
from vlm_detect.cnn.pixels import Entry, Shots
from vlm_detect.cnn.tasks import TASKS, heads_of, targets_of
from vlm_detect.errors import UserError
from vlm_detect.models.cnn.verdicts import odds_of

ENTRIES = [
    Entry("real", "", "cat", "a", "0"),
    Entry("generated", "sd", "dog", "b", "1"),
    Entry("generated", "gan", "cat", "c", "2"),
    Entry("edited", "", "dog", "d", "3"),
]


def shots(entries=ENTRIES) -> Shots:
    return Shots(np.zeros((len(entries), 8, 8, 3), np.uint8), list(entries), [])


@pytest.mark.parametrize(
    ("task", "classes", "targets"),
    [
        ("real_fake", ["real", "generated"], [0, 1, 1, -1]),
        ("generator", ["real", "gan", "sd"], [0, 2, 1, -1]),
        ("real_edited", ["real", "edited"], [0, -1, -1, 1]),
        ("fake_edited", ["generated", "edited"], [-1, 0, 0, 1]),
        ("three_way", ["real", "generated", "edited"], [0, 1, 1, 2]),
    ],
)
def test_every_task_has_its_classes_and_omits_other_images(task, classes, targets):
    heads = heads_of(shots(), task, object_head=True)
    assert heads == {"verdict": classes, "object": ["cat", "dog"]}
    found = targets_of(shots(), heads, task)
    assert found["verdict"].tolist() == targets
    assert found["object"].tolist() == [0, 1, 0, 1]


def test_a_generator_that_training_did_not_name_is_still_judged_as_generated():
    heads = heads_of(shots(), "generator")
    unseen = shots([ENTRIES[0], Entry("generated", "new", "cat", "e", "4")])
    assert targets_of(unseen, heads, "generator")["verdict"].tolist() == [0, -1]
    results = verdict_results(unseen, np.array([-1.0, 2.0]), "generator")
    assert [(r.is_fake, r.correct, r.generator) for r in results] == [(False, True, "real"), (True, True, "new")]


@pytest.mark.parametrize(("task", "missing"), [(task, TASKS[task][0]) for task in TASKS])
def test_one_class_only_is_one_line(task, missing):
    left = shots([entry for entry in ENTRIES if entry.label != missing])
    with pytest.raises(UserError, match=f"--task {task} needs .* and no {missing}"):
        heads_of(left, task)


def test_heads_without_suitable_images_are_one_line():
    with pytest.raises(UserError, match="no generated image names its generator"):
        heads_of(shots([ENTRIES[0], Entry("generated", "", "", "b", "1")]), "generator")
    with pytest.raises(UserError, match="names 1"):
        heads_of(shots([ENTRIES[0], ENTRIES[2]]), "real_fake", object_head=True)
    with pytest.raises(UserError, match="--task what: unknown"):
        heads_of(shots(), "what")
    with pytest.raises(UserError, match="none of the images belongs to the classes of the verdict head"):
        targets_of(shots([ENTRIES[3]]), {"verdict": ["real", "generated"]}, "real_fake")


def test_all_generators_together_are_compared_with_real():
    logits = np.log(np.array([[0.5, 0.3, 0.2], [0.2, 0.1, 0.7]]))
    np.testing.assert_allclose(odds_of(logits, ["real", "gan", "sd"], "generator"), [0.0, np.log(4)], atol=1e-12)
    np.testing.assert_allclose(
        odds_of(logits, TASKS["three_way"], "three_way"), np.log([0.3 / 0.5, 0.1 / 0.2]), atol=1e-12
    )
    np.testing.assert_array_equal(odds_of(np.array([[1.5]]), ["real", "edited"], "real_edited"), [1.5])


def test_head_figures_count_each_class():
    logits = {"verdict": np.array([[-1.0], [1.0], [-1.0], [9.0]])}
    found = head_figures(shots(), logits, {"verdict": ["real", "generated"]}, "real_fake")["verdict"]
    assert (found["n"], found["accuracy"]) == (3, pytest.approx(2 / 3))
    assert found["by_class"] == {"real": {"n": 1, "accuracy": 1.0}, "generated": {"n": 2, "accuracy": 0.5}}
