"""The KV cache of an image, prefilled once; an LRU cache, bounded in bytes, keeps recent ones.

    memory = PrefixMemory(vlm, max_bytes=2 << 30)
    memory.prefixes([photo, other])      # what is not held is encoded in one batch and prefilled in one
    memory.pooled([photo, other])        # (2, F) features of the tower: of images that were just read nothing is read

`stack_prefixes` joins several into the KV cache of a batch that is read once more, `decoding_cache` into one that grows
token by token. A prefix is held once: prefixes that were prefilled together are views of one KV cache, and a batch of
the same rows reads that cache again. What follows is stored apart from it, or in room that was left behind it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from vlm_detect.errors import UserError
from vlm_detect.infer.in_place import InPlaceLayer
from vlm_detect.infer.pooled import pool, pooled_features, watched
from vlm_detect.infer.prepared import Prepare, PreparedAhead
from vlm_detect.models.base import VLM
from vlm_detect.models.continuation import AfterPrefix, read_prefix

_HELD_POOLED = 256  # images whose features are kept: more than any batch, and at most a few MB


Layers = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values of each layer, (B, H, P, D)


class Room:
    """Buffers of a batch's prefixes with room behind them, (B, H, P + room, D), for the first who continues it."""

    def __init__(self, buffers: Layers) -> None:
        self._buffers: Layers | None = buffers

    def take(self) -> Layers | None:
        """The buffers, once: two continuations would write over each other."""
        taken, self._buffers = self._buffers, None
        return taken


