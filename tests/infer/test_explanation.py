from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from vlm_detect.infer.explanation import CheckedReason, check_explanation, summary
from vlm_detect.measures.calibration import MeasureCalibration, fit_calibration
from vlm_detect.measures.registry import measure_image


def picture(noise: float, seed: int) -> Image.Image:
    """A smooth ramp of 48 pixels with as much noise."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(40, 200, 48)[None, :, None] + np.linspace(-20, 20, 48)[:, None, None]
    return Image.fromarray(np.clip(ramp + rng.normal(0, noise, (48, 48, 3)), 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def calibration() -> MeasureCalibration:
    """Photos have noise, generated images have little."""
    pictures = [picture(8 + seed % 5, seed) for seed in range(60)] + [picture(2.0, 100 + seed) for seed in range(60)]
    measured = [measure_image(np.asarray(one)) for one in pictures]
    generated = np.arange(120) >= 60
    return fit_calibration(measured, generated, [str(i) for i in range(120)])


QUIET = "Its noise is weaker than in nine of ten photos of this size."
LOUD = "Its noise is stronger than in nine of ten photos of this size."


def test_a_sentence_is_checked_against_its_image(calibration):
    for image, right, wrong in ((picture(2.0, 500), QUIET, LOUD), (picture(30.0, 501), LOUD, QUIET)):
        found = check_explanation(f"AI-generated. {right} {wrong}", image, calibration).reasons
        assert [reason.status for reason in found] == ["confirmed", "contradicted"]
        assert found[0].kind == "noise"
        assert found[0].value is not None
        assert found[0].measure == "noise_strength"
        assert f"noise_strength {found[0].value:.3g}, percentile" in found[0].note
        assert [CheckedReason.from_json(json.loads(json.dumps(one.to_json()))) for one in found] == list(found)


def test_a_confirmed_sentence_names_the_label_that_it_supports(calibration):
    for image, right, wrong, side in (
        (picture(2.0, 5), QUIET, LOUD, "generated"),
        (picture(30.0, 6), LOUD, QUIET, "real"),
    ):
        found = check_explanation(f"{right} {wrong} A dog.", image, calibration).reasons
        assert [reason.supports for reason in found] == [side, None, None]


def test_sentences_without_a_measure_are_unchecked(calibration):
    (reason,) = check_explanation("AI-generated. The hand has six fingers.", picture(2.0, 1), calibration).reasons
    assert (reason.status, reason.kind, reason.percentile) == ("unchecked", None, None)
    assert reason.note == "not checked"


def test_without_a_calibration_nothing_is_confirmed():
    (reason,) = check_explanation(f"Real. {LOUD}", picture(30.0, 1), None).reasons
    assert reason.status == "unchecked"


@pytest.mark.parametrize(
    "verdict",
    ["AI-generated.", "Real.", "Yes.", "This is a real photo.", "Altered.", "Not altered.", "It was edited."],
)
def test_the_verdict_is_no_reason(verdict, calibration):
    assert check_explanation(verdict, picture(2.0, 1), calibration).reasons == ()


@pytest.mark.parametrize("reason", ["Blur at the top.", "The dog was edited.", "Altered at the left.", "Blurred."])
def test_a_sentence_with_more_than_the_verdict_is_a_reason(reason, calibration):
    assert [one.text for one in check_explanation(reason, picture(2.0, 1), calibration).reasons] == [reason]


def test_only_confirmed_omits_the_rest(calibration):
    found = check_explanation(f"{QUIET} {LOUD} A dog sits there.", picture(2.0, 500), calibration)
    assert [reason.text for reason in found.only_confirmed().reasons] == [QUIET]
    assert found.only_confirmed().text == QUIET
    assert summary(found.reasons) == {"confirmed": 1, "contradicted": 1, "unchecked": 1}


def test_a_named_place_is_a_box_that_is_drawn(calibration):
    image = Image.new("RGB", (90, 60), "white")
    found = check_explanation("Something is odd at the upper left.", image, calibration)
    assert found.reasons[0].box == (0, 0, 30, 20)
    pixels = np.asarray(found.draw(image))
    assert (pixels[0, 5] != 255).any()
    assert (pixels[40, 70] == 255).all()
    assert (np.asarray(image) == 255).all(), "the image itself stays as it is"


def test_a_confirmed_sentence_that_names_no_place_has_that_of_its_measure(calibration):
    pixels = np.asarray(picture(9.0, 3)).copy()
    pixels[:16, 32:] = np.random.default_rng(0).integers(0, 255, (16, 16, 3))
    said = "Its noise is stronger than in half of all photos."
    (reason,) = check_explanation(said, Image.fromarray(pixels), calibration).reasons
    assert (reason.status, reason.box) == ("confirmed", (32, 0, 48, 16))
    (wrong,) = check_explanation(QUIET, Image.fromarray(pixels), calibration).reasons
    assert (wrong.status, wrong.box) == ("contradicted", None)


def test_boxes_of_a_place_are_nested_on_an_enlarged_image(calibration):
    image = Image.new("RGB", (30, 30), "white")
    found = check_explanation("The top left is odd. The top left is bright. The right is not.", image, calibration)
    pixels = np.asarray(found.draw(image, min_side=100))
    assert pixels.shape == (120, 120, 3)
    edges = np.flatnonzero((pixels[20, :40] != 255).any(axis=-1))
    assert list(edges) == [0, 2, 37, 39]


def test_an_unsure_verdict_has_reasons_for_both_labels(calibration):
    for image, side in ((picture(2.0, 7), "generated"), (picture(13.0, 8), "real")):
        found = check_explanation("A dog.", image, calibration, either_side=True).reasons
        assert found[0].status == "unchecked"
        assert side in {reason.supports for reason in found[1:]}
        assert all(reason.status == "confirmed" for reason in found[1:])
    assert len(check_explanation("A dog.", picture(2.0, 7), None, either_side=True).reasons) == 1
    stated = check_explanation(QUIET, picture(2.0, 7), calibration, either_side=True).reasons
    assert [reason.measure for reason in stated].count("noise_strength") == 1, "what was said is said again"


def test_an_image_without_photos_of_its_size_is_not_measured(calibration, monkeypatch):
    monkeypatch.setattr("vlm_detect.infer.explanation.measure_image", lambda *_: pytest.fail("it was measured"))
    image = picture(2.0, 7).resize((200, 200))
    (reason,) = check_explanation(QUIET, image, calibration, either_side=True).reasons
    assert (reason.status, reason.kind) == ("unchecked", "noise")
