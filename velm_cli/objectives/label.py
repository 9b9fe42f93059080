"""L_joint as the loss of a label: which class does the fused text and image tell of (an answer, a category)?

Shapes: B examples, D width of what is judged, C labels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from velm_cli.models.layers import Dropout, at_least_float32
from velm_cli.schema.tasks import LabelLoss


class LabelHead(nn.Module):
    """logits = W2 dropout(gelu(W1 norm(x))), as the classifiers of VQA models are (Anderson et al. 2018).

    `linear`: logits = W dropout(norm(x)), with which a frozen encoder is probed.
    With the sigmoid loss the bias starts at -ln C: of many labels an example has about one.
    """

    def __init__(self, width: int, labels: int, *, form: LabelLoss, dropout: float, linear: bool = False) -> None:
        super().__init__()
        self.form = form
        last = nn.Linear(width if linear else 2 * width, labels)
        nn.init.normal_(last.weight, std=0.02)
        nn.init.constant_(last.bias, -math.log(labels) if form is LabelLoss.sigmoid else 0.0)
        hidden = () if linear else (nn.Linear(width, 2 * width), nn.GELU())
        self.layers = nn.Sequential(nn.LayerNorm(width), *hidden, Dropout(dropout), last)

    def forward(self, judged_BD: Tensor) -> Tensor:
        """Logits (B, C), in float32 at least."""
        return at_least_float32(self.layers(judged_BD))

    def probabilities(self, logits_BC: Tensor) -> Tensor:
        """Of the labels, in one example (softmax) or each by itself (sigmoid)."""
        return logits_BC.softmax(-1) if self.form is LabelLoss.softmax else logits_BC.sigmoid()

    def loss(self, logits_BC: Tensor, shares_BC: Tensor) -> Tensor:
        """Sum over the examples, nats; `shares`: how far each label is right, from 0 to 1 (soft targets).

        Softmax: cross-entropy with the shares divided by their sum, so annotators that differ are one distribution; an
        example of which no label is known counts nothing. Sigmoid: binary cross-entropy, summed over the labels.
        """
        shares_BC = shares_BC.to(logits_BC.dtype)
        if self.form is LabelLoss.sigmoid:
            return F.binary_cross_entropy_with_logits(logits_BC, shares_BC, reduction="sum")
        sums_B1 = shares_BC.sum(1, keepdim=True)
        return -(shares_BC / torch.where(sums_B1 > 0, sums_B1, 1.0) * logits_BC.log_softmax(-1)).sum()

    def counted(self, examples: int, labelled: int) -> int:
        """How many of a batch's examples `loss` runs over."""
        return labelled if self.form is LabelLoss.softmax else examples
