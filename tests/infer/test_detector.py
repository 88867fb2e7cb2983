"""The detector's verdicts: both polarities, the run's calibration, and files that cannot be judged."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.factories import tiny_vlm
from vlm_detect import Detector
from vlm_detect.apps.scan_options import MAX_VIEWS
from vlm_detect.errors import UserError
from vlm_detect.images.views import VIEWS, views
from vlm_detect.infer.detector import Verdict
from vlm_detect.infer.picture import open_picture
from vlm_detect.infer.reference import score_plain
from vlm_detect.infer.verdict import Odds, contradictions, contradicts
from vlm_detect.infer.witnesses import Witnesses, WitnessScores
from vlm_detect.measures.calibration import fit_calibration
from vlm_detect.measures.registry import measure_image
from vlm_detect.models.moondream.family import MoondreamVLM
from vlm_detect.models.regions import Box
from vlm_detect.questions.ask import EXPLAIN_QUESTION, FAKE_QUESTION, REAL_QUESTION
from vlm_detect.stats.calibration import Calibration


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

    by_question = odds_of_yes(FAKE_QUESTION), -odds_of_yes(REAL_QUESTION)
    assert verdict.odds.polarities == pytest.approx(by_question, abs=1e-4)
    odds = sum(by_question) / 2
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
    assert verdict.why_unsure == verdict.to_json()["why_unsure"] == "p_fake lies in the unsure band, 0.00 to 1.00"
    assert plain.why_unsure is None
    assert (plain.reliable, plain.max_fpr) == (True, None)
    assert verdict.log_odds == pytest.approx(odds, abs=1e-4)
    assert (verdict.caveat, plain.calibrated) == ("", False)
    assert (
        plain.to_json()["caveat"]
        == f"{plain.model} was never finetuned or calibrated to tell generated images from photos"
    )


def test_a_finetuned_model_without_a_calibration_has_a_caveat(model_folder: Path, tmp_path: Path) -> None:
    run = shutil.copytree(model_folder, tmp_path / "run")
    (run / "run.json").write_text("{}")
    assert "was never calibrated: p_fake ranks images" in Detector(str(run)).caveat


def test_one_image_or_a_list_of_them_in_every_form(vlm: MoondreamVLM, photo: Image.Image, tmp_path: Path) -> None:
    detector = Detector(vlm)
    photo.save(tmp_path / "photo.png")
    pixels = np.asarray(photo)
    opaque = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    data = (tmp_path / "photo.png").read_bytes()
    forms = [photo, pixels, opaque, data, tmp_path / "photo.png", str(tmp_path / "photo.png"), open_picture(data)]
    alone = detector(photo)
    assert isinstance(alone, Verdict)
    for several in (detector(forms), detector(tuple(forms)), detector.judge(forms)):
        assert [verdict.p_fake for verdict in several] == pytest.approx([alone.p_fake] * len(forms), abs=1e-5)
    assert detector([]) == []
    # A stack of pixels is no list of images that could be meant: what is wrong with it is said.
    with pytest.raises(UserError, match=r"shape \(2, 20, 30, 3\)"):
        detector(np.stack([pixels, pixels]))


def by_width(monkeypatch: pytest.MonkeyPatch, *, below: int = 0) -> None:
    """A model that takes everything narrower than `below` pixels for generated."""

    def read(engine: object, images: list[Image.Image]) -> list[Odds]:
        return [Odds((odds := 4.0 if image.width < below else -4.0, odds), 0.0) for image in images]

    monkeypatch.setattr("vlm_detect.infer.detector.read_odds", read)


def test_a_verdict_that_depends_on_the_copies_is_unsure(
    model_folder: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_width(monkeypatch, below=28)
    small = Image.new("RGB", (20, 20))
    found, steady = Detector(str(model_folder), views=3).judge([photo, small])
    assert (found.label, found.views) == ("unsure", 3)
    assert found.why_unsure == (
        "The verdict depends on the encoding: real as it is, "
        "generated when scaled to 0.75, generated when cropped to 0.9"
    )
    assert found.to_json()["views"] == 3
    assert (steady.label, steady.why_unsure, steady.views) == ("generated", None, 3)
    alone = Detector(str(model_folder), views=1)(photo)  # JPEG alone leaves the width
    assert (alone.label, alone.views) == ("real", 1)
    assert Detector(str(model_folder))(photo).label == "real"


def test_novelty_of_a_copy_does_not_affect_the_image(
    model_folder: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    def strange_if_small(witnesses: Witnesses, images: list[Image.Image]) -> list[WitnessScores]:
        return [WitnessScores({}, 0.001 if image.width < 28 else 1.0) for image in images]

    by_width(monkeypatch)
    monkeypatch.setattr(Witnesses, "others", strange_if_small)
    detector = Detector(str(model_folder), views=3)
    assert (detector(photo).label, detector(photo).why_unsure) == ("real", None)
    assert "unlike anything" in (detector(Image.new("RGB", (20, 20))).why_unsure or "")


def test_a_copy_matches_its_name(photo: Image.Image) -> None:
    copies = dict(views(photo, 6))
    assert len(copies) == len(VIEWS) == MAX_VIEWS == 6
    assert {name: copy.size for name, copy in copies.items() if copy.size != photo.size} == {
        "scaled to 0.75": (22, 15),
        "cropped to 0.9": (27, 18),
        "scaled to 0.5": (15, 10),
        "cropped to 0.75": (22, 15),
    }
    pixels = np.asarray(photo)
    assert np.array_equal(np.asarray(copies["cropped to 0.9"]), pixels[1:19, 2:29])
    assert copies["JPEG 75"].tobytes() != photo.tobytes() != copies["JPEG 50"].tobytes()
    assert [name for name, _ in views(photo, 2)] == ["JPEG 75", "scaled to 0.75"]


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


def test_an_explanation_begins_with_its_verdict(model_folder: Path, photo: Image.Image) -> None:
    detector = Detector(str(model_folder))
    verdict = detector(photo)
    explanation = verdict.explain(8)
    beginning = "AI-generated." if verdict.label == "generated" else "Real."
    assert explanation.startswith(beginning)
    assert explanation == "".join(detector.stream_explanation(photo, verdict.label, 8))
    prompt = detector.engine.vlm.question_ids(EXPLAIN_QUESTION)
    under = [*prompt, *detector.engine.vlm.answer_ids(beginning)[:-1]]
    ((rest,),) = detector.engine.continue_prompts([photo], [[under]], 8)
    assert explanation == f"{beginning} {rest}"
    unsure = "".join(detector.stream_explanation(photo, "unsure", 8))
    assert unsure == detector.ask(photo, EXPLAIN_QUESTION, 8)


def test_explanations_of_a_batch_equal_those_alone(model_folder: Path) -> None:
    detector = Detector(str(model_folder))
    sizes = ((20, 30), (48, 16), (30, 20))
    photos = [np.random.default_rng(i).integers(0, 255, (*size, 3), dtype=np.uint8) for i, size in enumerate(sizes)]
    verdicts = detector.judge(photos)
    verdicts.append(replace(verdicts[0], label="unsure"))
    assert detector.explanations(verdicts, 8) == [verdict.explanation(8) for verdict in verdicts]
    assert detector.explanations([]) == []
    context = detector.engine.vlm.context
    assert len(detector.explanations(verdicts[:1], 2 * context)[0].text) > 8, "a limit beyond the context is an error"


def test_pieces_join_to_the_answer(model_folder: Path, photo: Image.Image) -> None:
    detector = Detector(str(model_folder))
    ((answer,),) = detector.engine.generate([photo], [["What?"]], 40)
    assert "".join(detector.stream_answer(photo, "What?", 40)) == answer == detector.ask(photo, "What?", 40)


def test_a_verdict_finds_things_and_looks_at_them_again(model_folder: Path, photo: Image.Image) -> None:
    detector = Detector(str(model_folder))
    verdict = detector(photo)
    boxes = verdict.detect("dog", max_objects=2)
    assert boxes == detector.engine.detect([photo], [["dog"]], max_objects=2)[0][0]
    assert len(verdict.point("dog", max_objects=3)) == 3
    box = Box(0.5, 0.25, 0.9, 0.75)
    closer = verdict.look_at(box, margin=0)
    assert closer.odds == detector(photo.crop((15, 5, 27, 15))).odds
    assert not closer.calibrated
    about = [verdict.ask("What is it?", 8, references) for references in ([], [(0.1, 0.2)], [box])]
    assert len(set(about)) == 3, "a reference changes nothing"
    assert verdict.reason("What is it?", 4) == detector.engine.reason([photo], [["What is it?"]], 4)[0][0]


def test_a_question_without_an_image_is_another(model_folder: Path, photo: Image.Image) -> None:
    detector = Detector(str(model_folder))
    assert detector.ask(None, "What is a dog?", 8) != detector.ask(photo, "What is a dog?", 8)


def test_contradictions_are_named() -> None:
    assert contradictions("generated", Odds((2.0, 1.0), 3.0)) == ()
    assert "says Yes both to" in contradictions("generated", Odds((2.0, -1.0), 3.0))[0]
    assert "says No both to" in contradictions("real", Odds((-2.0, 1.0), -3.0))[0]
    assert contradictions("real", Odds((-2.0, -1.0), 3.0)) == ("Asked freely, before any verdict, it says generated",)
    assert contradictions("unsure", Odds((0.1, 0.2), -3.0)) == ()


@pytest.mark.parametrize(
    ("label", "explanation", "expected"),
    [
        ("generated", "AI-generated. Origin: rendered.", False),
        ("generated", "AI-generated. The light is real.", True),
        ("real", "Real. It is fake.", True),
        ("real", "Real. Origin: a camera.", False),
        ("unsure", "It is fake.", False),
    ],
)
def test_an_explanation_that_states_the_other_verdict_contradicts(label, explanation, expected) -> None:
    assert contradicts(label, explanation) is expected


def test_provenance_does_not_affect_the_verdict(model_folder: Path, photo: Image.Image, tmp_path: Path) -> None:
    detector = Detector(str(model_folder))
    info = PngInfo()
    info.add_text("parameters", "a dog, Steps: 20, Sampler: Euler")
    photo.save(tmp_path / "said.png", pnginfo=info)
    said, silent = detector.judge([tmp_path / "said.png", photo])
    assert [fact.claim for fact in said.provenance] == ["generated"]
    assert silent.provenance == ()
    assert said.p_fake == silent.p_fake
    assert json.loads(json.dumps(said.to_json()))["provenance"][0]["source"] == "PNG text"


def test_an_explanation_is_checked_against_the_measures_of_the_run(
    model_folder: Path, tmp_path: Path, monkeypatch
) -> None:
    def noisy(deviation: float, seed: int) -> np.ndarray:
        grey = np.full((32, 32, 3), 128.0)
        return np.clip(grey + np.random.default_rng(seed).normal(0, deviation, grey.shape), 0, 255).astype(np.uint8)

    arrays = [noisy(20, i) for i in range(40)] + [noisy(3, 100 + i) for i in range(40)]
    measured = [measure_image(array) for array in arrays]
    folder = tmp_path / "run"
    shutil.copytree(model_folder, folder)
    fit_calibration(measured, np.arange(80) >= 40, [str(i) for i in range(80)]).save(folder)
    said = "AI-generated. Its noise is weaker than in nine of ten photos of this size. It is a dog."
    monkeypatch.setattr(Verdict, "explain", lambda self, *_: said)

    detector = Detector(str(folder))
    quiet, loud = (detector(Image.fromarray(noisy(deviation, 7))) for deviation in (3, 40))
    assert [reason.status for reason in quiet.explanation().reasons[:2]] == ["confirmed", "unchecked"]
    assert [reason.status for reason in loud.explanation().reasons[:2]] == ["contradicted", "unchecked"]
    assert {reason.status for reason in quiet.explanation(only_confirmed=True).reasons} == {"confirmed"}
    (alone, _) = Detector(str(model_folder))(Image.fromarray(noisy(3, 7))).explanation().reasons[:2]
    assert alone.status == "unchecked", "a run without measures confirms nothing"