@dataclass(frozen=True, eq=False)
class Prefix:
    """An image in the decoder's KV cache: one row of the cache of those that were prefilled with it.

    Text after it starts at position `len(prefix) + shift`.
    """

    batch: Layers  # of all rows
    row: int = 0
    shift: int = 0
    room: Room | None = None  # behind all rows of the batch

    @property
    def layers(self) -> Layers:
        """Keys and values, (1, H, P, D); views."""
        return [self.layer(number) for number in range(len(self.batch))]

    def layer(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self.batch[number]
        return keys[self.row : self.row + 1], values[self.row : self.row + 1]

    def __len__(self) -> int:
        return self.batch[0][0].shape[2]

    @property
    def nbytes(self) -> int:
        """Of this row alone."""
        return sum(tensor.nbytes for pair in self.layers for tensor in pair)

    def copy(self) -> Prefix:
        """The same prefix, which does not keep the memory of its batch alive."""
        return Prefix([(keys.clone(), values.clone()) for keys, values in self.layers], shift=self.shift)


class PrefixMemory:
    """Reads images into prefixes and keeps at most `max_bytes` of them, evicting the least recently used."""

    def __init__(self, vlm: VLM, max_bytes: int) -> None:
        self.vlm = vlm
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self._held: OrderedDict[bytes, Prefix] = OrderedDict()
        self.ahead = PreparedAhead(vlm, held=self._held)
        self._pooled: OrderedDict[bytes, torch.Tensor] = OrderedDict()  # (F,) each

    def prefixes(self, images: Sequence[Image.Image | None], room: int = 0) -> list[Prefix]:
        """The prefix of each image; misses are encoded and prefilled together, with room for so many tokens behind.

        None gives the prefix of a question without an image.
        """
        keys = list(map(self.ahead.key, images))
        found = {key: self._held[key] for key in keys if key in self._held}
        missing = {key: image for key, image in zip(keys, images, strict=True) if key not in found}
        to_read = {key: image for key, image in missing.items() if image is not None}
        new = dict(zip(to_read, self._read(to_read, room), strict=True)) if to_read else {}
        new |= {key: prefill_text(self.vlm) for key in missing.keys() - to_read.keys()}
        for key, prefix in new.items():
            found[key] = prefix
            self._hold(key, prefix)
        for key in keys:
            if key in self._held:
                self._held.move_to_end(key)
        return [found[key] for key in keys]

    def pooled(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Features (N, F) of the tower, as `infer.pooled` has them; only of images not just read is it run for them.

        UserError of a model whose tower cannot be watched.
        """
        keys = list(map(self.ahead.key, images))
        found = {key: self._pooled[key].cpu().numpy() for key in keys if key in self._pooled}
        missing = {key: image for key, image in zip(keys, images, strict=True) if key not in found}
        if missing:
            features = pooled_features(self.vlm, list(missing.values()), prepare=self.ahead.batch)
            found |= dict(zip(missing, features, strict=True))
        return np.stack([found[key] for key in keys])

    def shrink(self, max_bytes: int) -> None:
        """Hold at most `max_bytes` from now on."""
        self.max_bytes = min(self.max_bytes, max_bytes)
        self._evict(self.max_bytes)

    def clear(self) -> None:
        """Hold nothing; what is needed again is read again."""
        self._evict(0)

    def _evict(self, max_bytes: int) -> None:
        while self.held_bytes > max_bytes:
            _, oldest = self._held.popitem(last=False)
            self.held_bytes -= oldest.nbytes

    def _read(self, images: Mapping[bytes, Image.Image], room: int) -> list[Prefix]:
        with watched(self.vlm) as seen:
            embeds = encode(self.vlm, list(images.values()), prepare=self.ahead.batch)
            read = prefill(self.vlm, embeds, room)
        if (features := pool(seen, self.vlm.alike(embeds))) is not None:
            self._pooled |= dict(zip(images, features, strict=True))
            while len(self._pooled) > _HELD_POOLED:
                self._pooled.popitem(last=False)
        return read

    def _hold(self, key: bytes, prefix: Prefix) -> None:
        if prefix.nbytes > self.max_bytes:
            return
        self._evict(self.max_bytes - prefix.nbytes)
        is_alone = len(prefix.batch[0][0]) == 1 and prefix.room is None
        self._held[key] = prefix if is_alone else prefix.copy()
        self.held_bytes += prefix.nbytes


@torch.inference_mode()
def encode(vlm: VLM, images: Sequence[Image.Image], prepare: Prepare | None = None) -> torch.Tensor:
    """Image embeddings (B, N, D) from one batch of the tower."""
    return vlm.encode((prepare or vlm.prepare)(images))


@torch.inference_mode()
def prefill(vlm: VLM, embeds: torch.Tensor, room: int = 0) -> list[Prefix]:
    """The prefix of each of (B, N, D) image embeddings, prefilled together, with room for so many tokens behind."""
    found: dict[int, Prefix] = {}
    new_layer: Any = partial(InPlaceLayer, room) if room else DynamicLayer
    for alike in vlm.alike(embeds):
        some: Any = embeds if len(alike) == len(embeds) else [embeds[i] for i in alike]
        cache = read_prefix(vlm, some, new_layer)
        layers = [(layer.keys, layer.values) for layer in cache.layers]
        behind = Room([layer.buffers for layer in cache.layers]) if room else None
        for row, (i, shift) in enumerate(zip(alike, vlm.shifts(some), strict=True)):
            found[i] = Prefix(layers, row, shift, behind)
    return [found[i] for i in range(len(embeds))]


@torch.inference_mode()
def prefill_text(vlm: VLM) -> Prefix:
    """The prefix of a question without an image; UserError for a model that needs an image."""
    cache = DynamicCache()
    ids = torch.tensor([vlm.text_prefix_ids()], device=vlm.device)
    vlm.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return Prefix([(layer.keys, layer.values) for layer in cache.layers])


def stack_prefixes(prefixes: Sequence[Prefix]) -> Cache:
    """A fresh cache whose row i holds prefix i; appending to it does not change the prefixes."""
    return Cache(layers=[AfterPrefix(keys, values) for keys, values in stacked(prefixes)])


def decoding_cache(prefixes: Sequence[Prefix], room: int) -> Cache:
    """As `stack_prefixes`, of a cache that copies no key where so many tokens follow, one after the other.

    The first who continues a batch that was prefilled with room gets that; others a copy of the prefixes.
    """
    length, first = len(prefixes[0]), prefixes[0]
    is_whole = _is_consecutive(prefixes) and len(prefixes) == len(first.batch[0][0])
    taken = first.room.take() if is_whole and first.room is not None else None
    if taken is not None:
        return Cache(layers=[InPlaceLayer(room, buffers, length) for buffers in taken])
    layers = [InPlaceLayer(room) for _ in first.batch]
    for layer, (keys, values) in zip(layers, _stacked(prefixes), strict=True):
        layer.update(keys, values)
    return Cache(layers=layers)


def stacked(prefixes: Sequence[Prefix]) -> Layers:
    """Keys and values (B, H, P, D) of prefixes of equal length: views where they are consecutive rows of one batch."""
    return list(_stacked(prefixes))


def _stacked(prefixes: Sequence[Prefix]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Layer by layer, so that one copy of a layer is held at a time."""
    first = prefixes[0]
    rows = slice(first.row, first.row + len(prefixes))
    is_view = _is_consecutive(prefixes)
    for number, (keys, values) in enumerate(first.batch):
        if is_view:
            yield keys[rows], values[rows]
        else:
            layer = [prefix.layer(number) for prefix in prefixes]
            yield torch.cat([keys for keys, _ in layer]), torch.cat([values for _, values in layer])


def _is_consecutive(prefixes: Sequence[Prefix]) -> bool:
    """Whether these are consecutive rows of one batch."""
    batch, first = prefixes[0].batch, prefixes[0].row
    return all(one.batch is batch and one.row == first + i for i, one in enumerate(prefixes))


def equal_lengths(prefixes: Sequence[Prefix]) -> list[list[int]]:
    """The indices of prefixes, grouped by equal length."""
    groups: dict[int, list[int]] = {}
    for i, prefix in enumerate(prefixes):
        groups.setdefault(len(prefix), []).append(i)
    return list(groups.values())


def check_length(vlm: VLM, length: int) -> None:
    """UserError where `length` tokens exceed the model's context."""
    if length > vlm.context:
        raise UserError(
            f"image and prompt make {length} tokens, the model's context is {vlm.context}: shorten the question"
        )
