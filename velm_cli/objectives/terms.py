"""What every objective returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Term:
    """One objective on one micro-batch: the loss summed over `count` items (tokens, images, captions).

    The loop divides sums by the *global* count, over micro-batches and ranks, so that a micro-batch
    with short captions does not weigh too much.
    """

    sum: Tensor
    count: int
