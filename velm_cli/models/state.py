"""What decoding carries from step to step: nested tuples of tensors, and the past of self-attention in them.

Shapes: B images, N = B * K texts (the K beams of an image stand side by side), H heads, T new positions, S slots of
the past, d width of a head. Tensors of a *state* have N in dimension 0, those of a *memory* B.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 32  # positions for which a past makes room at a time


class KeyValue(NamedTuple):
    """What attention looks at."""

    keys: Tensor  # (N or B, H, T or S, d)
    values: Tensor


class ImageKeys(NamedTuple):
    """A memory: the image's keys and values in one attention, and which positions may be looked at; None: all."""

    keys: Tensor  # (B, H, S, d), or (B, S, A) in additive attention
    values: Tensor
    visible_BS: Tensor | None = None


class ImageItself(NamedTuple):
    """A memory that serves few text positions with less work: what keys and values would be made of."""

    image_BSD: Tensor
    visible_BS: Tensor | None = None


@dataclass(frozen=True)
class Rows:
    """Which texts of a batch go on: `source_BK`, the row that each had before.

    Of images that leave, those within the first B are the `holes`, which the `movers`, the last that stay, fill:
    so nothing is moved but what has to be.
    """

    source_BK: Tensor
    holes: Tensor | None = None
    movers: Tensor | None = None

    def move(self, part_BX: Tensor) -> None:
        """Put the images that go on first, in a tensor that nobody else reads."""
        if self.holes is not None:
            part_BX[self.holes] = part_BX[self.movers]


# ---------------------------------------------------------------------------------------- states


def select(state: Any, rows: Rows) -> Any:
    """The texts `rows` of everything in a nested state; None stays None."""
    if state is None:
        return None
    if isinstance(state, Past):
        return state.select(rows)
    if isinstance(state, Tensor):
        return state.index_select(0, rows.source_BK.flatten())
    return tuple(select(part, rows) for part in state)


def images_of(state: Any, start: int, stop: int, texts: int) -> Any:
    """Images `start` to `stop` of a nested state, of `texts` texts each: views of what it has."""
    if state is None:
        return None
    if isinstance(state, Past):
        return state.images_of(start, stop, texts)
    if isinstance(state, Tensor):
        return state[start * texts : stop * texts]
    return tuple(images_of(part, start, stop, texts) for part in state)


def joined(state: Any, other: Any, positions: int) -> Any:
    """A nested state with the images of one that has just begun behind its own; see `Past.joined`."""
    if state is None:
        return None
    if isinstance(state, Past):
        return state.joined(other, positions)
    if isinstance(state, Tensor):
        return torch.cat([state, other])
    return tuple(joined(part, its, positions) for part, its in zip(state, other, strict=True))


def without_ends(state: Any, padding_N: Tensor) -> Any:
    """A nested state as if the last `padding` positions of each text, the first that were read, had not been there.

    Nothing but a `Past` and counts of positions can tell: see `TextEncoder.hides_padding`.
    """
    if state is None:
        return None
    if isinstance(state, Past):
        return state.without_ends(padding_N)
    if isinstance(state, Tensor):
        assert not state.is_floating_point(), "what has been read cannot be taken out of a recurrent state"
        return state - padding_N
    return tuple(without_ends(part, padding_N) for part in state)


def bounded(state: Any, positions: int) -> Any:
    """A nested state whose texts get so many positions at most: no `Past` in it makes room for more."""
    if isinstance(state, Past):
        return replace(state, most=positions)
    if state is None or isinstance(state, Tensor):
        return state
    return tuple(bounded(part, positions) for part in state)


def alike(nested: Any, other: Any) -> bool:
    """Whether two states, or two memories, differ in nothing but their images, so that they can be joined."""
    if isinstance(nested, Past):
        return nested.start == other.start and nested.shapes() == other.shapes()
    if isinstance(nested, Tensor):
        return nested.shape[1:] == other.shape[1:]
    return nested is None or (len(nested) == len(other) and all(map(alike, nested, other)))


