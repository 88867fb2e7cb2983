"""The witnesses of a run: what is weighed, what is refused, and what their disagreement does to a verdict."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import expit

from tests.factories import tiny_vlm
from tests.train.toys import save_tiny_model, toy_image
from vlm_detect import Detector
from vlm_detect.errors import UserError
from vlm_detect.infer.engine import Engine
from vlm_detect.infer.fusion import Fusion, Witness
from vlm_detect.infer.head import FILE, Head, probe_image
from vlm_detect.infer.pooled import pooled_features
from vlm_detect.infer.verdict import log_odds
from vlm_detect.infer.witnesses import Expert, Witnesses
from vlm_detect.models.cnn.configuration import CnnConfig
from vlm_detect.models.cnn.model import CnnForDetection
from vlm_detect.stats.calibration import Calibration

VLM = tiny_vlm()


def save_cnn(folder: Path, task: str = "real_fake", classes: tuple[str, str] = ("real", "generated")) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CnnForDetection(
            CnnConfig(arch="flux_small", image_size=8, heads={"verdict": list(classes)}, task=task)
        ).eval().save_pretrained(folder)
    return folder


def toys(n: int, seed: int = 0) -> tuple[list[Image.Image], np.ndarray]:
    rng = np.random.default_rng(seed)
    generated = np.arange(n) % 2 == 1
    return [toy_image(bool(one), rng) for one in generated], generated


@pytest.fixture(scope="module")
def head() -> Head:
    images, generated = toys(40)
    found = Head.fit(pooled_features(VLM, images), generated)
    ordinary = pooled_features(VLM, toys(120, seed=1)[0])
    return found.with_ordinary(ordinary).with_probe(pooled_features(VLM, [probe_image()]))


def make_run(folder: Path, head: Head, fusion: Fusion | None = None) -> Path:
    save_tiny_model(folder)
    head.save(folder)
    fused = fusion or Fusion((Witness("language_model", 0.5), Witness("head", 2.0)), intercept=0.25, n=40)
    fused.save(folder)
    return folder


@pytest.fixture
def run(tmp_path: Path, head: Head) -> Path:
    return make_run(tmp_path / "run", head)


def test_a_verdict_fuses_all_witnesses(run: Path, head: Head) -> None:
    images, _ = toys(6, seed=3)
    own = np.array(log_odds(Engine(VLM), images))
    heads = head.log_odds(pooled_features(VLM, images))
    verdicts = Detector(str(run)).judge(images)
    fused = 0.25 + 0.5 * own + 2 * heads
    np.testing.assert_allclose([verdict.log_odds for verdict in verdicts], fused, rtol=1e-3)
    np.testing.assert_allclose([verdict.p_fake for verdict in verdicts], expit(fused), atol=1e-4)
    said = verdicts[0].to_json()["witnesses"]
    assert {name: one["weight"] for name, one in said.items()} == {"language_model": 0.5, "head": 2.0}
    assert said["head"]["log_odds"] == pytest.approx(heads[0], rel=1e-3)
    assert json.loads(json.dumps(verdicts[0].to_json()))["dissent"] == list(verdicts[0].dissent)
    np.testing.assert_allclose(Witnesses.load(run, Engine(VLM)).log_odds(images), fused, rtol=1e-3)


def test_the_explanation_is_asked_under_the_fused_verdict(tmp_path: Path, head: Head) -> None:
    (image,), _ = toys(1)
    own = log_odds(Engine(VLM), [image])[0]
    against = Fusion((Witness("language_model", 0.0), Witness("head", 0.0)), intercept=-np.sign(own) * 9)
    verdict = Detector(str(make_run(tmp_path / "run", head, against)))(image)
    assert verdict.label == ("real" if own > 0 else "generated")
    assert verdict.explain(4).startswith("Real." if own > 0 else "AI-generated.")


def test_a_run_without_a_fusion_uses_only_its_language_model(tmp_path: Path) -> None:
    (image,), _ = toys(1)
    verdict = Detector(str(save_tiny_model(tmp_path)))(image)
    assert verdict.log_odds == verdict.odds.mean
    assert list(verdict.witnesses) == ["language_model"]
    assert (verdict.novelty_p, verdict.dissent, verdict.why_unsure) == (None, (), None)


def test_a_novel_image_is_unsure_with_a_reason(run: Path) -> None:
    pixels = np.zeros((16, 16, 3), dtype=np.uint8)
    pixels[::2, ::2] = (255, 0, 255)
    strange, (known, *_) = Image.fromarray(pixels), toys(2, seed=1)[0]
    far, near = Detector(str(run)).judge([strange, known])
    assert far.novelty_p is not None
    assert far.novelty_p <= 0.01
    assert far.label == "unsure"
    assert far.why_unsure
    assert "unlike anything" in far.why_unsure
    assert near.novelty_p is not None
    assert near.novelty_p > 0.01
    assert near.label != "unsure"


def test_with_too_few_ordinary_images_nothing_is_novel_and_a_warning_is_given(tmp_path, head, caplog) -> None:
    few = replace(head, ordinary=head.ordinary[:98])
    with caplog.at_level(logging.WARNING):
        verdict = Detector(str(make_run(tmp_path / "run", few)))(Image.new("RGB", (16, 16), (255, 0, 255)))
    assert verdict.novelty_p is None
    assert "98 ordinary images, of which a level of 1 % needs 99" in caplog.text


def test_witnesses_that_disagree_are_named_and_widen_unsure(run: Path) -> None:
    (image,), _ = toys(1, seed=3)
    said = [one.log_odds for one in Detector(str(run))(image).witnesses.values()]
    # An intercept that outweighs both: at least one of them leans against what comes out.
    fusion = Fusion((Witness("language_model", 1.0), Witness("head", 1.0)), intercept=-2 * sum(said))
    found = []
    for disputed in (0.0, 1e9):
        replace(fusion, disputed=disputed).save(run)
        found.append(Detector(str(run))(image))
    assert [verdict.label == "unsure" for verdict in found] == [False, True]
    assert found[0].dissent == found[1].dissent != ()
    assert found[1].why_unsure
    assert found[1].dissent[0].replace("_", " ") in found[1].why_unsure
    assert found[0].why_unsure is None


def test_a_head_of_another_tower_is_refused(tmp_path: Path, head: Head) -> None:
    run = make_run(tmp_path / "run", head)
    other = tiny_vlm(seed=1)
    with pytest.raises(UserError, match="another tower's features"):
        Witnesses.load(run, Engine(other))


def test_rounding_to_another_dtype_is_the_same_tower(run: Path) -> None:
    rounded = tiny_vlm()
    rounded.model.to(torch.bfloat16)
    Witnesses.load(run, Engine(rounded))


def test_an_expert_uses_its_own_calibration_and_can_be_replaced(tmp_path: Path, head: Head) -> None:
    cnn = save_cnn(tmp_path / "cnn")
    Calibration(temperature=4.0, bias=0.5, n=9).save(cnn)
    expert = Expert.load(cnn, Engine(VLM))
    fusion = Fusion((Witness("language_model", 0.0), Witness("expert", 1.0, *expert.source)))
    run = make_run(tmp_path / "run", head, fusion)
    (image,), _ = toys(1)
    raw = expert.detector.scores([image]).odds[0]
    assert Detector(str(run))(image).log_odds == pytest.approx((raw - 0.5) / 4)

    other = save_cnn(tmp_path / "other")
    assert Detector(str(run), expert=str(other))(image).log_odds == pytest.approx(raw)
    (cnn / "model.safetensors").write_bytes(b"changed")
    with pytest.raises(UserError, match="has changed since"):
        Detector(str(run))
    cnn.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="is missing: give its place, or another, with --expert"):
        Detector(str(run))


def test_a_guarantee_holds_only_for_its_expert(tmp_path: Path, head: Head) -> None:
    cnn = save_cnn(tmp_path / "cnn")
    expert = Expert.load(cnn, Engine(VLM))
    for sha256, guaranteed in ((expert.source[1], 0.05), ("0" * 64, None)):
        run = make_run(tmp_path / sha256, head, Fusion((Witness("expert", 1.0, "gone", sha256),)))
        Calibration().fit_photos(np.arange(100.0), 0.05).save(run)
        found = Detector(str(run), expert=str(cnn)).calibration
        assert (found.max_fpr, found.n_real > 0) == (guaranteed, guaranteed is not None)
        assert found.threshold > 0.5  # the operating point stays


@pytest.mark.parametrize(("task", "classes"), [("real_edited", ("real", "edited"))])
def test_an_expert_of_another_task_is_one_line(task, classes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"trained for the task {task}"):
        Expert.load(save_cnn(tmp_path / "cnn", task, classes), Engine(VLM))


def test_an_expert_without_a_weight_is_one_line(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no weight for an expert"):
        Detector(str(run), expert=str(save_cnn(tmp_path / "cnn")))


def test_a_head_other_than_the_weighted_one_is_one_line(run: Path, head: Head) -> None:
    sealed = Fusion((Witness("language_model", 1.0), Witness("head", 1.0, FILE, "0" * 64)))
    sealed.save(run)
    with pytest.raises(UserError, match="has changed since"):
        Detector(str(run))
    (run / FILE).unlink()
    with pytest.raises(UserError, match="is missing"):
        Detector(str(run))
