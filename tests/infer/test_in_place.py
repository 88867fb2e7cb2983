"""Decoding writes each token behind the keys that are there: the same numbers as transformers' cache, and no copies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from tests.factories import tiny_vlm
from tests.infer.test_prefixes import held, image_of, of
from vlm_detect.infer import branches as branches_module
from vlm_detect.infer import prefixes as prefixes_module
from vlm_detect.infer.branches import Branches, room_for
from vlm_detect.infer.engine import Engine
from vlm_detect.infer.in_place import InPlaceLayer
from vlm_detect.infer.prefixes import Prefix, decoding_cache, prefill, stacked
from vlm_detect.infer.reference import generate_plain
from vlm_detect.models.registry import load_vlm

STEPS = 5


@pytest.fixture(scope="module", params=["moondream", "tinyllava"])
def vlm(request):
    return tiny_vlm() if request.param == "moondream" else load_vlm("tinyllava-nano", device="cpu")


@torch.inference_mode()
def prefixes_of(vlm, count: int, room: int = 0) -> list[Prefix]:
    return prefill(vlm, vlm.encode(vlm.prepare([image_of(seed) for seed in range(count)])), room)


def prompts_of(vlm, count: int) -> list[list[list[int]]]:
    return [[vlm.question_ids("Is it?"), vlm.question_ids("What is it then?")]] * count


def states(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, length, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("room", [0, 1, 4, 100])
def test_a_layer_holds_what_transformers_own_does(room: int) -> None:
    """Token by token, over the end of its room, and after each way in which a cache is changed."""
    own, plain = InPlaceLayer(room), DynamicLayer()
    changes: dict[int, Any] = {
        3: lambda layer: layer.crop(-2),
        5: lambda layer: layer.batch_select_indices(torch.tensor([1, 0])),
        6: lambda layer: layer.reorder_cache(torch.tensor([1, 1])),
        8: lambda layer: layer.reset(),
    }
    for step, length in enumerate((5, 1, 1, 2, 1, 1, 1, 3, 4, 1)):
        for layer in (own, plain):
            if step in changes:
                changes[step](layer)
        got, expected = (layer.update(states(length, step), states(length, step + 99)) for layer in (own, plain))
        assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
        assert own.get_seq_length() == plain.get_seq_length()
        assert own.get_mask_sizes(1) == plain.get_mask_sizes(1)


class Copied(TorchDispatchMode):
    """Bytes that are written by joining tensors, and by copying into one."""

    def __init__(self) -> None:
        super().__init__()
        self.joined = self.written = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.cat.default and found.is_floating_point():
            self.joined += found.nbytes
        if func is torch.ops.aten.copy_.default:
            self.written += found.nbytes
        return found


@torch.inference_mode()
@pytest.mark.parametrize("room", ["prefilled with it", "copied once"])
def test_a_token_copies_no_key_before_it(vlm, room: str) -> None:
    prompts = prompts_of(vlm, 3)
    prefixes = prefixes_of(vlm, 3, room_for(prompts, STEPS) if room == "prefilled with it" else 0)
    branches = Branches(vlm, prefixes, prompts, STEPS)
    keys = prefixes[0].batch[0][0]
    of_two_tokens = 2 * 2 * keys.nbytes // keys.shape[2] * len(prefixes[0].batch)  # a token of each prompt
    for _ in range(STEPS):
        with Copied() as copied:
            branches.read(torch.full((3, 2), 7))
        assert copied.joined < keys.nbytes, "keys are joined with the new token's"
        assert of_two_tokens <= copied.written < of_two_tokens + keys.nbytes


@torch.inference_mode()
def test_the_room_of_a_batch_is_given_to_one(vlm) -> None:
    """The second continuation of the same prefixes, and one of some of them, read copies: each has its own tokens."""
    prompts, expected = prompts_of(vlm, 3), []
    plain = prefixes_of(vlm, 3)
    prefixes = prefixes_of(vlm, 3, room_for(prompts, STEPS))
    before = [tensor.clone() for prefix in prefixes for tensor in of(prefix.layers)]
    runs = [Branches(vlm, prefixes, prompts, STEPS) for _ in range(2)]
    runs.append(Branches(vlm, [prefixes[2], prefixes[0]], prompts[:2], STEPS))
    expected = [Branches(vlm, plain, prompts, STEPS) for _ in range(2)]
    expected.append(Branches(vlm, [plain[2], plain[0]], prompts[:2], STEPS))
    for step in range(STEPS):
        for number, (run, other) in enumerate(zip(runs, expected, strict=True)):
            assert torch.equal(run.logits, other.logits)
            chosen = torch.full(run.there.shape, 3 + step + number)
            run.read(chosen)
            other.read(chosen)
    after = [tensor for prefix in prefixes for tensor in of(prefix.layers)]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@torch.inference_mode()
def test_a_batch_and_its_decoding_hold_one_cache(vlm) -> None:
    prompts = prompts_of(vlm, 4)
    room = room_for(prompts, STEPS)
    prefixes = prefixes_of(vlm, 4, room)
    cache = decoding_cache(prefixes, room)
    everything = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    whole = (len(prefixes[0]) + room) * sum(prefix.nbytes for prefix in prefixes) // len(prefixes[0])
    assert held(*everything, *(tensor for prefix in prefixes for tensor in of(prefix.layers))) == whole


def test_what_is_kept_holds_no_room(vlm) -> None:
    engine = Engine(vlm)
    images = [image_of(seed) for seed in range(2)]
    for some in (images[:1], images):
        engine.memory.clear()
        prefixes = engine.memory.prefixes(some, room=50)
        kept = engine.memory.prefixes(some)
        assert all(prefix.room is None for prefix in kept)
        assert held(*(tensor for prefix in kept for tensor in of(prefix.layers))) == engine.memory.held_bytes
        for one, other in zip(prefixes, kept, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(of(one.layers), of(other.layers), strict=True))


def test_texts_are_those_of_transformers_cache_and_of_the_plain_path(vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the answers are longer than the room."""
    images = [image_of(seed) for seed in range(3)]
    prompts = prompts_of(vlm, 3)
    plain = [[generate_plain(vlm, image, prompt, 9) for prompt in prompts[0]] for image in images]
    assert Engine(vlm).continue_prompts(images, prompts, 9) == plain
    assert Engine(vlm, cache_bytes=0).continue_prompts(images, prompts, 9) == plain
    monkeypatch.setattr(branches_module, "_MOST_STEPS", 2)
    assert Engine(vlm).continue_prompts(images, prompts, 9) == plain

    def dynamic(prefixes: list[Prefix], room: int) -> Cache:
        return DynamicCache(stacked(prefixes))

    monkeypatch.setattr(branches_module, "decoding_cache", dynamic)
    assert Engine(vlm).continue_prompts(images, prompts, 9) == plain
    assert prefixes_module.decoding_cache is not dynamic
