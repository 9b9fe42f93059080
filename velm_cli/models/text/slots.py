"""A past, in the shape in which transformers' models ask for it. Imports transformers."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from velm_cli.models.state import Layer, Past


def as_cache(past: Past, new: int) -> Cache:
    """Of a past that has grown by `new` slots an image, which the model writes."""
    return Cache(layers=[_Slots(layer, new) for layer in past.layers()])


class _Slots(CacheLayerMixin):
    def __init__(self, layer: Layer, new: int) -> None:
        super().__init__()
        self._layer, self._new, self.is_initialized = layer, new, True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return self._layer.write(key_states, value_states)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The past has its memory."""

    def get_seq_length(self) -> int:
        return self._layer.past.slots - self._new

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._layer.past.slots, 0

    def get_max_length(self) -> int:
        return -1
