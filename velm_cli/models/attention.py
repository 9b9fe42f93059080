"""Scaled dot-product attention (Vaswani et al. 2017, 3.2.1): torch's kernels, and a backward where theirs is slow.

Shapes: N sequences, H heads, T queries, S keys, d width of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

SCORES = 1 << 27  # of T * S * H * N: beyond it torch's backward, which never holds them all


def attend(
    query_NHTd: Tensor,
    key_NHSd: Tensor,
    value_NHSd: Tensor,
    *,
    visible: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """(N, H, T, d): the mean of the values weighted by softmax(scale * q . k); a scale of None is 1 / sqrt(d).

    `visible`, bool, broadcast to (N, H, T, S): which keys a query may look at, at least one. `causal`: those up to its
    own position. `dropout`: of the weights.
    """
    if not dropout and by_products(query_NHTd, key_NHSd, value_NHSd):
        attended: Tensor = _ByProducts.apply(query_NHTd, key_NHSd, value_NHSd, visible, causal, scale)
        return attended
    return F.scaled_dot_product_attention(
        query_NHTd, key_NHSd, value_NHSd, attn_mask=visible, is_causal=causal, scale=scale, dropout_p=dropout
    )


def by_products(query_NHTd: Tensor, key_NHSd: Tensor, value_NHSd: Tensor) -> bool:
    """Whether `attend` has a backward of its own: on a CPU torch multiplies bfloat16 without the tiles that its
    matrix products use."""
    return (
        query_NHTd.device.type == "cpu"
        and query_NHTd.dtype is torch.bfloat16
        and query_NHTd.shape[-1] == value_NHSd.shape[-1]
        and torch.is_grad_enabled()
        and any(x.requires_grad for x in (query_NHTd, key_NHSd, value_NHSd))
        and query_NHTd.shape[:3].numel() * key_NHSd.shape[2] <= SCORES
    )


class _ByProducts(torch.autograd.Function):
    """torch's forward; a backward of five matrix products and two passes of softmax over the scores, made again."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, causal: bool, scale: float | None
    ) -> Tensor:
        mask = None if visible is None else added_to_scores(visible, q.dtype)
        y, log_sum_NHT = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=mask, scale=scale
        )
        ctx.save_for_backward(q, k, v, log_sum_NHT, visible)
        ctx.causal, ctx.scale = causal, q.shape[-1] ** -0.5 if scale is None else scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, log_sum_NHT, visible = ctx.saved_tensors
        (N, H, T, d), S = q.shape, k.shape[2]
        q_XTd, k_XSd, v_XSd, dy_XTd = (x.reshape(N * H, -1, d) for x in (q, k, v, gradients[0]))  # X = N * H
        scale = ctx.scale
        # Scores are rounded to bfloat16. So that those which matter are near 0, that of the probability e^-3 is taken
        # off within the product; softmax is the same for it.
        offset_XTS = (3.0 - log_sum_NHT).to(q.dtype).reshape(N * H, T, 1).expand(-1, -1, S)
        for shown in (visible, torch.ones(T, S, dtype=torch.bool).tril() if ctx.causal else None):
            if shown is not None:
                offset_XTS = (offset_XTS.unflatten(0, (N, H)) + added_to_scores(shown, q.dtype)).view(N * H, T, S)
        p_XTS = torch.baddbmm(offset_XTS, q_XTd, k_XSd.mT, alpha=scale).softmax(-1)
        dv_XSd = p_XTS.mT @ dy_XTd
        ds_XTS = torch._softmax_backward_data(dy_XTd @ v_XSd.mT, p_XTS, -1, q.dtype)
        dq_XTd = torch.baddbmm(q_XTd, ds_XTS, k_XSd, beta=0, alpha=scale)
        dk_XSd = torch.baddbmm(k_XSd, ds_XTS.mT, q_XTd, beta=0, alpha=scale)
        return dq_XTd.view_as(q), dk_XSd.view_as(k), dv_XSd.view_as(v), None, None, None


def added_to_scores(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores: 0 where `visible`, else minus infinity."""
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, -math.inf)
