"""BLEU-1..4, ROUGE-L and CIDEr-D of a corpus: pycocoevalcap's numbers in a fraction of its time.

Validation during training, intervals and comparisons of runs ask for these scores again and again. Every
rule of pycocoevalcap is kept, the odd ones too; only the counting is ours. Imports no torch.

Shapes: I images, S summands of BLEU, C captions (an image's references, then its hypothesis, then the next
image's), G distinct n-grams of one order, E entries (an n-gram in a caption that has it), R runs (the entries
of one n-gram in one image).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from velm_cli.metrics.document_frequency import DocumentFrequency, inverse_frequency
from velm_cli.metrics.ngrams import MAX_ORDER, Ints, NGrams, Tokens, count_ngrams, run_starts
from velm_cli.metrics.tokenize import Id

SMALL, TINY = 1e-9, 1e-15  # BLEU: no division by zero, and no guesses give nothing
BETA = 1.2  # ROUGE-L: the weight of recall
SIGMA = 6.0  # CIDEr-D: the width of the length penalty, in words

Floats = NDArray[np.float64]


class Corpus:
    """Tokenised captions, numbered once for all scores.

    `references` has at least one caption an image, `hypotheses` one for each of the same images; words are
    separated by single spaces, captions may be empty. Per-image results follow the order of `references`.
    """

    def __init__(self, references: Mapping[Id, Sequence[str]], hypotheses: Mapping[Id, str]) -> None:
        assert references and references.keys() == hypotheses.keys(), "the images differ"
        assert all(references.values()), "an image without references"
        self.captions = [c for image, group in references.items() for c in (*group, hypotheses[image])]
        self.references_I = np.array([len(group) for group in references.values()])
        self.image_C = np.repeat(np.arange(len(references)), self.references_I + 1)
        self.hypothesis_I = np.cumsum(self.references_I + 1) - 1  # a caption's number
        self.is_reference_C = np.ones(len(self.captions), bool)
        self.is_reference_C[self.hypothesis_I] = False
        self.tokens = Tokens.of(self.captions)

    @cached_property
    def overlaps(self) -> list[Overlap]:
        """The counts of each order, made when first asked for and kept."""
        return [Overlap.of(self, ngrams) for ngrams in count_ngrams(self.tokens)]


@dataclass(frozen=True)
class Overlap:
    """What hypotheses and references share of one order's n-grams."""

    ngrams: NGrams
    documents_G: Ints  # images whose references have the n-gram
    shared_E: Ints  # a reference's count, at most its hypothesis's; 0 in the hypothesis's own entries
    correct_I: Ints  # n-grams of the hypothesis, each counted at most as often as in any one reference

    @classmethod
    def of(cls, corpus: Corpus, ngrams: NGrams) -> Overlap:
        image_E = corpus.image_C[ngrams.caption_E]
        is_reference_E = corpus.is_reference_C[ngrams.caption_E]
        start_R = run_starts(ngrams.gram_E, image_E)
        length_R = np.diff(start_R, append=len(image_E))
        last_R = start_R + length_R - 1  # the hypothesis's entry, if it has one
        guessed_R = np.where(is_reference_E[last_R], 0, ngrams.count_E[last_R])
        shared_E = np.minimum(ngrams.count_E, np.repeat(guessed_R, length_R)) * is_reference_E
        correct_R = np.maximum.reduceat(shared_E, start_R) if len(start_R) else start_R
        return cls(
            ngrams=ngrams,
            documents_G=np.bincount(ngrams.gram_E[start_R[is_reference_E[start_R]]], minlength=len(ngrams.key_G)),
            shared_E=shared_E,
            correct_I=np.bincount(image_E[start_R], correct_R, minlength=len(corpus.hypothesis_I)).astype(np.int64),
        )


def bleu(corpus: Corpus) -> tuple[Floats, Floats]:
    """BLEU-1..4 of the corpus (4) and of each image (I x 4).

    Papineni et al. 2002, with the closest reference length. Where a caption has fewer than n words its BLEU-n
    is near zero, not zero.
    """
    rows_IS = bleu_summands(corpus)
    return bleu_scores(rows_IS.sum(axis=0)), bleu_scores(rows_IS)


def bleu_summands(corpus: Corpus) -> Ints:
    """What BLEU is made of, ten numbers an image (I x S); their sums over images make a corpus's BLEU.

    Correct n-grams and all n-grams of the hypothesis (orders 1 to 4 each), the hypothesis's length, and that of
    the reference which is closest in length (of two, the shorter).
    """
    length_C = corpus.tokens.length_C
    length_I = length_C[corpus.hypothesis_I]
    distance_C = np.abs(length_C - length_I[corpus.image_C])
    distance_C[corpus.hypothesis_I] = length_C.max() + 1  # further away than any reference
    closest_first_C = np.lexsort((length_C, distance_C, corpus.image_C))
    return np.column_stack(
        [
            *(overlap.correct_I for overlap in corpus.overlaps),
            *(np.maximum(0, length_I - order) for order in range(MAX_ORDER)),
            length_I,
            length_C[closest_first_C[corpus.hypothesis_I - corpus.references_I]],
        ]
    )


