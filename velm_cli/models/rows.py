"""Attention within a `Layout`: the trees of a row side by side, each as wide as it is, and what its positions see.

Only attention needs to know of trees: all else is done position by position, on the row. Trees of like size go
together; one that is smaller than half of the largest goes with others of its size, so less than half of the positions
that attention works on are padding.

Shapes: M positions of the row, G trees of a group, Y positions of the largest of them, H heads, d width of a head, Z
entries of the masks of all groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from velm_cli.data.layout import Layout
from velm_cli.models.attention import attend


class Group(NamedTuple):
    """Trees of like size in the padded row of all groups, and their masks among those of all."""

    start: int
    trees: int  # G
    width: int  # Y
    masks: slice

    @property
    def stop(self) -> int:
        return self.start + self.trees * self.width

    def of(self, visible_Z: Tensor) -> Tensor:
        """(G, 1, Y, Y): the group's masks."""
        return visible_Z[self.masks].view(self.trees, 1, self.width, self.width)


class Rows(NamedTuple):
    """Where the positions of a layout stand when trees are padded to the width of their group."""

    place_M: Tensor  # int64
    size: int  # of the padded row
    groups: tuple[Group, ...]

    @staticmethod
    def of(layout: Layout) -> Rows:
        sizes = layout.sizes
        order = sorted(range(len(sizes)), key=lambda tree: -sizes[tree])
        groups: list[Group] = []
        starts, start, masks = [0] * len(order), 0, 0
        while order:
            width = max(1, sizes[order[0]])
            some = [tree for tree in order if 2 * sizes[tree] > width] or order
            order = order[len(some) :]
            for number, tree in enumerate(some):
                starts[tree] = start + number * width
            entries = len(some) * width * width
            groups.append(Group(start, len(some), width, slice(masks, masks + entries)))
            start, masks = groups[-1].stop, masks + entries
        start_R = torch.tensor(starts, device=layout.tree_M.device)
        return Rows(start_R[layout.tree_M] + layout.rank_M, start, tuple(groups))

    def spread(self, x_MX: Tensor) -> Tensor:
        """(size, X): x at its places, zeros elsewhere."""
        return x_MX.new_zeros(self.size, *x_MX.shape[1:]).index_copy(0, self.place_M, x_MX)

    def collect(self, x_X: Tensor) -> Tensor:
        """(M, X) of a padded row."""
        return x_X.index_select(0, self.place_M)

    def groups_of(self, x_X: Tensor) -> Iterator[Tensor]:
        """(G, Y, X) of each group: views of a padded row."""
        for group in self.groups:
            yield x_X[group.start : group.stop].unflatten(0, (group.trees, group.width))


class Seen(NamedTuple):
    """What attention needs of a layout."""

    rows: Rows
    visible_Z: Tensor

    @staticmethod
    def of(layout: Layout) -> Seen:
        rows = Rows.of(layout)
        return Seen(rows, visible_in(layout, rows))


def visible_in(layout: Layout, rows: Rows, window: int = 0) -> Tensor:
    """(Z): for each group [G, Y, Y], flat, whether a position sees another; padding sees itself. With a `window` no
    more than so many positions back, its own counted."""
    S = len(layout.sees_SS)
    # Of a segment that nobody is in, and which nobody sees.
    sees = F.pad(layout.sees_SS, (0, 1, 0, 1))
    segment = layout.segment_M.new_full((rows.size,), S).index_copy(0, rows.place_M, layout.segment_M)
    position = rows.spread(layout.position_M) if window else None
    found = []
    for number, segment_GY in enumerate(rows.groups_of(segment)):
        Y = segment_GY.shape[1]
        seen_GYY = sees[segment_GY[:, :, None], segment_GY[:, None, :]].tril()
        if position is not None:
            position_GY = list(rows.groups_of(position))[number]
            seen_GYY &= position_GY[:, :, None] - position_GY[:, None, :] < window
        found.append((seen_GYY | torch.eye(Y, dtype=torch.bool, device=seen_GYY.device)).flatten())
    return torch.cat(found)


def attend_rows(
    query_1HMd: Tensor,
    key_1IMd: Tensor,
    value_1IMe: Tensor,
    visible_Z: Tensor,
    rows: Rows,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """(1, M, H, e): what each position sees of the values; H is a multiple of I, whose heads the queries share."""
    query, key, value = (rows.spread(x[0].transpose(0, 1)) for x in (query_1HMd, key_1IMd, value_1IMe))  # (size, H, d)
    seen = []
    for group, q_GYHd, k_GYId, v_GYIe in zip(rows.groups, *map(rows.groups_of, (query, key, value)), strict=True):
        y_GYHe = _attend(q_GYHd, k_GYId, v_GYIe, group.of(visible_Z), scale=scale, dropout=dropout)
        seen.append(y_GYHe.flatten(0, 1))
    return rows.collect(seen[0] if len(seen) == 1 else torch.cat(seen))[None]


def _attend(q_GYHd: Tensor, k_GYId: Tensor, v_GYIe: Tensor, visible_G1YY: Tensor, **how: Any) -> Tensor:
    """(G, Y, H, e). Query heads that share a key stand side by side, as further queries: no key is repeated."""
    (_, Y, H, _), heads = q_GYHd.shape, k_GYId.shape[2]
    k_GIYd, v_GIYe = k_GYId.transpose(1, 2), v_GYIe.transpose(1, 2)
    if heads == H:
        y_GHYe = attend(q_GYHd.transpose(1, 2), k_GIYd, v_GIYe, visible=visible_G1YY, **how)
        return y_GHYe.transpose(1, 2)
    q_GIXd = q_GYHd.unflatten(2, (heads, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)  # X = H / I * Y
    y_GIXe = attend(q_GIXd, k_GIYd, v_GIYe, visible=visible_G1YY.repeat(1, 1, H // heads, 1), **how)
    return y_GIXe.unflatten(2, (-1, Y)).permute(0, 3, 1, 2, 4).flatten(2, 3)