@dataclass(frozen=True)
class Past:
    """Keys and values of the positions that B images with K texts each have behind them, in every layer.

    A slot holds one position of one text and stays where it was written; a table says which slots each text has
    behind it. When beams are reordered only the table changes, and what the beams of an image have in common (the
    start, a prefix) exists once. Room is made for many positions at a time. Images that join write into the slots that
    come next, as all do; behind the last one that is ever needed follow the first ones again, whose texts are finished.
    A past goes on once: what comes after it is written into its memory.
    """

    rooms: tuple[KeyValue, ...]  # a layer: (at least B, H, at least S, d)
    images: int  # B
    start: int  # slots that each image began with, all of which its texts see
    slots: int  # S: those that are written
    stop: int  # behind the slots that were written last
    end: int | None = None  # behind the last slot there will be
    most: int | None = None  # positions that a text gets behind the start, where that is known
    sees_NS: Tensor | None = None  # None where each image has one text, which has every slot behind it

    @staticmethod
    def of(layers: Sequence[KeyValue]) -> Past:
        """As yet every text stands alone."""
        N, _, T, _ = layers[0].keys.shape
        return Past(tuple(layers), N, T, T, T)

    def grown(self, texts: int, positions: int = 1) -> Past:
        """With slots for further `positions` of all texts, which `Layer` then writes."""
        K = texts // self.images
        first = self.start if self.stop == self.end else self.stop
        stop = first + K * positions
        rooms = self.rooms
        if stop > rooms[0].keys.shape[2]:
            rooms = self._larger(len(rooms[0].keys), self._room(stop, K))
        sees_NS = self.sees_NS
        if sees_NS is not None:
            own_NX = torch.eye(K, dtype=torch.bool, device=sees_NS.device).repeat(self.images, positions)
            if first == self.slots:
                sees_NS = torch.cat([sees_NS, own_NX], dim=1)
            else:
                sees_NS[:, first:stop] = own_NX
        return replace(self, rooms=rooms, slots=max(self.slots, stop), stop=stop, sees_NS=sees_NS)

    def _room(self, stop: int, texts: int) -> int:
        """Slots to make room for where `stop` are needed: twice as many each time, so that each is copied once or
        twice however long the texts get; and no more than they can get."""
        room = stop + max(BLOCK * texts, stop - self.start)
        return room if self.most is None else max(stop, min(room, self.start + texts * self.most))

    def _larger(self, images: int, slots: int) -> tuple[KeyValue, ...]:
        """Rooms for so many images and slots. Zeros, since even what nobody sees must be a number."""

        def larger(part: Tensor) -> Tensor:
            _, H, _, d = part.shape
            new = part.new_zeros(images, H, slots, d)
            new[: self.images, :, : self.slots] = part[: self.images, :, : self.slots]
            return new

        return tuple(KeyValue(*map(larger, room)) for room in self.rooms)

    def layers(self) -> Iterator[Layer]:
        return (Layer(self, room) for room in self.rooms)

    def longest(self, texts: int) -> int:
        """At most so many positions have all texts, of which each image has `texts`."""
        slots = self.slots if self.end is None else min(self.slots, self.end - texts)
        return self.start + (slots - self.start) // texts

    def visible(self, positions: int) -> Tensor | None:
        """(B, 1, K * T, S), bool: what the last T positions of each text see; None where that is everything."""
        if self.sees_NS is not None:
            assert positions == 1, "beams go on by one position at a time"
            return self.sees_NS.view(self.images, 1, -1, self.slots)
        if positions == 1:
            return None
        device = self.rooms[0].keys.device
        return torch.ones(1, 1, positions, self.slots, dtype=torch.bool, device=device).tril(self.slots - positions)

    def visible_within(self, window: int, behind_N: Tensor, positions: int) -> Tensor:
        """`visible`, the `window` latest positions only, a text's own counted; (B, 1, K * T, S).

        `behind_N`: how many positions each text had before its last T. All texts write with every step, so a slot was
        written as many positions ago for one text as for another.
        """
        N, K = len(behind_N), len(behind_N) // self.images
        slot_S = torch.arange(self.slots, device=behind_N.device)
        before_S = self.stop - 1 - slot_S
        if self.end is not None:
            before_S = before_S % (self.end - self.start)
        last_N1 = behind_N[:, None] + positions - 1
        position_NS = torch.where(slot_S < self.start, slot_S, last_N1 - before_S // K)
        position_NT = behind_N[:, None] + torch.arange(positions, device=behind_N.device)
        near_NTS = position_NT[:, :, None] - position_NS.view(N, 1, -1) < window
        near = near_NTS.view(self.images, 1, K * positions, -1)
        visible = self.visible(positions)
        return near if visible is None else near & visible

    def select(self, rows: Rows) -> Past:
        B, K = rows.source_BK.shape
        for part in (part for room in self.rooms for part in room):
            rows.move(part[:, :, : self.slots])
        sees_NS = self.sees_NS
        if sees_NS is not None:
            sees_NS = sees_NS.index_select(0, rows.source_BK.flatten())
        elif K > 1:
            assert self.slots == self.start, "an image's texts part before they have slots of their own"
            sees_NS = rows.source_BK.new_ones(B * K, self.slots, dtype=torch.bool)
        return replace(self, images=B, sees_NS=sees_NS)

    def without_ends(self, padding_N: Tensor) -> Past:
        assert self.slots == self.start and len(padding_N) == self.images, "a text's end is hidden before it goes on"
        slot_S = torch.arange(self.slots, device=padding_N.device)
        sees_NS = slot_S < self.slots - padding_N[:, None]
        return replace(self, sees_NS=sees_NS if self.sees_NS is None else sees_NS & self.sees_NS)

    def images_of(self, start: int, stop: int, texts: int) -> Past:
        rooms = tuple(KeyValue(*(part[start:stop] for part in room)) for room in self.rooms)
        sees_NS = None if self.sees_NS is None else self.sees_NS[start * texts : stop * texts]
        return replace(self, rooms=rooms, images=stop - start, sees_NS=sees_NS)

    def joined(self, other: Past, positions: int) -> Past:
        """With the images of one that has but its start. No text gets more than `positions` beyond that."""
        assert other.slots == other.start == self.start
        B, images = self.images, self.images + other.images
        rooms, slots = self.rooms, self.rooms[0].keys.shape[2]
        if len(rooms[0].keys) < images:
            rooms = self._larger(images, slots)
        for mine, its in zip(rooms, other.rooms, strict=True):
            for part, its_part in zip(mine, its, strict=True):
                part[B:images, :, : self.start] = its_part[: other.images, :, : self.start]
        texts = 1 if other.sees_NS is None else len(other.sees_NS) // other.images
        device = rooms[0].keys.device
        sees_NS = self.sees_NS
        if sees_NS is None:
            sees_NS = torch.ones(B, self.slots, dtype=torch.bool, device=device)
        began_NS = torch.zeros(other.images * texts, self.slots, dtype=torch.bool, device=device)
        began_NS[:, : self.start] = True if other.sees_NS is None else other.sees_NS
        end = self.start + texts * positions
        return replace(self, rooms=rooms, images=images, end=end, sees_NS=torch.cat([sees_NS, began_NS]))

    def shapes(self) -> list[tuple[int, int]]:
        """Heads and their width, of keys and values of all layers."""
        return [(part.shape[1], part.shape[3]) for room in self.rooms for part in room]


class Layer(NamedTuple):
    """One layer of a past that has `grown`."""

    past: Past
    room: KeyValue

    def write(self, key_BHXd: Tensor, value_BHXd: Tensor) -> KeyValue:
        """The newest X slots of each image; all slots that are written."""
        B, S, stop = self.past.images, self.past.slots, self.past.stop
        for part, new_BHXd in zip(self.room, (key_BHXd, value_BHXd), strict=True):
            part[:B, :, stop - new_BHXd.shape[2] : stop] = new_BHXd
        return KeyValue(*(part[:B, :, :S] for part in self.room))

    def attend(self, query_NHTd: Tensor, key_NHTd: Tensor, value_NHTd: Tensor) -> Tensor:
        """(N, H, T, d): what the T newest positions see. The K texts of an image look as one, as in CrossAttention."""
        B, (N, _, T, _) = self.past.images, query_NHTd.shape
        K = N // B
        new = (part.unflatten(0, (B, K)).permute(0, 2, 3, 1, 4).flatten(2, 3) for part in (key_NHTd, value_NHTd))
        keys, values = self.write(*new)  # slot by slot: the first positions of all K texts, then the second ones ...
        query_BHXd = query_NHTd.unflatten(0, (B, K)).transpose(1, 2).flatten(2, 3)  # X = K * T
        y_BHXd = F.scaled_dot_product_attention(query_BHXd, keys, values, attn_mask=self.past.visible(T))
        return y_BHXd.unflatten(2, (K, T)).transpose(1, 2).flatten(0, 1)


# ---------------------------------------------------------------------------------------- memories


def gathered(memory: Any, rows_B: Tensor) -> Any:
    """The rows of a nested memory, each tensor once: so what a memory is made of is computed once per image, and not
    for each of the examples that share it."""
    known: dict[int, Tensor] = {}

    def gather(part: Any) -> Any:
        if isinstance(part, Tensor):
            if id(part) not in known:
                known[id(part)] = part.index_select(0, rows_B)
            return known[id(part)]
        return None if part is None else like(part, map(gather, part))

    return gather(memory)


def like(nested: tuple, parts: Iterable[Any]) -> tuple:
    """A tuple of the same type, for what looks at a memory goes by it."""
    return nested._make(parts) if hasattr(nested, "_make") else tuple(parts)
