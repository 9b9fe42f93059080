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
    tokens_NT: Tensor, lengths_N: Tensor, *, share: float, words: int, mask_id: int, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Hide a `share` of the words, BOS and EOS excepted (BERT; Devlin et al. 2019).

    Of the chosen words 80 % become `mask_id`, 10 % a random token, 10 % stay. `words` is how many there are,
    so that the number of chosen ones depends on no value on the device. Returns the changed tokens and the
    flat positions (M) of the chosen words, at least one where there are words.
    """
    position_T = torch.arange(tokens_NT.shape[1], device=tokens_NT.device)
    is_word_NT = (position_T >= 1) & (position_T < lengths_N[:, None] - 1)
    draw_NT = torch.rand(tokens_NT.shape, device=tokens_NT.device).masked_fill(~is_word_NT, 2.0)
    chosen_M = draw_NT.flatten().topk(min(words, max(1, round(share * words))), largest=False).indices
    before_M = tokens_NT.flatten()[chosen_M]
    how_M = torch.rand(chosen_M.shape, device=tokens_NT.device)
    random_M = torch.randint(vocab_size, chosen_M.shape, device=tokens_NT.device)
    shown_M = torch.where(how_M < 0.8, mask_id, torch.where(how_M < 0.9, random_M, before_M))
    return tokens_NT.flatten().scatter(0, chosen_M, shown_M).view_as(tokens_NT), chosen_M


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
