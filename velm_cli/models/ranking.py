"""The likeliest of a list of answers, by what a writer gives their words (BLIP's rank mode; Li et al. 2022).

All answers are compared by their first token, the best of them by all their words.

Shapes: B examples, C answers, T positions of an answer, K candidates an example, R examples at once, M predicted
tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from velm_cli.models.layers import at_least_float32
from velm_cli.models.state import gathered
from velm_cli.models.velm import VelmModel

POSITIONS = 1 << 12  # of candidates that are read at once, unless one example has more
LOGITS = 1 << 22  # that exist at once


@dataclass(frozen=True, slots=True)
class Answers:
    """A list of answers as tokens."""

    tokens_CT: Tensor  # int64: BOS, words, EOS, then EOS
    lengths_C: Tensor  # int64: BOS, words and EOS

    @staticmethod
    def of(words: Sequence[Sequence[int]], *, bos_id: int, eos_id: int) -> Answers:
        """Answers of these words; one without any is legal."""
        longest = max(map(len, words))
        rows = [[bos_id, *answer, *[eos_id] * (longest - len(answer) + 1)] for answer in words]
        return Answers(torch.tensor(rows), torch.tensor([len(answer) + 2 for answer in words]))

    def to(self, device: torch.device | str) -> Answers:
        return Answers(self.tokens_CT.to(device), self.lengths_C.to(device))


@torch.no_grad()
def answer_log_probs(model: VelmModel, memory: tuple, answers: Answers, *, examples: int, candidates: int) -> Tensor:
    """(B, C), float32 at least: log p(words and EOS | memory) of the `candidates` best answers by log p(first token),
    minus infinity of the others. Answers alike in that are taken in the order of the list.

    `memory`: what `model.memory` gave of so many `examples`; the candidates of an example share it, as beams do. At
    most POSITIONS tokens of answers are read at once (those of one candidate at least), and LOGITS logits exist.
    """
    device = model.output_bias.device
    answers = answers.to(device)
    C, T = answers.tokens_CT.shape
    first = at_least_float32(_first_logits(model, memory, answers, examples)).log_softmax(-1)
    first_BC = first.index_select(1, answers.tokens_CT[:, 1])
    candidate_BK = first_BC.argsort(dim=1, descending=True, stable=True)[:, : min(candidates, C)]
    found_BC = torch.full_like(first_BC, -torch.inf)
    texts = max(1, POSITIONS // (T - 1))
    K = candidate_BK.shape[1]
    for begin in range(0, examples, max(1, texts // K)):
        rows_R = torch.arange(begin, min(begin + max(1, texts // K), examples), device=device)
        of_rows = gathered(memory, rows_R)
        for start in range(0, K, texts):
            candidate_RK = candidate_BK[rows_R, start : start + texts]
            log_p_RK = _log_probs(model, of_rows, answers, candidate_RK)
            found_BC[rows_R[:, None], candidate_RK] = log_p_RK.to(found_BC.dtype)
    return found_BC


def _first_logits(model: VelmModel, memory: tuple, answers: Answers, examples: int) -> Tensor:
    """(B, V): of an answer's first token, which follows BOS."""
    logits_BV, _ = model.step(answers.tokens_CT[:1, :1].expand(examples, 1), memory)
    return logits_BV


def _log_probs(model: VelmModel, memory: tuple, answers: Answers, candidate_RK: Tensor) -> Tensor:
    """(R, K): of whole answers, their words and EOS."""
    R, K = candidate_RK.shape
    lengths_N = answers.lengths_C[candidate_RK.flatten()]
    tokens_NT = answers.tokens_CT[candidate_RK.flatten(), : int(lengths_N.max())]
    fused_NTD, _ = model.fusion.read(model.text, tokens_NT[:, :-1], memory)
    is_word_NT = torch.arange(1, tokens_NT.shape[1], device=tokens_NT.device) < lengths_N[:, None]
    fused_MD, target_M = fused_NTD[is_word_NT], tokens_NT[:, 1:][is_word_NT]
    log_p_M = log_p_of(model, fused_MD, target_M)
    return log_p_M.new_zeros(is_word_NT.shape).masked_scatter(is_word_NT, log_p_M).sum(1).view(R, K)


def log_p_of(model: VelmModel, fused_MD: Tensor, target_M: Tensor) -> Tensor:
    """(M): log p of the tokens that the states predict; LOGITS logits exist at once."""
    at_once = max(1, LOGITS // len(model.output_bias))
    return torch.cat(
        [
            at_least_float32(model.logits(fused_mD)).log_softmax(-1).gather(1, target_m[:, None])[:, 0]
            for fused_mD, target_m in zip(fused_MD.split(at_once), target_M.split(at_once), strict=True)
        ]
    )
