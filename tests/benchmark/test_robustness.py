import numpy as np
import pytest
from PIL import Image

from vlm_detect.benchmark.perturb import CURVES, TIERS, Condition
from vlm_detect.benchmark.robustness import Answered, curve_figures, robustness
from vlm_detect.benchmark.summary import ItemScore

TIER = {condition.name: condition for condition in TIERS}


def noise_image(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_tiers_have_their_fixed_meaning() -> None:
    image = noise_image(1000, 500)
    assert list(TIER) == ["clean", "web", "hard", "thumb"]
    assert TIER["clean"].apply(image, "a").tobytes() == image.tobytes()
    assert TIER["web"].apply(image, "a").size == (768, 384)
    assert TIER["hard"].apply(image, "a").size == (512, 256)
    assert TIER["thumb"].apply(image, "a").size == (128, 64)
    small = noise_image(40, 20)
    assert TIER["thumb"].apply(small, "a").size == (40, 20)  # never up
    assert TIER["web"].apply(small, "a").tobytes() != small.tobytes()  # compressed all the same


@pytest.mark.parametrize("condition", CURVES, ids=lambda condition: condition.name)
def test_every_condition_changes_an_image_and_its_seed_decides(condition: Condition) -> None:
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


def scores(shift_real: float = 0.0, shift_fake: float = 0.0) -> dict[str, ItemScore]:
    found = {}
    for i in range(20):
        fake = i % 2 == 1
        p = (0.8 + shift_fake if fake else 0.2 + shift_real) + i / 1000
        said = p >= 0.5
        found[f"i{i}"] = ItemScore(f"i{i}", "true_false", f"g{i}", "x", "", fake, p, said, said == fake, True, ())
    return found


def test_a_model_that_judges_the_treatment_falls_on_one_class_alone() -> None:
    # Everything that was compressed looks generated to it.
    answered = [Answered(TIER["clean"], scores()), Answered(TIER["web"], scores(0.6, 0.1))]
    found = robustness(answered, resamples=50)
    assert found["clean"]["both"]["balanced_accuracy"] == found["clean"]["real_only"]["balanced_accuracy"] == 1
    assert found["web"]["both"]["balanced_accuracy"] == 0.5
    assert found["web"]["real_only"]["balanced_accuracy"] == 0.5
    assert found["web"]["generated_only"]["balanced_accuracy"] == 1
    assert found["web"]["real_only"]["auroc"] < found["web"]["both"]["auroc"] == 1


def test_curves_are_drawn_by_family() -> None:
    jpeg = [condition for condition in CURVES if condition.family == "jpeg"]
    found = robustness([Answered(TIER["clean"], scores()), *(Answered(c, scores(0.1)) for c in jpeg)], resamples=20)
    (picture,) = curve_figures(found)
    assert picture.caption == "Jpeg"
    assert "JPEG quality: 95: 1.00" in picture.alt
