"""Every sentence that is written is read back, typical paraphrases are, and what is no plain claim is not."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.measures.factories import natural, noisy
from vlm_detect.measures.calibration import fit_calibration
from vlm_detect.measures.claims import Check, Claim, check_claim, read_claim
from vlm_detect.measures.registry import MEASURES, Measured, measure_image
from vlm_detect.measures.wording import BOUNDS, bound_of, place_of_grid, wordings, write_sentence
from vlm_detect.places import PLACES

SIDES = ("lower", "higher")


@pytest.mark.parametrize("direction", SIDES)
@pytest.mark.parametrize("name", MEASURES)
def test_every_wording_is_parsed_back(name, direction):
    one = MEASURES[name]
    for bound in BOUNDS:
        written = wordings(one, direction, bound)
        assert len(set(written)) == len(written) >= 12
        for sentence in written:
            assert read_claim(sentence) == Claim(name, one.kind, direction, bound)
        for place in PLACES:
            for sentence in random.Random(place).sample(wordings(one, direction, bound, place), 12):
                assert read_claim(sentence) == Claim(name, one.kind, direction, bound, place)


def test_a_sampled_sentence_is_one_of_the_wordings():
    one = MEASURES["noise_evenness"]
    sampled = {write_sentence(one, "lower", 0.9, random.Random(i)) for i in range(400)}
    assert sampled <= set(wordings(one, "lower", 0.9))
    assert len(sampled) > 80
    placed = write_sentence(one, "lower", 0.9, random.Random(0), "top")
    assert placed in wordings(one, "lower", 0.9, "top")


@pytest.mark.parametrize(
    ("sentence", "claim"),
    [
        ("Its noise is weaker than in 94 % of photos of this size.", ("noise_strength", "lower", 0.94, None)),
        ("The noise looks much weaker than in 94 percent of photos.", ("noise_strength", "lower", 0.94, None)),
        ("there is less noise than in nine out of ten photos", ("noise_strength", "lower", 0.9, None)),
        ("This image's noise is clearly patchier than usual.", ("noise_evenness", "lower", 0.5, None)),
        ("It lacks fine detail.", ("fine_detail", "lower", 0.5, None)),
        ("The fine detail is weaker than in most photos, in the top-left corner.",
         ("fine_detail", "lower", 0.5, "upper left")),
        ("The colors are oversaturated.", ("saturation", "higher", 0.5, None)),
        ("Its color saturation is higher than in two thirds of photos.", ("saturation", "higher", 2 / 3, None)),
        ("The edges seem softer than in nearly all photos.", ("sharpness", "lower", 0.95, None)),
        ("The edges are too soft.", ("sharpness", "lower", 0.5, None)),
        ("Its checkerboard pattern is stronger than in 99.5% of photos.", ("pixel_grid", "higher", 0.995, None)),
        ("The spectrum is flatter than in three-quarters of photos.", ("spectral_slope", "lower", 0.75, None)),
        ("It has periodic peaks.", ("spectral_peaks", "higher", 0.5, None)),
        ("The highlights are blown out at the top.", ("light_clipping", "higher", 0.5, "top")),
        ("It looks heavily compressed.", ("blockiness", "higher", 0.5, None)),
    ],
)  # fmt: skip
def test_paraphrases(sentence, claim):
    name, direction, bound, place = claim
    assert read_claim(sentence) == Claim(name, MEASURES[name].kind, direction, bound, place)


@pytest.mark.parametrize(
    "sentence",
    [
        "",
        "AI-generated.",
        "A dog runs on a beach.",
        "The hand has six fingers.",
        "Its noise is not weaker than in 94 % of photos.",
        "Its noise isn't weaker than usual.",
        "Its noise is weaker than in 94 % of generated images.",
        "Its noise is weaker than in AI images.",
        "Its noise is weaker than in 20 % of photos.",  # says nothing: the rest may have less
        "Its noise is weaker than in 120 % of photos.",
        "Its noise is weaker than in 60 % or 90 % of photos.",
        "Its noise is weaker than usual, and its edges are softer.",  # two claims
        "Its noise is weaker, and the noise is stronger.",
        "Its noise is green.",
        "The white-noise is weaker-looking.",
    ],
)
def test_sentences_that_are_not_claims(sentence):
    assert read_claim(sentence) is None


def test_no_two_measures_have_the_same_wording():
    said: dict[tuple[str, str], str] = {}
    for name, one in MEASURES.items():
        assert not set(one.words.lower) & set(one.words.higher)
        for subject in one.words.subjects:
            for predicate in (*one.words.lower, *one.words.higher):
                assert said.setdefault((subject, predicate), name) == name


@pytest.fixture(scope="module")
def photos():
    measured = [measure_image(noisy(natural(seed, 48), 0.01 + 0.0005 * seed, seed)) for seed in range(40)]
    return fit_calibration(measured, [False] * 40, [str(seed) for seed in range(40)])


def test_a_claim_is_checked_against_the_image(photos):
    clean, grainy = natural(50, 48), noisy(natural(50, 48), 0.1)
    weaker = Claim("noise_strength", "noise", "lower", 0.9)
    check = check_claim(weaker, measure_image(clean), photos)
    assert (check.status, check.percentile, check.place) == ("confirmed", 0.0, "unchecked")
    assert check.value == MEASURES["noise_strength"](clean)
    assert check_claim(weaker, measure_image(grainy), photos).status == "contradicted"
    stronger = Claim("noise_strength", "noise", "higher", 0.9)
    assert check_claim(stronger, measure_image(grainy), photos).status == "confirmed"


def test_a_stated_share_has_a_tolerance(photos):
    values = [measure_image(noisy(natural(s, 48), 0.01 + 0.0005 * s, s)).values["noise_strength"] for s in range(40)]
    at_88 = Measured({"noise_strength": float(np.quantile(values, 0.88))}, (48, 48))
    status = {
        bound: check_claim(Claim("noise_strength", "noise", "higher", bound), at_88, photos).status
        for bound in (0.5, 0.75, 0.9, 0.95, 0.99)
    }
    assert status == {
        0.5: "confirmed", 0.75: "confirmed", 0.9: "confirmed", 0.95: "contradicted", 0.99: "contradicted"
    }  # fmt: skip


def test_a_place_is_checked_against_the_map(photos):
    image = natural(50, 48)
    image[:16, 32:] = noisy(image[:16, 32:], 0.4)
    measured = measure_image(image)

    def at(place: str) -> Check:
        return check_claim(Claim("noise_strength", "noise", "higher", 0.5, place), measured, photos)

    assert (at("upper right").status, at("upper right").place) == ("confirmed", "confirmed")
    checked = [at(place).place for place in PLACES]
    assert checked.count("confirmed") == 3
    wrong = PLACES[checked.index("contradicted")]
    assert (at(wrong).status, at(wrong).place) == ("contradicted", "contradicted")
    without_map = Claim("noise_evenness", "noise", "lower", 0.5, "top")
    assert check_claim(without_map, measured, photos).place == "unchecked"
    without_pixels = Measured(measured.values, measured.size)
    assert (
        check_claim(Claim("noise_strength", "noise", "higher", 0.5, "top"), without_pixels, photos).place == "unchecked"
    )


def test_claims_that_cannot_be_checked(photos):
    claim = Claim("noise_strength", "noise", "lower", 0.9)
    assert check_claim(claim, measure_image(natural(1, 256)), photos) == Check("unchecked")  # no photo of that size
    assert check_claim(claim, Measured({}, (48, 48)), photos) == Check("unchecked")
    assert check_claim(Claim("unheard_of", "noise", "lower"), measure_image(natural(1, 48)), photos) == Check(
        "unchecked"
    )


def test_shares_in_wordings():
    assert [bound_of(share) for share in (0.5, 0.74, 0.75, 0.89, 0.9, 1.0)] == [None, None, 0.75, 0.75, 0.9, 0.9]


def test_a_place_is_named_if_it_stands_out():
    grid = np.zeros((3, 3))
    assert place_of_grid(grid, "higher") is None
    grid[2, 1] = 1
    assert place_of_grid(grid, "higher") == "bottom"
    assert place_of_grid(grid, "lower") is None
    assert place_of_grid(-grid, "lower") == "bottom"
    noise = [place_of_grid(np.random.default_rng(i).normal(size=(3, 3)), "higher") for i in range(300)]
    assert 0.1 < np.mean([place is not None for place in noise]) < 0.35
