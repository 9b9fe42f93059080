"""What an image and a text are to L_joint: one vector of many positions.

Shapes: N images or texts, S positions (of the image, or words), H queries, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from velm_cli.models.layers import Dropout, at_least_float32

UNSEEN = -1e4  # as a score, in any precision; of a text without words all positions are


class QueryPooling(nn.Module):
    """The given vector and what H learned queries see of the positions, all normalised: (1 + H) D numbers.

    a_h = softmax_s(q_h . norm(x_s)),  pooled = norm([given ; sum_s a_1s norm(x_s) ; ...]): attention pooling with
    queries that are learned and not made of the input (Lin et al. 2017; Lee et al. 2019).
    """

    no_decay = ("query_DH",)

    def __init__(self, width: int, queries: int, dropout: float) -> None:
        super().__init__()
        self.norm_positions = nn.LayerNorm(width)
        self.query_DH = nn.Parameter(torch.randn(width, queries) * width**-0.5)
        self.norm = nn.LayerNorm((1 + queries) * width)
        self.dropout = Dropout(dropout)

    def forward(self, given_ND: Tensor, states_NSD: Tensor, visible_NS: Tensor | None = None) -> Tensor:
        """(N, (1 + H) D)"""
        x_NSD = self.norm_positions(states_NSD)
        scores_NSH = at_least_float32(x_NSD @ self.query_DH)
        if visible_NS is not None:
            scores_NSH = scores_NSH.masked_fill(~visible_NS[:, :, None], UNSEEN)
        seen_NHD = scores_NSH.softmax(dim=1).to(x_NSD.dtype).transpose(1, 2) @ x_NSD
        pooled = self.norm(torch.cat([given_ND, seen_NHD.flatten(1).to(given_ND.dtype)], dim=1))
        return self.dropout(pooled)  # type: ignore[no-any-return]
