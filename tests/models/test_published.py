"""The sizes of published models: as many weights as the Hub counts, and image tokens as their processors make them."""

from __future__ import annotations

import pytest

from tests.models.full_size import full_size
from vlm_detect.models.generic.published import PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_shapes_have_the_weights_and_the_image_has_the_cost_that_are_stated(name: str) -> None:
    vlm = full_size(name)
    assert sum(weight.numel() for weight in vlm.model.parameters()) == PUBLISHED[name].n_weights
    assert vlm.image_cost == PUBLISHED[name].image
