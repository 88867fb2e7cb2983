"""Kinds of free sentences, and reasons inside of verdicts."""

import pytest

from vlm_detect.generate.taxonomy import kind_of, reason_in, speaks_for


@pytest.mark.parametrize(
    ("sentence", "kind"),
    [
        ("The left hand has six fingers.", "anatomy"),
        ("The dog's eyes and legs look oddly shaped.", "anatomy"),
        ("The shadow of the hand falls towards the lamp.", "light"),
        ("The window reflects another street.", "reflection"),
        ("The letters on the sign are garbled.", "text"),
        ("The texture of the wall is unnaturally smooth.", "texture"),
        ("The colors are oversaturated.", "colour"),
        ("The lines of the table do not meet.", "geometry"),
        ("The background melts into grey.", "background"),
        ("The chair floats above the floor.", "physics"),
        ("The same tile is repeated.", "repetition"),
        ("The outlines are blurred.", "edges"),
        ("It was a sunny day.", None),
        ("", None),
    ],
)
def test_kinds(sentence: str, kind: str | None) -> None:
    assert kind_of(sentence) == kind


@pytest.mark.parametrize(
    ("sentence", "reason"),
    [
        ("You can tell that it is artificially generated because the snake has no head.", "The snake has no head."),
        ("It is fake since the hand has six fingers.", "The hand has six fingers."),
        ("The sky is dark because it is night.", "The sky is dark because it is night."),
        ("It is fake.", "It is fake."),
        ("The disc is warped, suggesting it may be an artificially generated image.", "The disc is warped."),
        ("The disc is warped, suggesting heat.", "The disc is warped, suggesting heat."),
    ],
)
def test_reasons_in_verdicts(sentence: str, reason: str) -> None:
    assert reason_in(sentence) == reason


@pytest.mark.parametrize(
    ("sentence", "labels"),
    [
        ("The hand has six fingers.", {"generated", "edited"}),
        ("The eyes do not match.", {"generated", "edited"}),
        ("The texture of the wall is natural.", {"real"}),
        ("The background includes a hedge and some trees.", set()),
        ("The lighting is consistent, but the shadow is missing.", {"generated", "edited"}),
    ],
)
def test_sentences_that_support_a_label(sentence: str, labels: set[str]) -> None:
    assert {label for label in ("real", "generated", "edited") if speaks_for(sentence, label)} == labels
