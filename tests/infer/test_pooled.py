"""Features of a tower for heads: those of an image alone whatever it is read with, and no second reading."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.factories import tiny_vlm
from tests.models.test_tinyllava_golden import released
from tests.models.tiny_chat import ARCHITECTURES, save_tiny
from vlm_detect.errors import UserError
from vlm_detect.infer.engine import Ask, Engine
from vlm_detect.infer.pooled import connector_of, pooled_features
from vlm_detect.models.base import VLM
from vlm_detect.models.registry import load_vlm

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
ASKS = [Ask("Is it AI?", ("Yes.", "No."))]


@pytest.fixture(scope="module", params=["moondream", "tinyllava", *ARCHITECTURES])
def vlm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VLM:
    if request.param == "moondream":
        return tiny_vlm()
    folder = tmp_path_factory.mktemp("models") / request.param
    if request.param == "tinyllava":
        return load_vlm(str(released(folder, "square")))
    return load_vlm(str(save_tiny(request.param, folder)))


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(16, 16), (40, 20), (16, 16), (30, 40), (40, 20)]
    return [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def test_features_are_those_of_each_image_alone(vlm: VLM, images) -> None:
    alone = np.concatenate([pooled_features(vlm, [image]) for image in images])
    together = pooled_features(vlm, images)
    assert together.dtype == np.float32
    assert together.shape[0] == len(images)
    np.testing.assert_allclose(together, alone, atol=1e-4)
    assert np.abs(together[0] - together[2]).max() > 1e-3, "two images have one description"


def test_an_image_is_encoded_once_for_language_model_and_head(vlm: VLM, images) -> None:
    connector = connector_of(vlm)
    assert connector is not None
    calls = []
    hook = connector.register_forward_hook(lambda *_: calls.append(1))
    engine = Engine(vlm, cache_bytes=0)
    engine.score(images, [ASKS] * len(images))
    once = len(calls)
    features = engine.pooled(images)
    hook.remove()
    if vlm.supports_prefix_cache:
        assert len(calls) == once
    np.testing.assert_allclose(features, pooled_features(vlm, images), atol=1e-4)


def test_a_model_without_a_connector_is_one_line(images) -> None:
    vlm = tiny_vlm()
    vlm.connectors = ()
    Engine(vlm).score(images[:1], [ASKS])  # which needs none
    with pytest.raises(UserError, match="--backbone"):
        pooled_features(vlm, images[:1])
