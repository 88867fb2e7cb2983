"""The evidence map: regions cover the grid, hiding is what it says, and a planted cue is found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.factories import tiny_vlm
from vlm_detect.infer.engine import Ask, CandidateScore, Engine
from vlm_detect.infer.evidence import PIXEL_GRID, EvidenceMap, evidence_map, hide, paint_over, regions
from vlm_detect.infer.reference import score_plain
from vlm_detect.infer.verdict import log_odds
from vlm_detect.models.moondream.family import MoondreamVLM
from vlm_detect.questions.ask import NO, VERDICT_QUESTIONS, YES


@pytest.fixture(scope="module")
def vlm() -> MoondreamVLM:
    return tiny_vlm()


@pytest.fixture
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 255, (20, 30, 3), dtype=np.uint8))


@pytest.mark.parametrize(("rows", "columns", "across"), [(27, 27, 9), (4, 4, 9), (1, 9, 3), (8, 8, 2)])
def test_four_regions_cover_every_place(rows: int, columns: int, across: int) -> None:
    covered = np.zeros((rows, columns), dtype=int)
    found = regions(rows, columns, across)
    for region in found:
        covered[region] += 1
    assert (covered == 4).all()
    assert len(found) <= max(across, 2) ** 2


def test_a_hidden_region_holds_the_mean_and_the_rest_is_untouched() -> None:
    features = torch.arange(16.0).view(8, 2)
    (copy,) = hide(features, (2, 4), [(slice(0, 1), slice(1, 3))])
    assert copy[[1, 2]].tolist() == [features.mean(0).tolist()] * 2
    assert copy[[0, 3, 4, 5, 6, 7]].equal(features[[0, 3, 4, 5, 6, 7]])


def test_the_map_equals_one_plain_pass_per_region(vlm: MoondreamVLM, photo: Image.Image) -> None:
    engine = Engine(vlm, batch_images=3)
    found = evidence_map(engine, photo, across=2)
    (features,) = engine.encode([photo])
    loss, count = np.zeros(vlm.feature_grid), np.zeros(vlm.feature_grid)
    for region in regions(*vlm.feature_grid, 2):
        embeds = hide(features, vlm.feature_grid, [region])
        loss[region] += found.log_odds - plain_odds(vlm, photo, embeds)
        count[region] += 1
    assert found.log_odds == pytest.approx(log_odds(engine, [photo])[0], abs=1e-5)
    np.testing.assert_allclose(found.values, loss / count, atol=1e-4)
    assert np.abs(found.values).max() > 1e-3


def plain_odds(vlm: MoondreamVLM, photo: Image.Image, embeds: torch.Tensor) -> float:
    encode = vlm.encode
    vlm.encode = lambda prepared: embeds  # type: ignore[method-assign]
    try:
        odds = []
        for question in VERDICT_QUESTIONS.values():
            yes, no = (score_plain(vlm, photo, question, answer).logprob for answer in (YES, NO))
            odds.append(yes - no)
    finally:
        vlm.encode = encode  # type: ignore[method-assign]
    return (odds[0] - odds[1]) / 2


def test_the_peak_is_where_the_cue_was_planted(vlm: MoondreamVLM, photo: Image.Image) -> None:
    """A stand-in engine whose log-odds are the sum of the features at one place: only hiding that one matters."""

    class Cue(Engine):
        def encode(self, images):
            features = torch.zeros(1, 16, 1)
            features[0, 6] = 16.0  # row 1, column 2 of a 4x4 grid
            return features

        def prefixes(self, images):
            return list(self.encode(images))

        def prefill(self, embeds):
            return list(embeds)

        def score_prefixes(self, prefixes, asks):
            assert asks[0] == [Ask(question, (YES, NO)) for question in VERDICT_QUESTIONS.values()]
            odds = [float(features[6]) for features in prefixes]
            return [[_scores(value), _scores(-value)] for value in odds]

    found = evidence_map(Cue(vlm), photo, across=5)
    assert found.peak == (2.5 / 4, 1.5 / 4)
    assert found.log_odds == 16


def _scores(odds: float):
    return [CandidateScore(odds, 1), CandidateScore(0.0, 1)]


def test_the_overlay_shows_generated_in_orange_and_real_in_blue() -> None:
    values = np.zeros((8, 8), dtype=np.float32)
    values[1, 1], values[6, 6] = 2.0, -2.0
    evidence = EvidenceMap(values, 0.0)
    shown = np.asarray(evidence.overlay(Image.new("RGB", (80, 80), "white"))).astype(int)
    red_minus_blue = shown[..., 0] - shown[..., 2]
    assert red_minus_blue[15, 15] > 100
    assert red_minus_blue[65, 65] < -80
    assert shown[40, 40].tolist() == [255, 255, 255]
    assert evidence.png((80, 80)).startswith(b"\x89PNG")


class Placeless(MoondreamVLM):
    feature_grid = None  # type: ignore[assignment]


def test_without_places_the_image_is_painted_over(photo: Image.Image) -> None:
    vlm = tiny_vlm()
    engine = Engine(Placeless(vlm.model, vlm.processor, "x"), batch_images=3)
    found = evidence_map(engine, photo, across=3)
    loss, count = np.zeros(PIXEL_GRID), np.zeros(PIXEL_GRID)
    for region in regions(*PIXEL_GRID, 3):
        loss[region] += found.log_odds - log_odds(engine, [paint_over(photo, PIXEL_GRID, region)])[0]
        count[region] += 1
    np.testing.assert_allclose(found.values, loss / count, atol=1e-4)
    assert np.abs(found.values).max() > 1e-3


def test_painting_over_changes_its_region_alone(photo: Image.Image) -> None:
    before = np.asarray(photo)
    after = np.asarray(paint_over(photo, (4, 5), (slice(2, 6), slice(0, 2))))
    assert (after[10:, :12] == before.reshape(-1, 3).mean(0).round()).all()
    assert (after[:10] == before[:10]).all()
    assert (after[:, 12:] == before[:, 12:]).all()
