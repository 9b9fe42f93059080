"""Sequences without padding in one row, and what each position of it sees: branches of a shared beginning, or nothing
but their own past.

A row has segments, one behind the other. A segment sees itself up to each position, and all of its ancestors: the
five captions of an image are children of the image's segment, which is there once, and the answers to a question
children of the question, a child of the image. A segment without parent begins a sequence of its own at position 0, so
a row also takes examples that have nothing in common.

Shapes: M positions of the row, S segments, R trees (a root with all that descends from it), Y positions of the largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Layout(NamedTuple):
    """Position i sees j iff j <= i in the row, and j's segment is that of i or an ancestor of it.

    A packed tensor is (1, M, D): segment by segment. `text.run(embedded_1ME, layout=layout)` returns its states
    (1, M, D) for `TextEncoder`s that have `takes_layouts`.
    """

    position_M: Tensor  # int64: a segment goes on from where its parent ends
    segment_M: Tensor  # int64
    tree_M: Tensor  # int64: number of the tree
    rank_M: Tensor  # int64: place among the positions of the tree
    sees_SS: Tensor  # bool: [s, r], whether segment s sees r: itself or an ancestor
    sizes: tuple[int, ...]  # positions of each tree
    longest: int  # positions that a sequence takes from its beginning on, at most

    @staticmethod
    def of(lengths: Sequence[int], parents: Sequence[int] | None = None) -> Layout:
        """For segments of these lengths, 0 among them; `parents`: number of a segment before it, -1 where there is none
        (None: nowhere)."""
        length_S = np.asarray(lengths, np.int64)
        S = len(length_S)
        begin_S, tree_S, before_S = (np.zeros(S, np.int64) for _ in range(3))
        sees_SS = np.eye(S, dtype=bool)
        sizes: list[int] = []
        for s, parent in enumerate([-1] * S if parents is None else parents):
            assert -1 <= parent < s, "a segment stands behind its parent"
            if parent < 0:
                tree_S[s] = len(sizes)
                sizes.append(0)
            else:
                tree_S[s], begin_S[s] = tree_S[parent], begin_S[parent] + length_S[parent]
                sees_SS[s] |= sees_SS[parent]
            before_S[s] = sizes[tree_S[s]]
            sizes[tree_S[s]] += int(length_S[s])
        segment_M = np.repeat(np.arange(S), length_S)
        within_M = np.arange(len(segment_M)) - np.repeat(np.cumsum(length_S) - length_S, length_S)
        return Layout(
            torch.from_numpy(begin_S[segment_M] + within_M),
            torch.from_numpy(segment_M),
            torch.from_numpy(tree_S[segment_M]),
            torch.from_numpy(before_S[segment_M] + within_M),
            torch.from_numpy(sees_SS),
            tuple(sizes),
            int((begin_S + length_S).max(initial=0)),
        )

    def after(self, positions: int) -> Layout:
        """With so many positions before those of each tree, all of which the tree sees: first the ones of all trees,
        then this row. The segments 0 to R - 1 have to be the roots."""
        R, device = len(self.sizes), self.position_M.device
        tree_RP = torch.arange(R, device=device)[:, None].expand(R, positions)
        place_RP = torch.arange(positions, device=device).expand(R, positions)
        return Layout(
            torch.cat([place_RP.flatten(), self.position_M + positions]),
            torch.cat([tree_RP.flatten(), self.segment_M]),
            torch.cat([tree_RP.flatten(), self.tree_M]),
            torch.cat([place_RP.flatten(), self.rank_M + positions]),
            self.sees_SS,
            tuple(size + positions for size in self.sizes),
            self.longest + positions,
        )

    @property
    def positions(self) -> int:
        """M"""
        return sum(self.sizes)

    def moved(self) -> tuple[Tensor, ...]:
        """What lies on a device."""
        return self[:5]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Layout:
        """The same on `device`."""
        position_M, segment_M, tree_M, rank_M, sees_SS = (
            tensor.to(device, non_blocking=non_blocking) for tensor in self.moved()
        )
        return Layout(position_M, segment_M, tree_M, rank_M, sees_SS, self.sizes, self.longest)
