"""Padded texts without their padding: what is done position by position is done at the text's positions only.

Shapes: B images, N = B * K texts of T positions, M positions of them all that are text, Y those of the image that has
most of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Packing(NamedTuple):
    """Where the text is in the rows of a batch. A packed tensor is (1, M, D): row by row, the texts' positions."""

    positions_M: Tensor  # int64, in the flat (N * T)
    by_time_M: Tensor  # the same: the first ones of all texts, longest text first, then the second ones ...
    sizes: Tensor  # int64, never on a device: how many first ones there are, second ones ...
    places_M: Tensor  # int64, in the flat (B * Y): those of an image side by side
    texts: int  # N
    length: int  # T
    images: int  # B
    widest: int  # Y

    @staticmethod
    def of(lengths_BK: np.ndarray, length: int) -> Packing:
        """For texts of so many positions, int64 [B, K], in rows of `length` each."""
        B, K = lengths_BK.shape
        counts_B = lengths_BK.sum(axis=1)
        image_M = np.repeat(np.arange(B), counts_B)
        rank_M = np.arange(len(image_M)) - np.repeat(np.cumsum(counts_B) - counts_B, counts_B)
        widest = int(counts_B.max(initial=0))
        positions_M = np.flatnonzero(np.arange(length) < lengths_BK[:, :, None])
        text_M, time_M = np.divmod(positions_M, max(1, length))
        place_N = np.empty(B * K, np.int64)
        place_N[np.argsort(-lengths_BK.reshape(-1), kind="stable")] = np.arange(B * K)
        return Packing(
            torch.from_numpy(positions_M),
            torch.from_numpy(positions_M[np.argsort(time_M * B * K + place_N[text_M])]),
            torch.from_numpy(np.bincount(time_M)),
            torch.from_numpy(image_M * widest + rank_M),
            B * K,
            length,
            B,
            widest,
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Packing:
        """The same on `device`."""
        positions_M, by_time_M, places_M = (tensor.to(device, non_blocking=non_blocking) for tensor in self.moved())
        return self._replace(positions_M=positions_M, by_time_M=by_time_M, places_M=places_M)

    def moved(self) -> tuple[Tensor, ...]:
        """What lies on a device."""
        return self.positions_M, self.by_time_M, self.places_M

    @property
    def image_M(self) -> Tensor:
        """The number of each position's image."""
        return self.places_M // max(1, self.widest)

    def pack(self, x_NTD: Tensor) -> Tensor:
        """(1, M, D)"""
        return x_NTD.flatten(0, 1).index_select(0, self.positions_M)[None]

    def pad(self, x_1MD: Tensor) -> Tensor:
        """(N, T, D), zeros where no text is."""
        return spread(x_1MD[0], self.positions_M, self.texts, self.length)

    def by_image(self, x_1MD: Tensor) -> Tensor:
        """(B, Y, D): the positions of an image's texts side by side, then zeros."""
        return spread(x_1MD[0], self.places_M, self.images, self.widest)

    def pack_images(self, x_BYD: Tensor) -> Tensor:
        """(1, M, D) of what `by_image` has put side by side."""
        return x_BYD.flatten(0, 1).index_select(0, self.places_M)[None]


def spread(x_MD: Tensor, places_M: Tensor, rows: int, length: int) -> Tensor:
    """(rows, length, D): x at the flat `places`, zeros elsewhere."""
    D = x_MD.shape[-1]
    return x_MD.new_zeros(rows * length, D).index_copy(0, places_M, x_MD).view(rows, length, D)
