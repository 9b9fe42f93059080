"""What may come next in a text that is being written: penalties, forbidden repetitions, a least length, a list.

Everything is defined as in transformers' `generate` (transformers/generation/logits_process.py), in its order. Scores
are logits where texts are found one by one, and log-probabilities in beam search, where nothing is renormalised.

Shapes: N texts, V vocabulary, P tokens of the longest prompt, T tokens of the longest text, S = P + T.
"""

from __future__ import annotations

import torch
from torch import Tensor

from velm_cli.models.allowed import AllowedTexts
from velm_cli.schema import DecodeConfig


class Constraints:
    """Changes the scores of next tokens by what prompt and text have so far; BOS counts as neither."""

    def __init__(self, config: DecodeConfig, ends: Tensor, allowed: AllowedTexts | None) -> None:
        self.config, self.ends, self.allowed = config, ends, allowed

    @staticmethod
    def of(config: DecodeConfig, ends: Tensor, allowed: AllowedTexts | None) -> Constraints | None:
        """None where everything may come."""
        constraints = Constraints(config, ends, allowed)
        return constraints if constraints.reads_prompt or config.min_length or allowed is not None else None

    @property
    def reads_prompt(self) -> bool:
        """Whether it matters which tokens there have been."""
        return self.config.repetition_penalty != 1 or self.config.no_repeat_ngram > 0

    def __call__(
        self, score_NV: Tensor, prompt_NP: Tensor, text_NT: Tensor, length_N: Tensor, place_N: Tensor
    ) -> Tensor:
        """`prompt`: -1 in front of shorter ones. `length`: tokens of each text; what follows there is anything.

        `place`: in the list of allowed texts.
        """
        config = self.config
        if self.reads_prompt:
            position_T = torch.arange(text_NT.shape[1], device=text_NT.device)
            before_NS = torch.cat([prompt_NP, text_NT.masked_fill(position_T >= length_N[:, None], -1)], dim=1)
            if config.repetition_penalty != 1:
                score_NV = penalised(score_NV, before_NS, config.repetition_penalty)
            if config.no_repeat_ngram:
                end_N = prompt_NP.shape[1] + length_N
                score_NV = without_repeated(score_NV, before_NS, end_N, config.no_repeat_ngram)
        if config.min_length:
            early_N1 = (length_N < config.min_length)[:, None]
            score_NV = score_NV.index_copy(1, self.ends, score_NV[:, self.ends].masked_fill(early_N1, -torch.inf))
        return score_NV if self.allowed is None else self.allowed.of(score_NV, place_N)


def penalised(score_NV: Tensor, before_NS: Tensor, penalty: float) -> Tensor:
    """Scores of the tokens `before` (-1: none) divided by `penalty`, negative ones multiplied (CTRL; Keskar et al.
    2019, section 4.1, as RepetitionPenaltyLogitsProcessor has it)."""
    token_NS = before_NS.clamp(min=0)
    found_NS = score_NV.gather(1, token_NS)
    changed_NS = torch.where(found_NS < 0, found_NS * penalty, found_NS / penalty)
    # What stands for no token writes to token 0, whose score must be the same from wherever it is written.
    is_token_NS = (before_NS >= 0) | (before_NS == 0).any(dim=1, keepdim=True)
    return score_NV.scatter(1, token_NS, torch.where(is_token_NS, changed_NS, found_NS))


def without_repeated(score_NV: Tensor, before_NS: Tensor, end_N: Tensor, n: int) -> Tensor:
    """Minus infinity for tokens that would be the last of n which have been there in this order
    (NoRepeatNGramLogitsProcessor). `end`: how many positions each text has; -1 in `before`: none."""
    if before_NS.shape[1] < n:
        return score_NV
    last_NX = end_N[:, None] + torch.arange(1 - n, 0, device=end_N.device)  # X = n - 1 positions
    last_NX = torch.where(last_NX < 0, -1, before_NS.gather(1, last_NX.clamp(min=0)))
    gram_NWn = before_NS.unfold(1, n, 1)  # W: beginnings
    repeated_NW = (gram_NWn >= 0).all(2) & (gram_NWn[:, :, :-1] == last_NX[:, None]).all(2)
    token_NW = gram_NWn[:, :, -1].clamp(min=0)
    limit_NW = torch.full_like(token_NW, torch.inf, dtype=score_NV.dtype).masked_fill(repeated_NW, -torch.inf)
    return score_NV.scatter_reduce(1, token_NW, limit_NW, "amin")
