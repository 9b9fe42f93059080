"""Batches of a mixture: which part has its turn, a pure function of the batch's number.

The k-th batch of a part is the k-th batch of a run on that part alone, bit for bit: a part has its own epochs.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, closing
from itertools import count
from typing import Protocol

import numpy as np

from velm_cli.data.batch import Batch

TOGETHER = 4096  # turns that are found at once, at least


class Loader(Protocol):
    """Endless batches of one part."""

    @property
    def batch_size(self) -> int: ...

    @property
    def captions_per_image(self) -> int: ...

    @property
    def batches_per_epoch(self) -> int: ...

    def batches(self, start: int = 0) -> Generator[Batch, None, None]: ...


class MixedLoader:
    """Endless training batches, each of one of the parts, which get their turns in proportion to their weights.

    An epoch has as many batches as one epoch of each part together.
    """

    def __init__(self, loaders: Mapping[str, Loader], weights: Mapping[str, float]) -> None:
        self.loaders = dict(loaders)
        total = sum(weights.values())
        self.shares = {name: weights[name] / total for name in self.loaders}
        self._turns = np.zeros(0, np.int64)

    @property
    def batch_size(self) -> int:
        """Examples of the smallest global batch."""
        return min(loader.batch_size for loader in self.loaders.values())

    @property
    def captions_per_image(self) -> int:
        return max(loader.captions_per_image for loader in self.loaders.values())

    @property
    def batches_per_epoch(self) -> int:
        return sum(loader.batches_per_epoch for loader in self.loaders.values())

    def batches(self, start: int = 0) -> Generator[Batch, None, None]:
        """Batches number `start`, `start + 1`, ... since the beginning of training, without end."""
        names = list(self.loaders)
        before = np.bincount(self.turns(start), minlength=len(names)).tolist()
        with ExitStack() as stack:
            coming: list[Iterator[Batch]] = [
                stack.enter_context(closing(self.loaders[name].batches(own)))
                for name, own in zip(names, before, strict=True)
            ]
            for number in count(start):
                part = int(self.turns(number + 1)[number])
                batch = next(coming[part])
                batch.part = names[part]
                yield batch

    def turns(self, batches: int) -> np.ndarray:
        """int64 [batches]: the number of the part whose turn the first so many batches are.

        The k-th batch (from 0) of a part of share w stands at (k + 1/2) / w, and all go in the order of their places,
        so that each part has its share of every stretch; ties go by the order of the parts.
        """
        if batches > len(self._turns):
            self._turns = _turns(list(self.shares.values()), max(TOGETHER, 2 * batches))
        return self._turns[:batches]


def _turns(shares: list[float], batches: int) -> np.ndarray:
    # A few more of each than its share: of what may still stand before the last place none is missing.
    each = [int(np.ceil(share * batches)) + len(shares) + 1 for share in shares]
    place = np.concatenate([(np.arange(n) + 0.5) / share for n, share in zip(each, shares, strict=True)])
    part = np.repeat(np.arange(len(shares)), each)
    return part[np.lexsort((part, place))][:batches]
