"""Concept words: what the captions of an image name, as labels for the classification part of L_image.

COCO has object labels, most caption sets have none; the frequent content words of the training captions
serve everywhere (Fang et al. 2015, "From captions to visual concepts and back").
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

MIN_IMAGES = 5  # a word of fewer training images is too rare to be learned
MAX_CONCEPTS = 65_535  # labels are stored as uint16
WORD = re.compile(r"[^\W\d_]{2,}")  # runs of letters in any alphabet

# English words that name nothing to be seen: articles, pronouns, prepositions, conjunctions, auxiliaries,
# quantifiers, the halves of contractions, and the words captions open with ("this is a picture of ...").
_STOP_TEXT = """
a about above across after again against all along alongside also although am among amongst an and another
any anything are area aren around as aside at atop away back be because been before behind being below
beneath beside besides between beyond both but by can cannot close could couldn did didn different do does
doesn doing don down during each either else etc even every everyone everything few for from front full
further get gets getting go goes going had hadn has hasn have haven having he her here hers herself him
himself his how if image images in inside instead into is isn it its itself just kind kinds less like ll
lot lots made make makes many may me middle might mine more most much must my myself near nearby nearly
next no none nor not nothing of off on once one ones only onto opposite or other others our ours out
outside over own part past photo photograph photos picture pictures piece pieces re same several shall she
should shouldn showing shown shows side since so some someone something sort still such than that the
their theirs them themselves then there these they thing things this those through throughout till to
together too top toward towards under underneath until up upon us various ve very view views was wasn way
we well were weren what when where which while who whole whom whose why will with within without won would
wouldn yet you your yours
"""
STOP_WORDS = frozenset(_STOP_TEXT.split())


def concept_words(captions: Iterable[Sequence[str]], train: Iterable[bool], n: int) -> list[str]:
    """The `n` content words that most training images have in a caption, the most frequent first.

    `captions`: those of each record. `train`: whether it counts. Words are lowercase, of two letters or more, and
    count once an image, in at least 5 images; ties go by the alphabet.
    """
    assert 0 <= n <= MAX_CONCEPTS
    count: Counter[str] = Counter()
    for texts, counts in zip(captions, train, strict=True):
        if counts:
            count.update(_content_words(texts))
    often = (word for word, images in count.items() if images >= MIN_IMAGES)
    return heapq.nsmallest(n, often, key=lambda word: (-count[word], word))


def labels_of(captions: Sequence[str], numbers: Mapping[str, int]) -> np.ndarray:
    """Labels (uint16, rising) of an image with these captions; `numbers` are those of the concept words."""
    return np.array(sorted([numbers[word] for word in numbers.keys() & _content_words(captions)]), np.uint16)


class HasConcepts(Protocol):
    """A Store, or samples that stream by."""

    def concepts(self, i: int) -> np.ndarray: ...


class ConceptLabels:
    """The first `width` concept words, as `Labels` of a batch: all that an example's captions hold have weight 1."""

    def __init__(self, store: HasConcepts, width: int) -> None:
        self.width, self._store = width, store

    def row(self, example: int) -> tuple[np.ndarray, np.ndarray]:
        named = self._store.concepts(example)
        named = named[named < self.width]
        return named, np.ones(len(named), np.float32)


def _content_words(captions: Sequence[str]) -> set[str]:
    return set(WORD.findall("\n".join(captions).lower())) - STOP_WORDS
