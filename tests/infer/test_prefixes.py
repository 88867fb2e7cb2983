"""A prefix is held once: by the prefixes of a batch, by the cache of its scoring and decoding, and by the memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.cache_utils import DynamicCache

from tests.factories import tiny_vlm
from tests.train.toys import toy_image
from vlm_detect.infer.asks import Ask
from vlm_detect.infer.engine import Engine
from vlm_detect.infer.packing import Packed, pad_packed
from vlm_detect.infer.prefixes import Prefix, PrefixMemory, prefill, stack_prefixes, stacked
from vlm_detect.infer.reference import generate_plain, score_plain
from vlm_detect.models.continuation import forward
from vlm_detect.models.registry import load_vlm


@pytest.fixture(scope="module", params=["moondream", "tinyllava"])
def vlm(request):
    return tiny_vlm() if request.param == "moondream" else load_vlm("tinyllava-nano", device="cpu")


def held(*tensors: torch.Tensor) -> int:
    """Bytes of the storages of tensors, each counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def of(layers: list[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
    return [tensor for pair in layers for tensor in pair]


def of_cache(cache) -> list[torch.Tensor]:
    return [tensor for layer in cache.layers for tensor in (*layer.prefix, layer.keys, layer.values)]


def prefixes_of(vlm, count: int) -> list[Prefix]:
    embeds = vlm.encode(vlm.prepare([image_of(seed) for seed in range(count)]))
    return prefill(vlm, embeds.detach())


def image_of(seed: int):
    return toy_image(bool(seed % 2), np.random.default_rng(seed), 32)


@torch.inference_mode()
def test_a_batch_shares_memory_with_its_cache(vlm) -> None:
    prefixes = prefixes_of(vlm, 4)
    once = sum(prefix.nbytes for prefix in prefixes)
    everything = [tensor for prefix in prefixes for tensor in of(prefix.layers)]
    assert held(*everything) == once
    cache = stack_prefixes(prefixes)
    assert held(*everything, *of_cache(cache)) == once
    assert cache.get_seq_length() == len(prefixes[0])
    row = Packed()
    row.add(vlm.question_ids("Is it?"))
    ids, positions, mask = pad_packed([row] * 4, len(prefixes[0]), vlm.eos_token_id)
    forward(vlm, ids, positions, mask, cache, None)
    text = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
    assert cache.get_seq_length() == len(prefixes[0]) + len(row.ids)
    assert held(*everything, *of_cache(cache)) == once + text < 1.9 * once


@torch.inference_mode()
def test_other_orders_are_copied_and_parts_of_a_batch_are_not(vlm) -> None:
    prefixes = prefixes_of(vlm, 4)
    once = sum(prefix.nbytes for prefix in prefixes)
    everything = [tensor for prefix in prefixes for tensor in of(prefix.layers)]
    assert held(*everything, *of(stacked(prefixes[1:3]))) == once
    for chosen in ([1, 0], [0, 0], [0, 2]):
        some = stacked([prefixes[i] for i in chosen])
        assert held(*everything, *of(some)) == once + 2 * prefixes[0].nbytes
        for (keys, values), layer in zip(some, range(len(some)), strict=True):
            for row, i in enumerate(chosen):
                assert torch.equal(keys[row : row + 1], prefixes[i].layers[layer][0])
                assert torch.equal(values[row : row + 1], prefixes[i].layers[layer][1])


@torch.inference_mode()
def test_the_cache_reads_the_same_as_transformers_own(vlm) -> None:
    """Prompts of two lengths one after the other, and the prefixes are as they were."""
    prefixes = prefixes_of(vlm, 3)
    before = [tensor.clone() for prefix in prefixes for tensor in of(prefix.layers)]
    row = Packed()
    row.add(vlm.question_ids("Is it?"))
    ids, positions, mask = pad_packed([row] * 3, len(prefixes[0]), vlm.eos_token_id)
    own, plain = stack_prefixes(prefixes), DynamicCache(stacked(prefixes))
    for _ in range(2):
        got, expected = (forward(vlm, ids, positions, mask, cache, None).logits for cache in (own, plain))
        assert torch.equal(got, expected)
        positions = positions + ids.shape[1]
        mask = torch.cat([torch.ones_like(mask[..., : ids.shape[1]]), mask], dim=-1)
    after = [tensor for prefix in prefixes for tensor in of(prefix.layers)]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_only_kept_prefixes_are_copied(vlm) -> None:
    images = [image_of(seed) for seed in range(4)]
    (one,) = PrefixMemory(vlm, 0).prefixes(images[:1])
    memory = PrefixMemory(vlm, 2 * one.nbytes)
    prefixes = memory.prefixes(images)
    assert memory.held_bytes == 2 * one.nbytes
    again = memory.prefixes(images[2:])
    assert held(*(tensor for prefix in again for tensor in of(prefix.layers))) == memory.held_bytes
    for first, second in zip(prefixes[2:], again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(of(first.layers), of(second.layers), strict=True))
    assert held(*(tensor for prefix in PrefixMemory(vlm, 0).prefixes(images) for tensor in of(prefix.layers))) == (
        4 * one.nbytes
    )


def test_scores_and_texts_are_those_of_the_plain_path_with_and_without_memory(vlm) -> None:
    images = [image_of(seed) for seed in range(3)]
    ask = Ask("Is this image AI-generated?", ("Yes.", "No."))
    prompt = vlm.question_ids("What is it?")
    plain = [[score_plain(vlm, image, ask.question, one).logprob for one in ask.candidates] for image in images]
    texts = [generate_plain(vlm, image, prompt, 6) for image in images]
    for cache_bytes in (0, 2 << 30):
        engine = Engine(vlm, cache_bytes=cache_bytes)
        for order in ([0, 1, 2], [2, 0, 1], [1, 1, 0]):
            some = [images[i] for i in order]
            scores = engine.score(some, [[ask]] * 3)
            for i, (candidates,) in zip(order, scores, strict=True):
                assert [one.logprob for one in candidates] == pytest.approx(plain[i], abs=2e-4)
            assert engine.continue_prompts(some, [[prompt]] * 3, 6) == [[texts[i]] for i in order]
