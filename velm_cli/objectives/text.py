"""L_text: the next word, or hidden words, by cross-entropy.

Shapes: N captions, T positions, M predicted positions, V vocabulary, D width.
"""

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


def hide_words(
    tokens_NT: Tensor, lengths_N: Tensor, *, share: float, mask_id: int, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Hide about `share` of the words, BOS and EOS excepted (BERT; Devlin et al. 2019).

    Of the chosen words 80 % become `mask_id`, 10 % a random token, 10 % stay. Returns the changed tokens and
    the flat positions (M) of the chosen words; a batch with words has at least one.
    """
    position_T = torch.arange(tokens_NT.shape[1], device=tokens_NT.device)
    words_NT = (position_T >= 1) & (position_T < lengths_N[:, None] - 1)
    draw_NT = torch.rand(tokens_NT.shape, device=tokens_NT.device).masked_fill(~words_NT, 1.0)
    chosen_NT = words_NT & (draw_NT <= draw_NT.min().clamp(min=share))
    how_NT = torch.rand(tokens_NT.shape, device=tokens_NT.device)
    random_NT = torch.randint(vocab_size, tokens_NT.shape, device=tokens_NT.device)
    hidden_NT = torch.where(chosen_NT & (how_NT < 0.8), mask_id, tokens_NT)
    hidden_NT = torch.where(chosen_NT & (how_NT >= 0.9), random_NT, hidden_NT)
    return hidden_NT, chosen_NT.flatten().nonzero()[:, 0]


def own_words(inputs_NT: Tensor, logits_MV: Tensor, positions_M: Tensor, *, probability: float) -> Tensor:
    """Scheduled sampling (Bengio et al. 2015) in two passes (Mihaylova & Martins 2019).

    `logits` are the model's with the true words as input, at the flat positions `positions` of (N, T); word t + 1
    of the input is replaced, with `probability`, by one drawn from the distribution at position t.
    """
    drawn_M = torch.multinomial(logits_MV.float().softmax(-1), 1)[:, 0]
    here, after = positions_M[:-1], positions_M[1:]
    is_input = (after == here + 1) & (after % inputs_NT.shape[1] != 0)  # what the last position says is no input
    replaced = is_input & (torch.rand(len(here), device=here.device) < probability)
    mixed = inputs_NT.flatten().clone()
    mixed[after[replaced]] = drawn_M[:-1][replaced]
    return mixed.view_as(inputs_NT)
