"""Pipelines of every way of being called draw by their signature: guidance, prompt, size and autoencoder alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.data.factories import photo
from tests.generate.tiny_pipelines import PIPELINES, tiny_pipeline
from vlm_detect.errors import UserError
from vlm_detect.generate.options import Sampling
from vlm_detect.generate.pipelines import call_of
from vlm_detect.generate.renderer import Renderer

SIZE = 64, 32
SAMPLING = Sampling(steps=2, guidance=5.0, max_sequence_length=24)
GUIDANCE = {"QwenImagePipeline": "true_cfg_scale"}


def rendered(renderer: Renderer, *texts: str, seed: int = 0) -> list[np.ndarray]:
    seeds = [seed + i for i in range(len(texts))]
    return [np.asarray(image) for image in renderer.render(renderer.encode_prompts(texts), seeds, SIZE)]


@pytest.mark.parametrize("name", list(PIPELINES))
def test_each_pipeline_renders_as_requested(name: str) -> None:
    pipeline = tiny_pipeline(name)
    renderer = Renderer.from_pipeline(pipeline, SAMPLING, "cpu")
    assert renderer.native_side % renderer.size_multiple == 0
    first, second = rendered(renderer, "a red car", "two cats on a sofa")
    assert first.shape == (SIZE[1], SIZE[0], 3)
    assert not np.array_equal(first, second)
    again, _ = rendered(renderer, "a red car", "two cats on a sofa")
    assert np.array_equal(first, again)
    assert not np.array_equal(first, rendered(renderer, "a red car", "two cats on a sofa", seed=7)[0])

    assert call_of(pipeline).guidance == GUIDANCE.get(name, "guidance_scale")
    unguided = Renderer.from_pipeline(pipeline, Sampling(steps=2, guidance=1.0, max_sequence_length=24), "cpu")
    assert not np.array_equal(first, rendered(unguided, "a red car", "two cats on a sofa")[0])


@pytest.mark.parametrize("name", list(PIPELINES))
def test_each_autoencoder_reconstructs(name: str) -> None:
    renderer = Renderer.from_pipeline(tiny_pipeline(name), SAMPLING, "cpu")
    photos = [photo(i).resize(SIZE) for i in range(2)]
    twins = renderer.reconstruct(photos)
    assert [twin.size for twin in twins] == [SIZE, SIZE]
    assert not np.array_equal(*map(np.asarray, twins))
    assert all(np.array_equal(one, other) for one, other in zip(twins, renderer.reconstruct(photos), strict=True))
    assert np.array_equal(twins[0], renderer.reconstruct(photos[:1])[0])  # an image at a time, whatever the batch


def test_a_pipeline_without_text_input_is_refused_with_what_it_lacks() -> None:
    class Upscaler:
        def __call__(self, image: Any, num_inference_steps: int = 4, generator: Any = None) -> None: ...

    with pytest.raises(
        UserError, match="Upscaler cannot render twins: its call takes no prompt, width, height, output"
    ):
        call_of(Upscaler())
