"""L_text: next-token cross-entropy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def next_token_loss(logits_MV: Tensor, targets_M: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Sum over the M positions of -log p(target), in nats, computed in float32.

    With label smoothing e the target distribution is (1 - e) one-hot + e uniform (Szegedy et al. 2016).
    """
    return F.cross_entropy(logits_MV.float(), targets_M, label_smoothing=label_smoothing, reduction="sum")


def chunked_next_token_loss(
    logits: Callable[[Tensor], Tensor],
    states_MD: Tensor,
    targets_M: Tensor,
    *,
    chunk: int,
    label_smoothing: float = 0.0,
) -> Tensor:
    """`next_token_loss(logits(states), targets)` with the logits of at most `chunk` positions in memory at once.

    They are computed again in backward, so memory falls from M * V to chunk * V floats and the output
    layer's work rises by half. `chunk=0` is the plain loss.
    """

    def of(states: Tensor, targets: Tensor) -> Tensor:
        return next_token_loss(logits(states), targets, label_smoothing=label_smoothing)

    if not chunk or len(states_MD) <= chunk:
        return of(states_MD, targets_M)
    parts = zip(states_MD.split(chunk), targets_M.split(chunk), strict=True)
    return torch.stack([checkpoint(of, *part, use_reentrant=False) for part in parts]).sum()
