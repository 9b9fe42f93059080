"""Additive attention without its largest tensor: tanh(query + key) exists in pieces that fit into a CPU's cache.

Shapes: B images, N = B * K texts, T text and S image positions, X = K * T, A attention width, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from velm_cli.models.state import ImageKeys

PIECE = {"cpu": 1 << 19}  # numbers of tanh(query + key) that exist at once
LARGE_PIECE = 1 << 24  # elsewhere, where starting an operation costs more than memory does


class AdditiveAttention(nn.Module):
    """c = sum_i softmax_i(u . tanh(W_q q + W_k image_i)) W_v image_i (Bahdanau et al. 2015)."""

    def __init__(self, width: int, image_width: int, inner: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, inner)
        self.key = nn.Linear(image_width, inner, bias=False)
        self.value = nn.Linear(image_width, width)
        self.score = nn.Linear(inner, 1, bias=False)

    def memory(self, image_BSD: Tensor, visible_BS: Tensor | None = None) -> ImageKeys:
        return ImageKeys(self.key(image_BSD), self.value(image_BSD), visible_BS)

    def memory_for(self, image_BSD: Tensor, positions: int, visible_BS: Tensor | None = None) -> ImageKeys:
        return self.memory(image_BSD, visible_BS)

    def forward(self, x_NTD: Tensor, memory: ImageKeys) -> Tensor:
        return (self._weights(x_NTD, memory) @ memory.values).view(*x_NTD.shape[:2], -1)

    def weights(self, x_NTD: Tensor, memory: ImageKeys) -> Tensor:
        """(N, T, S): the share of each image position in what a text position sees."""
        return self._weights(x_NTD, memory).view(*x_NTD.shape[:2], -1)

    def _weights(self, x_NTD: Tensor, memory: ImageKeys) -> Tensor:
        """(B, X, S)"""
        key_BSA, _, visible_BS = memory
        query_BXA = self.query(x_NTD).view(len(key_BSA), -1, key_BSA.shape[-1])
        scores_BXS = additive_scores(query_BXA, key_BSA.to(query_BXA.dtype), self.score.weight[0])
        if visible_BS is not None:
            scores_BXS = scores_BXS.masked_fill(~visible_BS[:, None], -torch.inf)
        return scores_BXS.softmax(-1)


def additive_scores(query_BXA: Tensor, key_BSA: Tensor, u_A: Tensor) -> Tensor:
    """(B, X, S): u . tanh(query_x + key_s)."""
    u_A = u_A.to(query_BXA.dtype)
    if torch.compiler.is_compiling():  # the compiler fuses it by itself, and would unroll the pieces
        return (query_BXA[:, :, None] + key_BSA[:, None]).tanh() @ u_A
    return _Scores.apply(query_BXA, key_BSA, u_A)


class _Scores(torch.autograd.Function):
    """Keeps query and key for backward, which computes tanh a second time: that costs less than writing the
    B * X * S * A numbers to memory and reading them back, and nothing is fetched from the system for them."""

    @staticmethod
    def forward(ctx: Any, query_BXA: Tensor, key_BSA: Tensor, u_A: Tensor) -> Tensor:
        ctx.save_for_backward(query_BXA, key_BSA, u_A)
        scores_BXS = query_BXA.new_empty(*query_BXA.shape[:2], key_BSA.shape[1])
        for images, texts in _pieces(query_BXA, key_BSA):
            scores_BXS[images, texts] = _tanh(query_BXA, key_BSA, images, texts) @ u_A
        return scores_BXS

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BXS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query_BXA, key_BSA, u_A = ctx.saved_tensors
        grad_query_BXA = torch.empty_like(query_BXA)
        # Sums over pieces; float32 at least, since bfloat16 loses small terms of a long sum.
        exact = torch.promote_types(u_A.dtype, torch.float32)
        grad_key_BSA = torch.zeros_like(key_BSA, dtype=exact)
        grad_u_A = torch.zeros_like(u_A, dtype=exact)
        for images, texts in _pieces(query_BXA, key_BSA):
            tanh_bxSA = _tanh(query_BXA, key_BSA, images, texts)
            grad_bxS = grad_BXS[images, texts]
            grad_u_A += grad_bxS.reshape(-1) @ tanh_bxSA.flatten(0, 2)
            # grad * (1 - tanh^2) in one pass; u is the same for all and comes last
            slope_bxSA = torch.ops.aten.tanh_backward(grad_bxS[..., None].expand_as(tanh_bxSA), tanh_bxSA)
            torch.sum(slope_bxSA, 2, out=grad_query_BXA[images, texts])
            grad_key_BSA[images] += slope_bxSA.sum(1)
        return grad_query_BXA * u_A, (grad_key_BSA * u_A).to(key_BSA.dtype), grad_u_A.to(u_A.dtype)


def _tanh(query_BXA: Tensor, key_BSA: Tensor, images: slice, texts: slice) -> Tensor:
    return (query_BXA[images, texts, None] + key_BSA[images, None]).tanh_()


def _pieces(query_BXA: Tensor, key_BSA: Tensor) -> Iterator[tuple[slice, slice]]:
    """Several images with all their text positions, or where one image has too many, some of these."""
    B, X, A = query_BXA.shape
    room = max(1, PIECE.get(query_BXA.device.type, LARGE_PIECE) // max(1, key_BSA.shape[1] * A))  # text positions
    images, texts = max(1, room // max(1, X)), min(room, max(1, X))
    for image in range(0, B, images):
        for text in range(0, X, texts):
            yield slice(image, image + images), slice(text, text + texts)
