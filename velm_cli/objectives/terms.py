"""What every objective returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Term:
    """One objective on one micro-batch: the loss summed over `count` items (tokens, images, captions).

    The loop divides sums by the *global* count, over micro-batches and ranks, so that a micro-batch
    with short captions does not weigh too much. `figures` are further numbers for the log.
    """

    sum: Tensor
    count: int
    figures: Mapping[str, Tensor] = field(default_factory=dict)
