from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vlm_detect.benchmark.flips import attack_lines, attack_tables, calls_generated
from vlm_detect.benchmark.item_scores import ItemScore
from vlm_detect.benchmark.options import RobustnessOptions
from vlm_detect.benchmark.perturb import CURVES, TIERS, Condition
from vlm_detect.benchmark.robustness import Answered, chosen, curve_figures, robustness
from vlm_detect.errors import UserError
from vlm_detect.records import Result
from vlm_detect.stats.calibration import Calibration

TIER = {condition.name: condition for condition in TIERS}


def noise_image(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_tiers_have_their_fixed_meaning() -> None:
    image = noise_image(1000, 500)
    assert list(TIER) == ["clean", "web", "hard", "thumb", "typographic", "hard_photos"]
    assert TIER["clean"].apply(image, "a").tobytes() == image.tobytes()
    assert TIER["web"].apply(image, "a").size == (768, 384)
    assert TIER["hard"].apply(image, "a").size == (512, 256)
    assert TIER["thumb"].apply(image, "a").size == (128, 64)
    small = noise_image(40, 20)
    assert TIER["thumb"].apply(small, "a").size == (40, 20)  # never up
    assert TIER["web"].apply(small, "a").tobytes() != small.tobytes()  # compressed all the same


@pytest.mark.parametrize("condition", CURVES, ids=lambda condition: condition.name)
def test_every_condition_changes_an_image_as_its_seed_determines(condition: Condition) -> None:
    image = noise_image(60, 40)
    changed = condition.apply(image, "a")
    assert changed.tobytes() != image.tobytes()
    assert changed.mode == "RGB"
    assert changed.tobytes() == condition.apply(image, "a").tobytes()
    if condition.family not in ("crop", "screenshot"):
        assert changed.size == image.size
    if condition.family == "noise":
        assert changed.tobytes() != condition.apply(image, "b").tobytes()
    assert condition.apply(Image.new("RGB", (1, 1)), "a").size


@pytest.mark.parametrize("name", ["typographic", "hard_photos"])
def test_a_tier_of_variants_uses_each_and_records_which(name: str) -> None:
    image, condition = noise_image(80, 60), TIER[name]
    seeds = [f"{i}.png" for i in range(120)]
    taken = {condition.variant(seed): seed for seed in seeds}
    assert set(taken) == set(condition.variants)
    for variant, seed in taken.items():
        changed = condition.apply(image, seed)
        assert changed.size == image.size
        assert changed.tobytes() == condition.apply(image, seed).tobytes() != image.tobytes()
        alone = Condition("tier", name, variants=dict.fromkeys(condition.variants, condition.variants[variant]))
        assert alone.apply(image, seed).tobytes() == changed.tobytes()
    assert TIER["web"].variant("a") == ""


def test_conditions_by_name() -> None:
    assert [one.name for one in chosen(["tiers"])] == list(TIER)
    assert [one.name for one in chosen(["jpeg_50", "typographic"])] == ["clean", "typographic", "jpeg_50"]
    assert chosen(["all"]) == [*TIERS, *CURVES]
    with pytest.raises(UserError, match="--conditions night: unknown; choose from all, tiers"):
        RobustnessOptions(benchmark="b", conditions=["night"])


def scores(shift_real: float = 0.0, shift_fake: float = 0.0) -> dict[str, ItemScore]:
    found = {}
    for i in range(20):
        fake = i % 2 == 1
        p = (0.8 + shift_fake if fake else 0.2 + shift_real) + i / 1000
        said = p >= 0.5
        found[f"i{i}"] = ItemScore(f"i{i}", "true_false", f"g{i}", "x", "", fake, p, said, said == fake, True, ())
    return found


def test_a_model_that_judges_the_treatment_fails_on_one_class_only() -> None:
    # Everything that was compressed looks generated to it.
    answered = [Answered(TIER["clean"], scores()), Answered(TIER["web"], scores(0.6, 0.1))]
    found = robustness(answered, resamples=50)
    assert found["clean"]["both"]["balanced_accuracy"] == found["clean"]["real_only"]["balanced_accuracy"] == 1
    assert found["web"]["both"]["balanced_accuracy"] == 0.5
    assert found["web"]["real_only"]["balanced_accuracy"] == 0.5
    assert found["web"]["generated_only"]["balanced_accuracy"] == 1
    assert found["web"]["real_only"]["auroc"] < found["web"]["both"]["auroc"] == 1


def test_curves_are_plotted_by_family() -> None:
    jpeg = [condition for condition in CURVES if condition.family == "jpeg"]
    found = robustness([Answered(TIER["clean"], scores()), *(Answered(c, scores(0.1)) for c in jpeg)], resamples=20)
    (picture,) = curve_figures(found)
    assert picture.caption == "Jpeg"
    assert "JPEG quality: 95: 1.00" in picture.alt


def test_text_flips_verdicts_in_the_direction_that_it_names() -> None:
    """A model that believes every text: photos flip where it says generated, generated images where it says real."""
    clean = scores()
    variants = {id_: "real_claim" if i % 4 < 2 else "generated_claim" for i, id_ in enumerate(clean)}

    def believing(score: ItemScore) -> ItemScore:
        said = variants[score.id] == "generated_claim"
        return replace(score, p_fake=0.9 if said else 0.1, said_fake=said)

    read = {id_: believing(score) for id_, score in clean.items()}
    found = robustness([Answered(TIER["clean"], clean), Answered(TIER["typographic"], read, variants)], resamples=50)
    turned = found["typographic"]["flips"]
    assert (turned["to_real"]["n"], turned["to_real"]["rate"]) == (10, 0.5)
    assert (turned["to_generated"]["n"], turned["to_generated"]["rate"]) == (10, 0.5)
    assert 0 < turned["to_real"]["ci95"][0] < 0.5 < turned["to_real"]["ci95"][1] < 1
    by_variant = turned["by_variant"]
    assert (by_variant["real_claim"]["to_real"]["rate"], by_variant["real_claim"]["to_generated"]["rate"]) == (1, 0)
    assert by_variant["generated_claim"]["to_generated"]["rate"] == 1
    assert "flips" not in found["clean"]
    (line,) = attack_lines(found)
    assert line.startswith("typographic: from generated to real 0.500 [")


def test_false_alarms_are_counted_on_photos_only() -> None:
    clean = scores()
    variants = {id_: "night" if i % 4 else "grey" for i, id_ in enumerate(clean) if not clean[id_].is_fake}
    dark = {
        id_: replace(score, said_fake=True, p_fake=0.9) if variants.get(id_) == "night" else score
        for id_, score in clean.items()
    }
    found = robustness([Answered(TIER["clean"], clean), Answered(TIER["hard_photos"], dark, variants)], resamples=50)
    alarms = found["hard_photos"]["false_alarms"]
    assert (alarms["n"], alarms["rate"], alarms["clean"]["rate"]) == (10, 0.5, 0)
    assert {name: one["rate"] for name, one in alarms["by_variant"].items()} == {"grey": 0, "night": 1}
    assert found["hard_photos"]["flips"]["to_real"]["n"] == 0  # generated images are not asked about
    (table,) = attack_tables(found)
    assert [(row["name"], row["n"]) for row in table["rows"]] == [("grey", 5), ("night", 5)]
    assert attack_lines(found)[0].startswith("hard_photos: photos called generated 0.500 [")


def test_the_threshold_of_the_run_is_used() -> None:
    row = Result(
        *("i", "yes_no", "logprob", "fake", 0, "?", ["Yes.", "No."], "Yes.", "Yes.", "Yes.", True),
        *(0.5, [-0.7, -0.7], [1, 1], True, "g", "x"),
    )
    score = ItemScore("i", "yes_no", "g", "x", "", True, 0.5, True, 1, True, (row,))
    assert calls_generated(score, None)
    assert calls_generated(score, Calibration())  # nothing was fitted
    assert not calls_generated(score, Calibration(threshold=0.6, n=9))
    assert calls_generated(score, Calibration(threshold=0.4, n=9))
