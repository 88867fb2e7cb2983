"""A layer of a KV cache with room behind its tokens: the next ones are written there, and none before them is copied.

    cache = Cache(layer_class_to_replicate=partial(InPlaceLayer, room=128))     # else as transformers' DynamicCache

transformers' own layer joins all keys with those of the next token: of a caption of moondream2, 4.6 GB a token for 16
images, more than the weights that the token reads.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer


class InPlaceLayer(DynamicLayer):
    """`keys` and `values` (B, H, T, D) are views of the buffers' first T tokens.

    Where the room is used up, both move to buffers with room for `room` tokens more. `buffers` are taken over with
    their first `length` tokens.
    """

    def __init__(self, room: int, buffers: tuple[torch.Tensor, torch.Tensor] | None = None, length: int = 0) -> None:
        super().__init__()
        self.room = room
        self._buffers = buffers  # (B, H, capacity, D): of keys, of values
        self._views: tuple[Any, Any] = (None, None)
        if buffers is not None:
            self.lazy_initialization(*buffers)
            self._show(*buffers, length)

    @property
    def buffers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of a layer that holds tokens."""
        assert self._buffers is not None
        return self._buffers

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = self.get_seq_length()
        end = length + key_states.shape[-2]
        is_in_place = self.keys is self._views[0] and self.values is self._views[1]  # not after `crop` and others
        if self._buffers is None or not is_in_place or end > self._buffers[0].shape[-2]:
            self._buffers = self._moved(self.keys, key_states, end), self._moved(self.values, value_states, end)
        keys, values = self._buffers
        keys[..., length:end, :] = key_states
        values[..., length:end, :] = value_states
        return self._show(keys, values, end)

    def _moved(self, held: torch.Tensor | None, new: torch.Tensor, end: int) -> torch.Tensor:
        """A buffer with room behind `end` tokens, with what is held of them."""
        buffer = new.new_empty((*new.shape[:-2], end + self.room, new.shape[-1]))
        if held is not None and held.numel():
            buffer[..., : held.shape[-2], :] = held
        return buffer

    def _show(self, keys: torch.Tensor, values: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first `length` tokens of the buffers."""
        self._views = keys[..., :length, :], values[..., :length, :]
        self.keys, self.values = self._views
        return self._views
