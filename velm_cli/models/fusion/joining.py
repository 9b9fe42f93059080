"""Fusions that join each text state with one vector of the image: concat, add, multiply, weighted_sum.

Shapes: B images, N = B * K texts, T positions, D width. v = W_v norm(pooled image), once an image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from velm_cli.data.packing import Packing
from velm_cli.models.fusion.interface import Fusion
from velm_cli.models.layers import Dropout
from velm_cli.models.vision.interface import ImageFeatures
from velm_cli.schema import AddConfig, ConcatConfig, MultiplyConfig, SumWeights, WeightedSumConfig


class _Joining(Fusion):
    """text_t and the image's vector v in, `join(text_t, v)` out."""

    uses = frozenset({"pooled"})
    packs = True

    def __init__(self, image_width: int, inner: int, *, bias: bool = True) -> None:
        super().__init__()
        self.norm_image = nn.LayerNorm(image_width)
        self.image = nn.Linear(image_width, inner, bias=bias)

    def memory(self, features: ImageFeatures | None) -> tuple:
        assert features is not None
        return (self.image(self.norm_image(features.pooled_BD)),)

    def forward(
        self,
        text_NTD: Tensor,
        memory: tuple,
        state=None,
        *,
        lengths_N: Tensor | None = None,
        packing: Packing | None = None,
    ) -> tuple[Tensor, tuple]:
        (image_BD,) = memory
        # The K texts of an image stand side by side, so its vector is broadcast and never copied.
        if packing is not None:
            text_M1D, image_MD = packing.pack(text_NTD).transpose(0, 1), image_BD.index_select(0, packing.image_M)
            return packing.pad(self.join(text_M1D, image_MD[:, None]).transpose(0, 1)), ()
        fused = self.join(text_NTD.reshape(image_BD.shape[0], -1, text_NTD.shape[-1]), image_BD[:, None])
        return fused.view(*text_NTD.shape[:2], -1), ()

    def join(self, text_BXD: Tensor, image_B1D: Tensor) -> Tensor:
        raise NotImplementedError


class Concat(_Joining):
    """fused_t = norm(W2 gelu(W1 [text_t ; image] + b1) + b2) ("merge" of Tanti et al. 2018).

    W1 is applied to its two halves apart, so the image's half is computed once an image.
    """

    def __init__(self, config: ConcatConfig, image_width: int, width: int) -> None:
        super().__init__(image_width, 2 * width, bias=False)
        self.text = nn.Linear(width, 2 * width)
        self.out = nn.Sequential(nn.GELU(), Dropout(config.dropout), nn.Linear(2 * width, width))
        self.norm = nn.LayerNorm(width)

    def join(self, text_BXD: Tensor, image_B1D: Tensor) -> Tensor:
        return self.norm(self.out(self.text(text_BXD) + image_B1D))


class Add(_Joining):
    """fused_t = norm(text_t + v + MLP(text_t + v)) (the sum of Tanti et al. 2018, then one residual MLP)."""

    def __init__(self, config: AddConfig, image_width: int, width: int) -> None:
        super().__init__(image_width, width)
        self.mlp = _mlp(width, config.dropout)
        self.norm = nn.LayerNorm(width)

    def join(self, text_BXD: Tensor, image_B1D: Tensor) -> Tensor:
        both = text_BXD + image_B1D
        return self.norm(both + self.mlp(both))


class Multiply(_Joining):
    """fused_t = norm(text_t + W_o (tanh(W_t text_t) * tanh(v))) (low-rank bilinear pooling, Kim et al. 2017)."""

    def __init__(self, config: MultiplyConfig, image_width: int, width: int) -> None:
        super().__init__(image_width, 2 * width)
        self.text = nn.Linear(width, 2 * width)
        self.out = nn.Sequential(Dropout(config.dropout), nn.Linear(2 * width, width))
        self.norm = nn.LayerNorm(width)

    def join(self, text_BXD: Tensor, image_B1D: Tensor) -> Tensor:
        return self.norm(text_BXD + self.out(self.text(text_BXD).tanh() * image_B1D.tanh()))


class WeightedSum(_Joining):
    """fused_t = norm(s_t + MLP(s_t)), s_t = a * text_t + b * v, a and b learned.

    `weights=scalar`: one a and b; `dimension`: one of each for every dimension; `gate`: a_t = sigmoid(W
    [text_t ; v]) and b_t = 1 - a_t for every token and dimension (gated multimodal unit, Arevalo et al. 2017).
    """

    def __init__(self, config: WeightedSumConfig, image_width: int, width: int) -> None:
        super().__init__(image_width, width)
        self.gate: nn.Linear | None = None
        if config.weights is SumWeights.gate:
            self.gate = nn.Linear(2 * width, width)
        else:
            size = 1 if config.weights is SumWeights.scalar else width
            self.weight_text, self.weight_image = nn.Parameter(torch.ones(size)), nn.Parameter(torch.ones(size))
        self.mlp = _mlp(width, config.dropout)
        self.norm = nn.LayerNorm(width)

    def join(self, text_BXD: Tensor, image_B1D: Tensor) -> Tensor:
        if self.gate is None:
            both = self.weight_text * text_BXD + self.weight_image * image_B1D
        else:
            gate = self.gate(torch.cat([text_BXD, image_B1D.expand_as(text_BXD)], dim=-1)).sigmoid()
            both = gate * text_BXD + (1 - gate) * image_B1D
        return self.norm(both + self.mlp(both))


def _mlp(width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), Dropout(dropout), nn.Linear(2 * width, width))
