"""What captions are like, whatever they describe: lengths, vocabulary, diversity, novelty, broken endings.

Scores against references reward the safe caption; these figures show when a model says the same of
everything. All take tokenised captions (tokens separated by spaces).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from velm_cli.metrics.matching import listing
from velm_cli.metrics.scores import ImageId

# Words that a finished caption does not end with: articles, prepositions, auxiliaries (the problem is that of
# Guo et al. 2018, "Improving Reinforcement Learning Based Image Captioning with Natural Language Prior").
BAD_ENDINGS = frozenset(["a", "an", "the", "in", "for", "at", "of", "with", "before", "after", "on", "upon", "near"])
BAD_ENDINGS |= {"to", "is", "are", "am"}


# Letters of scripts that put no spaces between words -> the mean run of them that no single word reaches.
UNSPACED = (
    (
        re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"),
        4.0,
    ),  # Chinese, Japanese
    (re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]+"), 10.0),  # Thai, Lao, Burmese, Khmer
)


SIGNS = re.compile(
    r"</?s>|<(?:pad|eos|bos|sos|start|end|mask)>|<\|\w+\|>|\[(?:PAD|CLS|SEP|EOS|BOS|MASK)\]|\b(?:start|end)seq\b", re.I
)
MISSING = frozenset(("nan", "none", "null", "n/a", "<na>"))


def unspaced_warnings(hypotheses: Mapping[ImageId, str], references: Mapping[ImageId, Sequence[str]]) -> list[str]:
    """A line for the predictions and for the references that are written without spaces: their scores look real."""
    found = {"predictions": unspaced({image: [text] for image, text in hypotheses.items()})}
    found["references"] = unspaced(references)
    return [
        f"the {what} of {listing(images)} are written without spaces, so whole clauses are compared as one word, and "
        "their scores mean nothing: cut both files into words first (jieba, MeCab, PyThaiNLP ...)"
        for what, images in found.items()
        if images
    ]


def leftover_warnings(hypotheses: Mapping[ImageId, str], references: Mapping[ImageId, Sequence[str]]) -> list[str]:
    """A line where captions hold what no one wrote: a tokenizer's signs, a table's missing value, nothing at all."""
    said = []
    for what, captions in (("predictions", {i: [text] for i, text in hypotheses.items()}), ("references", references)):
        signs = {i: found[0] for i, group in captions.items() for text in group if (found := SIGNS.search(text))}
        if signs:
            said.append(
                f"the {what} of {listing(list(signs))} hold signs of a tokenizer, such as "
                f"{next(iter(signs.values()))}, which count as words: take them out (skip_special_tokens=True)"
            )
        missing = [i for i, group in captions.items() if any(text.strip().lower() in MISSING for text in group)]
        if missing:
            said.append(f"the {what} of {listing(missing)} are nan, None or the like, as tables write what is missing")
    empty = [image for image, group in references.items() if not all(map(str.strip, group))]
    if empty:
        said.append(f"{listing(empty)} have an empty reference, which counts as one")
    return said


def unspaced(captions: Mapping[ImageId, Sequence[str]]) -> list[ImageId]:
    """The images with a caption whose words no space separates, as Chinese, Japanese and Thai are written.

    Captions that were cut into words are none: their runs of letters are words.
    """
    found = []
    for image, group in captions.items():
        for text in group:
            if not text.isascii() and any(_is_run_together(text, letters, most) for letters, most in UNSPACED):
                found.append(image)
                break
    return found


def _is_run_together(text: str, letters: re.Pattern[str], most: float) -> bool:
    """Whether most of the text is in `letters`, with longer runs of them than words have."""
    runs = letters.findall(text)
    there = sum(map(len, runs))
    return there > most * len(runs) and 2 * there > len(text)


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
