"""Captions as integer n-gram counts: BLEU, CIDEr and document frequencies all count the same n-grams.

Counting them in dictionaries of word tuples takes most of an evaluation's time. Here words become numbers
once, n-grams of order n get theirs from those of order n - 1 by sorting, and every count is the length of a
run. Numbers are ranks, not hashes, so nothing collides. Imports no torch.

Shapes: T tokens, C captions, G distinct n-grams of one order, E entries (an n-gram in a caption that has it).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

MAX_ORDER = 4
KEY_BITS = 63  # of a whole number that is not negative

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Tokens:
    """The words of C captions in a row, as numbers."""

    vocabulary: dict[str, int]  # word -> its number, 0, 1, 2, ... by first occurrence
    word_T: Ints
    length_C: Ints

    @classmethod
    def of(cls, captions: Iterable[str]) -> Tokens:
        """The words of each caption: what stands between white space."""
        vocabulary: defaultdict[str, int] = defaultdict()
        vocabulary.default_factory = vocabulary.__len__
        lengths: list[int] = []

        def words() -> Iterator[list[str]]:  # a caption at a time: all words at once would leave the cache
            for caption in captions:
                found = caption.split()
                lengths.append(len(found))
                yield found

        word_T = np.fromiter(map(vocabulary.__getitem__, chain.from_iterable(words())), np.int64)
        return cls(dict(vocabulary), word_T, np.array(lengths, dtype=np.int64))


@dataclass(frozen=True)
class NGrams:
    """All n-grams of one order, ranked; entries are sorted by n-gram, then by caption."""

    key_G: Ints  # rank of its first n - 1 words among the n-grams of that order * words + last word; ascending
    gram_E: Ints
    caption_E: Ints
    count_E: Ints  # how often the caption has the n-gram


def count_ngrams(tokens: Tokens) -> Iterator[NGrams]:
    """The n-grams of orders 1 to `MAX_ORDER`, an order at a time."""
    words = max(1, len(tokens.vocabulary))
    caption_T = np.repeat(np.arange(len(tokens.length_C)), tokens.length_C)
    left_T = np.repeat(np.cumsum(tokens.length_C), tokens.length_C) - np.arange(len(caption_T))
    rank_T = np.zeros_like(tokens.word_T)  # of the n-gram that starts at each token
    start_P = np.arange(len(caption_T))  # where an n-gram of this order can start
    for order in range(1, MAX_ORDER + 1):
        start_P = start_P[left_T[start_P] >= order]
        key_P, start_sorted_P = _sorted(rank_T[start_P] * words + tokens.word_T[start_P + order - 1], start_P)
        caption_P = caption_T[start_sorted_P]
        new_gram_P = _changes(key_P)
        entry_E = run_starts(key_P, caption_P)
        rank_P = np.cumsum(new_gram_P) - 1
        rank_T[start_sorted_P] = rank_P
        yield NGrams(
            key_G=key_P[new_gram_P],
            gram_E=rank_P[entry_E],
            caption_E=caption_P[entry_E],
            count_E=np.diff(entry_E, append=len(key_P)),
        )


def _sorted(key_P: Ints, start_P: Ints) -> tuple[Ints, Ints]:
    """Both sorted by key, then by start (ascending already).

    One sort of whole numbers takes a quarter of the time of an argsort, so both share one where they fit.
    """
    bits = int(start_P[-1]).bit_length() if len(start_P) else 0
    if len(key_P) and int(key_P.max()).bit_length() + bits > KEY_BITS:
        by_key = np.argsort(key_P, kind="stable")
        return key_P[by_key], start_P[by_key]
    both_P = np.sort(key_P << bits | start_P)
    return both_P >> bits, both_P & ((1 << bits) - 1)


def run_starts(*sorted_arrays: Ints) -> Ints:
    """Where a new run of equal values starts: places at which any of the arrays differs from the one before."""
    return np.flatnonzero(_changes(*sorted_arrays))


def _changes(*sorted_arrays: Ints) -> NDArray[np.bool_]:
    change = np.ones(len(sorted_arrays[0]), bool)
    change[1:] = False
    for values in sorted_arrays:
        change[1:] |= values[1:] != values[:-1]
    return change
