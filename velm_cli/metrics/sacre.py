"""BLEU and chrF of sacrebleu, taken apart: counts of each sentence, and the score as a function of their sums.

sacrebleu (Post 2018) is the authority for both. The counts are its own; from their sums a thousand resamples of the
sentences are scored at once (`significance.py`). Shapes: I sentences, S counts, R sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from velm_cli.metrics.significance import Summands

BLEU_ORDER = 4
CHRF_BETA = 2  # recall weighs twice as much (Popović 2016)


def streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """References by sentence as sacrebleu takes them: lists of the first, second ... reference of all sentences."""
    most = max(map(len, references), default=0)
    return [[texts[k] if k < len(texts) else None for texts in references] for k in range(most)]


def bleu_summands(metric: Any, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Summands:
    """Of a `sacrebleu.metrics.BLEU` without `effective_order`, as a fraction; its smoothing is `exp` or `none`.

    Counts: length of hypothesis and of reference, n-grams that match (4), n-grams (4).
    """
    assert metric.smooth_method in ("exp", "none") and not metric.effective_order
    score = partial(_bleu, smooths=metric.smooth_method == "exp")
    return Summands(_counts(metric, hypotheses, references, 2 + 2 * BLEU_ORDER), score)


def chrf_summands(metric: Any, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Summands:
    """Of a `sacrebleu.metrics.CHRF`, as a fraction. Counts: of each order hypothesis', reference's, common n-grams."""
    assert not metric.eps_smoothing and metric.beta == CHRF_BETA
    return Summands(_counts(metric, hypotheses, references, 3 * metric.order), _chrf)


def _counts(metric: Any, hypotheses: Sequence[str], references: Sequence[Sequence[str]], width: int) -> np.ndarray:
    # sacrebleu has no public name for the counts of each sentence; a test compares the totals with its corpus_score.
    rows = metric._extract_corpus_statistics(list(hypotheses), streams(references))
    return np.array(rows, float).reshape(len(hypotheses), width)


def _bleu(sums_RS: np.ndarray, *, smooths: bool) -> np.ndarray:
    """Papineni et al. 2002; `smooths`: the n-th order without a match counts as 1 / 2^n of one (Chen & Cherry 2014)."""
    lengths_R, refs_R = sums_RS[:, 0], sums_RS[:, 1]
    correct_RN, total_RN = sums_RS[:, 2 : 2 + BLEU_ORDER], sums_RS[:, 2 + BLEU_ORDER :]
    empty_RN = (correct_RN == 0) & (total_RN > 0)
    credit_RN = np.where(empty_RN & smooths, 0.5 ** empty_RN.cumsum(axis=1), correct_RN)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs_R = np.log(np.where(total_RN > 0, credit_RN / total_RN, 0.0)).mean(axis=1)
        brevity_R = np.where(lengths_R < refs_R, np.exp(1 - refs_R / lengths_R), 1.0)
    return np.where(correct_RN.any(axis=1), brevity_R * np.exp(logs_R), 0.0)


def _chrf(sums_RS: np.ndarray) -> np.ndarray:
    """Popović 2015: precision and recall averaged over the orders that both sides have."""
    hyp_RN, ref_RN, common_RN = (sums_RS[:, k::3] for k in range(3))
    both_RN = (hyp_RN > 0) & (ref_RN > 0)
    orders_R = np.maximum(1, both_RN.sum(axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        precision_R = np.where(both_RN, common_RN / hyp_RN, 0.0).sum(axis=1) / orders_R
        recall_R = np.where(both_RN, common_RN / ref_RN, 0.0).sum(axis=1) / orders_R
        factor = CHRF_BETA**2
        score_R = (1 + factor) * precision_R * recall_R / (factor * precision_R + recall_R)
    return np.nan_to_num(score_R)
