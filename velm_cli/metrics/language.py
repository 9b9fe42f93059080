"""What captions are like, whatever they describe: lengths, vocabulary, diversity, novelty, broken endings.

Scores against references reward the safe caption; these figures show when a model says the same of
everything. All take tokenised captions (tokens separated by spaces).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from velm_cli.metrics.scores import ImageId

# Words that a finished caption does not end with: articles, prepositions, auxiliaries (the problem is that of
# Guo et al. 2018, "Improving Reinforcement Learning Based Image Captioning with Natural Language Prior").
BAD_ENDINGS = frozenset(["a", "an", "the", "in", "for", "at", "of", "with", "before", "after", "on", "upon", "near"])
BAD_ENDINGS |= {"to", "is", "are", "am"}


def describe(
    hypotheses: Sequence[str], references: Sequence[str], *, training: frozenset[str] | None = None
) -> dict[str, float | None]:
    """Figures of the captions as a whole, by name.

    `words` is the mean length and `reference_words` that of the references; `vocabulary` counts different words;
    `distinct_1` and `distinct_2` are different n-grams per n-gram (Li et al. 2016); `different` is the
    number of different captions per caption; `novel` is the share of captions that `training` (tokenised) does
    not hold, None without it; `bad_endings` that of captions which break off after an article or a preposition.
    """
    split = [caption.split() for caption in hypotheses]
    words = [word for caption in split for word in caption]
    pairs = [pair for caption in split for pair in pairwise(caption)]
    lengths = [len(caption) for caption in split]
    return {
        "words": _mean(lengths),
        "words_p5": _percentile(lengths, 5),
        "words_p95": _percentile(lengths, 95),
        "reference_words": _mean([caption.count(" ") + bool(caption) for caption in references]),
        "vocabulary": float(len(set(words))),
        "distinct_1": _ratio(len(set(words)), len(words)),
        "distinct_2": _ratio(len(set(pairs)), len(pairs)),
        "different": _ratio(len(set(hypotheses)), len(hypotheses)),
        "novel": None if training is None else _mean([caption not in training for caption in hypotheses]),
        "bad_endings": _mean([bool(caption) and caption[-1] in BAD_ENDINGS for caption in split]),
        "empty": _mean([not caption for caption in split]),
    }


def diversity_of_sets(
    sets: Mapping[ImageId, Sequence[str]],
    bleu_4: Callable[[Mapping[int, Sequence[str]], Mapping[int, str]], Sequence[float]],
) -> dict[str, float | None]:
    """How the several captions of one image differ, averaged over images with two or more.

    `div_1` and `div_2`: different n-grams of the set per word of the set (Shetty et al. 2017; Aneja et al. 2019);
    `mbleu_4`: BLEU-4 of each caption against the others, so lower is more diverse. `bleu_4` scores each
    hypothesis against its references.
    """
    several = [list(captions) for captions in sets.values() if len(captions) > 1]
    div_1, div_2 = [], []
    others: dict[int, list[str]] = {}
    each: dict[int, str] = {}
    owner = []
    for number, captions in enumerate(several):
        split = [caption.split() for caption in captions]
        words = sum(map(len, split))
        if words:
            div_1.append(len({word for caption in split for word in caption}) / words)
            div_2.append(len({pair for caption in split for pair in pairwise(caption)}) / words)
        for place, caption in enumerate(captions):
            key = len(each)
            each[key] = caption
            others[key] = captions[:place] + captions[place + 1 :]
            owner.append(number)
    mbleu = None
    if each:
        sums = np.bincount(owner, weights=np.asarray(bleu_4(others, each)))
        mbleu = float((sums / np.bincount(owner)).mean())
    return {"sets": float(len(several)), "div_1": _mean(div_1), "div_2": _mean(div_2), "mbleu_4": mbleu}


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _percentile(values: Sequence[int], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if len(values) else None


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
