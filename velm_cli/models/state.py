"""What decoding carries from step to step: nested tuples of tensors, and the past of self-attention in them.

Shapes: B images, N = B * K texts (the K beams of an image stand side by side), H heads, T new positions, S slots of
the past, d width of a head. Tensors of a *state* have N in dimension 0, those of a *memory* B.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 32  # positions for which a past makes room at a time


class KeyValue(NamedTuple):
    """What attention looks at."""

    keys: Tensor  # (N or B, H, T or S, d)
    values: Tensor


@dataclass(frozen=True)
class Rows:
    """Which texts of a batch go on: `source_BK`, the row that each had before.

    Of images that leave, those within the first B are the `holes`, which the `movers`, the last that stay, fill:
    so nothing is moved but what has to be.
    """

    source_BK: Tensor
    holes: Tensor | None = None
    movers: Tensor | None = None

    def move(self, part_BX: Tensor) -> Tensor:
        """The images that go on, of a tensor that nobody else reads: it is written on."""
        if self.holes is not None:
            part_BX[self.holes] = part_BX[self.movers]
        return part_BX[: len(self.source_BK)]


def select(state: Any, rows: Rows | Tensor) -> Any:
    """The texts `rows` of everything in a nested state; None stays None."""
    if state is None:
        return None
    if isinstance(rows, Rows):
        if isinstance(state, KeyValue | Past):
            return Past.of(state).select(rows)
        if isinstance(state, Tensor):
            return state.index_select(0, rows.source_BK.flatten())
    elif isinstance(state, Tensor):
        return state.index_select(0, rows)
    return tuple(select(part, rows) for part in state)


def own(memory: Any) -> Any:
    """A copy of a nested memory that may be written on, laid out as attention reads it fastest."""
    return _once_each(memory, lambda part: part.clone(memory_format=torch.contiguous_format), {})


def move(memory: Any, rows: Rows) -> Any:
    """The images that go on, of everything in a nested memory that is one's `own`."""
    return _once_each(memory, rows.move, {})


def _once_each(memory: Any, change: Callable[[Tensor], Tensor], done: dict[int, Tensor]) -> Any:
    """The memory with its tensors changed; what several layers share is changed once, and shared again."""
    if isinstance(memory, Tensor):
        if id(memory) not in done:
            done[id(memory)] = change(memory)
        return done[id(memory)]
    return None if memory is None else tuple(_once_each(part, change, done) for part in memory)


@dataclass(frozen=True)
class Past:
    """Keys and values of the positions that B images with K texts each have behind them.

    A slot holds one position of one text and stays where it was written; a table says which slots each text has
    behind it. When beams are reordered only the table changes, and what the beams of an image have in common (the
    start, a prefix) exists once. Room is made for many positions at a time. A past goes on once: what is appended
    is written behind it.
    """

    room: KeyValue  # (B, H, slots, d), of which the first S are written
    slots: int  # S
    sees_NS: Tensor | None  # None where each image has one text, which has every slot behind it

    @staticmethod
    def of(cache: KeyValue | Past) -> Past:
        """As yet every text stands alone."""
        return cache if isinstance(cache, Past) else Past(cache, cache.keys.shape[2], None)

    def append(self, key_NHTd: Tensor, value_NHTd: Tensor) -> Past:
        """With T further positions of each text."""
        B, N, T = len(self.room.keys), len(key_NHTd), key_NHTd.shape[2]
        K = N // B
        stop = self.slots + K * T
        room = self.room if stop <= self.room.keys.shape[2] else self._larger_room(stop + BLOCK * K)
        for part, new_NHTd in zip(room, (key_NHTd, value_NHTd), strict=True):
            place = part[:, :, self.slots : stop].unflatten(2, (T, K))
            place.copy_(new_NHTd.unflatten(0, (B, K)).permute(0, 2, 3, 1, 4))
        if self.sees_NS is None:
            return Past(room, stop, None)
        own_NX = torch.eye(K, dtype=torch.bool, device=self.sees_NS.device).repeat(B, T)
        return Past(room, stop, torch.cat([self.sees_NS, own_NX], dim=1))

    def _larger_room(self, slots: int) -> KeyValue:
        def larger(part: Tensor) -> Tensor:
            B, H, _, d = part.shape
            new = part.new_empty(B, H, slots, d)
            new[:, :, : self.slots] = part[:, :, : self.slots]
            return new

        return KeyValue(*map(larger, self.room))

    def attend(self, query_NHTd: Tensor) -> Tensor:
        """(N, H, T, d): what the last T positions see. The K texts of an image look as one, as in `CrossAttention`."""
        B, N, T = len(self.room.keys), len(query_NHTd), query_NHTd.shape[2]
        K = N // B
        keys, values = (part[:, :, : self.slots] for part in self.room)
        query_BHXd = query_NHTd.unflatten(0, (B, K)).transpose(1, 2).flatten(2, 3)  # X = K * T
        y_BHXd = F.scaled_dot_product_attention(query_BHXd, keys, values, attn_mask=self._visible(B, T))
        return y_BHXd.unflatten(2, (K, T)).transpose(1, 2).flatten(0, 1)

    def _visible(self, B: int, T: int) -> Tensor | None:
        if self.sees_NS is not None:
            assert T == 1, "beams go on by one position at a time"
            return self.sees_NS.view(B, 1, -1, self.slots)
        if T == 1:
            return None
        return torch.ones(T, self.slots, dtype=torch.bool, device=self.room.keys.device).tril(self.slots - T)

    def select(self, rows: Rows) -> Past:
        B, K = rows.source_BK.shape
        for part in self.room:
            rows.move(part[:, :, : self.slots])
        sees_NS = self.sees_NS
        if sees_NS is not None:
            sees_NS = sees_NS.index_select(0, rows.source_BK.flatten())
        elif K > 1:
            sees_NS = rows.source_BK.new_ones(B * K, self.slots, dtype=torch.bool)
        return Past(KeyValue(*(part[:B] for part in self.room)), self.slots, sees_NS)