def bleu_scores(sums: NDArray) -> Floats:
    """BLEU-1..4 (... x 4) of summed `bleu_summands` (... x S)."""
    correct, guessed = sums[..., :MAX_ORDER], sums[..., MAX_ORDER : 2 * MAX_ORDER]
    length, reference_length = sums[..., -2:-1], sums[..., -1:]
    precision = (correct + TINY) / (guessed + SMALL)
    mean = np.cumprod(precision, axis=-1) ** (1 / np.arange(1, MAX_ORDER + 1))
    ratio = (length + TINY) / (reference_length + SMALL)
    return mean * np.exp(np.minimum(0, 1 - 1 / ratio))


def bleu_of_order(sums_RS: NDArray, *, order: int) -> Floats:
    """BLEU-(order + 1) (R) of summed `bleu_summands` (R, S)."""
    return bleu_scores(sums_RS)[:, order]


def rouge_l(corpus: Corpus) -> tuple[float, Floats]:
    """The mean of ROUGE-L over images, and that of each (I).

    Lin 2004; best precision and best recall over the references, which may be those of two. As in
    pycocoevalcap an empty caption is one empty word, so two of them agree.
    """
    score_I = []
    for last, references in zip(corpus.hypothesis_I.tolist(), corpus.references_I.tolist(), strict=True):
        hypothesis = corpus.captions[last].split(" ")
        places: dict[str, int] = {}  # word -> bits at its places in the hypothesis
        for place, word in enumerate(hypothesis):
            places[word] = places.get(word, 0) | 1 << place
        precision = recall = 0.0
        for caption in corpus.captions[last - references : last]:
            reference = caption.split(" ")
            common = _common(places, len(hypothesis), reference)
            precision = max(precision, common / len(hypothesis))
            recall = max(recall, common / len(reference))
        score_I.append((1 + BETA**2) * precision * recall / (recall + BETA**2 * precision) if precision else 0.0)
    return float(np.mean(score_I)), np.array(score_I)


def _common(places: Mapping[str, int], length: int, words: Sequence[str]) -> int:
    """The length of the longest common subsequence, a row of the table in one whole number (Hyyrö 2004).

    `places` has the bits of each word's places in the one caption, of `length` words; `words` are the other.
    Bit i of the row is 0 where the table steps up at place i, so the number of zeros is its last value. A number
    may have any length, so a caption may.
    """
    all_ones = row = (1 << length) - 1
    for place in map(places.get, words):
        if place:
            match = row & place
            row = ((row + match) | (row - match)) & all_ones
    return length - row.bit_count()


def cider(corpus: Corpus, df: DocumentFrequency | None = None) -> tuple[float, Floats]:
    """The mean of CIDEr-D over images, and that of each (I), from 0 to 10.

    Vedantam et al. 2015. Without `df` the document frequencies are those of the corpus's own references;
    then all is 0 where no reference has a word (pycocoevalcap fails) and for a single image.
    """
    orders = [overlap.ngrams for overlap in corpus.overlaps]
    if df is None:
        documents, frequencies = len(corpus.references_I), [overlap.documents_G for overlap in corpus.overlaps]
    else:
        documents, frequencies = df.documents, list(df.look_up(corpus.tokens.vocabulary, orders))
    weight_of = inverse_frequency(documents)
    captions = len(corpus.captions)
    cosine_C = np.zeros(captions)
    for overlap, documents_G in zip(corpus.overlaps, frequencies, strict=True):
        caption_E, count_E = overlap.ngrams.caption_E, overlap.ngrams.count_E
        squared_E = np.square(weight_of)[documents_G][overlap.ngrams.gram_E]
        norm_C = np.sqrt(np.bincount(caption_E, count_E**2 * squared_E, minlength=captions))
        product_C = np.bincount(caption_E, overlap.shared_E * count_E * squared_E, minlength=captions)
        norms_C = norm_C * norm_C[corpus.hypothesis_I][corpus.image_C]
        cosine_C += product_C / np.where(norms_C > 0, norms_C, 1)
    bigrams_C = np.maximum(0, corpus.tokens.length_C - 1)  # what the penalty takes for the length
    difference_C = bigrams_C - bigrams_C[corpus.hypothesis_I][corpus.image_C]
    cosine_C *= np.exp(-np.square(difference_C) / (2 * SIGMA**2))
    score_I = np.bincount(corpus.image_C, cosine_C) / (corpus.references_I * MAX_ORDER) * 10
    return float(np.mean(score_I)), score_I
