"""L_text: next-token cross-entropy."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def next_token_loss(logits_MV: Tensor, targets_M: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Sum over the M positions of -log p(target), in nats, computed in float32.

    With label smoothing e the target distribution is (1 - e) one-hot + e uniform (Szegedy et al. 2016).
    """
    return F.cross_entropy(logits_MV.float(), targets_M, label_smoothing=label_smoothing, reduction="sum")
