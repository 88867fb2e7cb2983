"""The detector's verdicts: both polarities, the run's calibration, and files that cannot be judged."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.factories import tiny_vlm
from vlm_detect import Detector
from vlm_detect.data.questions import FAKE_QUESTION, REAL_QUESTION
from vlm_detect.errors import UserError
from vlm_detect.infer.reference import score_plain
from vlm_detect.models.moondream.family import MoondreamVLM
from vlm_detect.train.calibration import Calibration


@pytest.fixture(scope="module")
def vlm() -> MoondreamVLM:
    return tiny_vlm()


@pytest.fixture(scope="module")
def model_folder(vlm: MoondreamVLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    vlm.model.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    return folder


@pytest.fixture
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 255, (20, 30, 3), dtype=np.uint8))


def test_p_fake_averages_both_polarities(vlm: MoondreamVLM, model_folder: Path, photo: Image.Image) -> None:
    verdict = Detector(str(model_folder))(photo)

    def odds_of_yes(question: str) -> float:
        yes, no = (score_plain(vlm, photo, question, answer).logprob for answer in ("Yes.", "No."))
        return yes - no

    odds = (odds_of_yes(FAKE_QUESTION) - odds_of_yes(REAL_QUESTION)) / 2
    assert verdict.p_fake == pytest.approx(1 / (1 + math.exp(-odds)), abs=1e-4)
    assert verdict.label == ("generated" if verdict.p_fake > 0.5 else "real")
    assert not verdict.calibrated
    assert verdict.model == str(model_folder)


def test_the_runs_calibration_is_used(model_folder: Path, photo: Image.Image) -> None:
    plain = Detector(str(model_folder))(photo)
    calibration = Calibration(temperature=4.0, threshold=0.5, unsure_low=0.0, unsure_high=1.0, n=10)
    calibration.save(model_folder)
    try:
        verdict = Detector(str(model_folder))(photo)
    finally:
        (model_folder / "calibration.json").unlink()
    odds = math.log(plain.p_fake / (1 - plain.p_fake))
    assert verdict.p_fake == pytest.approx(1 / (1 + math.exp(-odds / 4)), abs=1e-4)
    assert (verdict.label, verdict.calibrated) == ("unsure", True)


def test_a_verdict_answers_questions(model_folder: Path, photo: Image.Image, tmp_path: Path) -> None:
    detector = Detector(str(model_folder))
    photo.save(tmp_path / "photo.png")
    assert detector(tmp_path / "photo.png").ask("What?", 8) == detector.ask(photo, "What?", 8)
    with pytest.raises(UserError, match="question is empty"):
        detector.ask(photo, "  ")


@pytest.mark.parametrize(("content", "message"), [(b"", "empty"), (b"not an image", "not_an_image"), (None, "no such")])
def test_unreadable_files_are_refused(content, message, model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        Detector(str(model_folder))(path)
