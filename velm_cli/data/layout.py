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

    A packed tensor is (1, M, D): segment by segment. `text.run_row(embedded_1ME, layout)` returns the states of any
    causal `TextEncoder`, (1, M, D).
    """

    position_M: Tensor  # int64: a segment goes on from where its parent ends
    segment_M: Tensor  # int64
    tree_M: Tensor  # int64: number of the tree
    rank_M: Tensor  # int64: place among the positions of the tree
    sees_SS: Tensor  # bool: [s, r], whether segment s sees r: itself or an ancestor
    lengths: tuple[int, ...]  # positions of each segment, without those that `after` has put before the trees
    parents: tuple[int, ...]  # number of a segment before it, -1: none
    first: int = 0  # positions that each tree begins with beside its segments: `after`

    @staticmethod
    def of(lengths: Sequence[int], parents: Sequence[int] | None = None) -> Layout:
        """For segments of these lengths, 0 among them; `parents`: number of a segment before it, -1 where there is none
        (None: nowhere)."""
        length_S = np.asarray(lengths, np.int64)
        S = len(length_S)
        begin_S, tree_S, before_S = (np.zeros(S, np.int64) for _ in range(3))
        sees_SS = np.eye(S, dtype=bool)
        sizes: list[int] = []
        parents = [-1] * S if parents is None else [int(parent) for parent in parents]
        for s, parent in enumerate(parents):
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
            tuple(length_S.tolist()),
            tuple(parents),
        )

    def after(self, positions: int) -> Layout:
        """With so many positions before those of each tree, all of which the tree sees: first the ones of all trees,
        then this row. The segments 0 to R - 1 have to be the roots."""
        R, device = len(self.sizes), self.position_M.device
        assert not self.first and max(self.parents[:R], default=-1) < 0
        tree_RP = torch.arange(R, device=device)[:, None].expand(R, positions)
        place_RP = torch.arange(positions, device=device).expand(R, positions)
        return Layout(
            torch.cat([place_RP.flatten(), self.position_M + positions]),
            torch.cat([tree_RP.flatten(), self.segment_M]),
            torch.cat([tree_RP.flatten(), self.tree_M]),
            torch.cat([place_RP.flatten(), self.rank_M + positions]),
            self.sees_SS,
            self.lengths,
            self.parents,
            positions,
        )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Positions of each tree."""
        sizes: list[int] = []
        tree: list[int] = []
        for length, parent in zip(self.lengths, self.parents, strict=True):
            tree.append(len(sizes) if parent < 0 else tree[parent])
            if parent < 0:
                sizes.append(self.first)
            sizes[tree[-1]] += length
        return tuple(sizes)

    @property
    def longest(self) -> int:
        """Positions that a sequence takes from its beginning on, at most."""
        stops: list[int] = []
        for length, parent in zip(self.lengths, self.parents, strict=True):
            stops.append(length + (self.first if parent < 0 else stops[parent]))
        return max(stops, default=0)

    @property
    def positions(self) -> int:
        """M"""
        return sum(self.sizes)

    def sequences(self) -> tuple[np.ndarray, np.ndarray]:
        """(int64 [F, T]: where in the row the positions of each whole sequence stand, one for each segment without
        children, -1 behind its end; int64 [M]: where in those, flat, each position of the row is)."""
        inner, roots = set(self.parents), [s for s, parent in enumerate(self.parents) if parent < 0]
        begins = np.cumsum([len(roots) * self.first, *self.lengths])
        paths: list[list[int]] = []
        for segment in (s for s in range(len(self.lengths)) if s not in inner):
            path: list[int] = []
            while segment >= 0:
                path[:0] = range(begins[segment], begins[segment + 1])
                if self.parents[segment] < 0 and self.first:
                    root = roots.index(segment)
                    path[:0] = range(root * self.first, (root + 1) * self.first)
                segment = self.parents[segment]
            paths.append(path)
        longest = max(map(len, paths), default=0)
        place_FT = np.array([path + [-1] * (longest - len(path)) for path in paths], np.int64).reshape(-1, longest)
        at_M = np.zeros(self.positions, np.int64)
        flat = place_FT.reshape(-1)
        at_M[flat[flat >= 0]] = np.flatnonzero(flat >= 0)
        return place_FT, at_M

    def moved(self) -> tuple[Tensor, ...]:
        """What lies on a device."""
        return self[:5]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Layout:
        """The same on `device`."""
        position_M, segment_M, tree_M, rank_M, sees_SS = (
            tensor.to(device, non_blocking=non_blocking) for tensor in self.moved()
        )
        return Layout(position_M, segment_M, tree_M, rank_M, sees_SS, self.lengths, self.parents, self.first)
