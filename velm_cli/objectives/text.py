"""L_text: the next word, or hidden words, by cross-entropy.

Shapes: N captions, T positions, M predicted positions, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from velm_cli.models.layers import at_least_float32, product_dtype, soft_capped
from velm_cli.models.search import log_probs

LOGITS = {"cpu": 3 << 23}  # bytes of logits that exist at once: glibc keeps up to 1 << 25 when it is freed
MANY_LOGITS = 1 << 29  # elsewhere
IN_CACHE = {"cpu": 1 << 20}  # bytes of them that stay in a core's cache from softmax to gradient
ALL_AT_ONCE = 1 << 21  # so few are not worth any care


def next_token_loss(logits_MV: Tensor, targets_M: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Sum over the M positions of -log p(target), in nats, computed in float32 at least.

    With label smoothing e the target distribution is (1 - e) one-hot + e uniform (Szegedy et al. 2016).
    """
    return F.cross_entropy(at_least_float32(logits_MV), targets_M, label_smoothing=label_smoothing, reduction="sum")


def words_loss(
    states_MD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor,
    targets_M: Tensor,
    *,
    cap: float = 0.0,
    chunk: int = 0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """`next_token_loss(soft_capped(states @ weight^T + bias, cap), targets)`, the logits of only `chunk` positions in
    memory at once.

    `chunk=0` takes what the device holds close by. Gradients are computed with the loss, chunk by chunk, so that
    backward neither needs the logits nor computes them again.
    """
    vocab = len(weight_VD)
    if not chunk and len(states_MD) * vocab <= ALL_AT_ONCE:
        logits_MV = soft_capped(F.linear(states_MD, weight_VD, bias_V), cap)
        return next_token_loss(logits_MV, targets_M, label_smoothing=label_smoothing)
    learns = torch.is_grad_enabled()
    return _WordsLoss.apply(states_MD, weight_VD, bias_V, targets_M, cap, chunk, label_smoothing, learns)  # type: ignore[no-any-return]  # torch types no Function's result


class _WordsLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states_MD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor,
        targets_M: Tensor,
        cap: float,
        chunk: int,
        smoothing: float,
        learns: bool,
    ) -> Tensor:
        device, dtype = states_MD.device.type, product_dtype(weight_VD)
        inputs_MD, matrix_VD, offset_V = (tensor.to(dtype) for tensor in (states_MD, weight_VD, bias_V))
        wants_states, wants_weight, wants_bias = (learns and wanted for wanted in ctx.needs_input_grad[:3])
        exact = torch.promote_types(weight_VD.dtype, torch.float32)  # of sums over chunks
        grad_MD = torch.empty_like(states_MD) if wants_states else None
        grad_VD: Tensor | None = None
        grad_V = torch.zeros_like(bias_V, dtype=exact) if wants_bias else None
        loss = torch.zeros((), dtype=exact, device=states_MD.device)
        chunk = chunk or max(1, LOGITS.get(device, MANY_LOGITS) // (len(matrix_VD) * dtype.itemsize))
        few = max(1, IN_CACHE.get(device, MANY_LOGITS) // (len(matrix_VD) * exact.itemsize))
        for start in range(0, len(states_MD), chunk):
            rows = slice(start, start + chunk)
            logits_CV = F.linear(inputs_MD[rows], matrix_VD, offset_V)
            for logits_RV, target_R in zip(logits_CV.split(few), targets_M[rows].split(few), strict=True):
                target_R1 = target_R[:, None]
                log_p_RV = soft_capped(logits_RV.to(exact), cap).log_softmax(-1)
                loss -= (1 - smoothing) * log_p_RV.gather(1, target_R1).sum()
                if smoothing:
                    loss -= smoothing * log_p_RV.mean(-1).sum()
                if not (wants_states or wants_weight or wants_bias):
                    continue
                grad_RV = log_p_RV.exp_().sub_(smoothing / len(weight_VD))  # p - the distribution that is wanted
                grad_RV.scatter_add_(1, target_R1, grad_RV.new_full((), smoothing - 1).expand_as(target_R1))
                if cap:
                    grad_RV *= 1 - (logits_RV.to(exact) / cap).tanh_().square_()
                if grad_V is not None:
                    grad_V += grad_RV.sum(0)
                logits_RV.copy_(grad_RV)
            grad_CV = logits_CV  # its place is taken
            if grad_MD is not None:
                grad_MD[rows] = grad_CV @ matrix_VD
            if not wants_weight:
                continue
            if grad_VD is None:
                grad_VD = (grad_CV.t() @ inputs_MD[rows]).to(exact)
            elif dtype == exact:
                torch.addmm(
                    grad_VD, grad_CV.t(), inputs_MD[rows], out=grad_VD
                )  # addmm_ would escape the count of flops
            else:
                grad_VD += grad_CV.t() @ inputs_MD[rows]
        ctx.save_for_backward(grad_MD, grad_VD, grad_V)
        ctx.dtypes = (states_MD.dtype, weight_VD.dtype, bias_V.dtype)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (
            None if found is None else (found * grad).to(dtype)
            for found, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*gradients, *[None] * 5)


def hide_words(
    tokens_NT: Tensor, lengths_N: Tensor, *, share: float, words: int, mask_id: int, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Hide a `share` of the words, BOS and EOS excepted (BERT; Devlin et al. 2019).

    Of the chosen words 80 % become `mask_id`, 10 % a random token, 10 % stay. `words` is how many there are,
    so that the number of chosen ones depends on no value on the device. Returns the changed tokens and the
    flat positions (M) of the chosen words, at least one where there are words.
    """
    position_T = torch.arange(tokens_NT.shape[1], device=tokens_NT.device)
    is_word_NT = (position_T >= 1) & (position_T < lengths_N[:, None] - 1)
    draw_NT = torch.rand(tokens_NT.shape, dtype=torch.float32, device=tokens_NT.device).masked_fill(~is_word_NT, 2.0)
    chosen_M = draw_NT.flatten().topk(min(words, max(1, round(share * words))), largest=False).indices
    before_M = tokens_NT.flatten()[chosen_M]
    how_M = torch.rand(chosen_M.shape, dtype=torch.float32, device=tokens_NT.device)
    random_M = torch.randint(vocab_size, chosen_M.shape, device=tokens_NT.device)
    shown_M = torch.where(how_M < 0.8, mask_id, torch.where(how_M < 0.9, random_M, before_M))
    return tokens_NT.flatten().scatter(0, chosen_M, shown_M).view_as(tokens_NT), chosen_M


def own_words(
    inputs_NT: Tensor, logits_MV: Tensor, positions_M: Tensor, *, probability: float, banned: Sequence[int] = ()
) -> Tensor:
    """Scheduled sampling (Bengio et al. 2015) in two passes (Mihaylova & Martins 2019).

    `logits` are the model's with the true words as input, at the flat positions `positions` of (N, T); word t + 1
    of the input is replaced, with `probability`, by one drawn from the distribution at position t without the `banned`
    tokens, which decoding never writes either.
    """
    banned_ids = torch.tensor(list(banned), dtype=torch.long, device=logits_MV.device)
    drawn_M = torch.multinomial(log_probs(logits_MV, banned_ids).exp(), 1)[:, 0]
    here, after = positions_M[:-1], positions_M[1:]
    is_input = (after == here + 1) & (after % inputs_NT.shape[1] != 0)  # what the last position says is no input
    replaced = is_input & (torch.rand(len(here), dtype=torch.float32, device=here.device) < probability)
    mixed = inputs_NT.flatten().clone()
    mixed[after[replaced]] = drawn_M[:-1][replaced]
    return mixed.view_as(inputs_NT)
