"""Concept words: what the captions of an image name, as labels for the classification part of L_image.

COCO has object labels, most caption sets have none; the frequent content words of the training captions
serve everywhere (Fang et al. 2015, "From captions to visual concepts and back").
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Concepts:
    """`names` by falling frequency; the labels of record i are `ids[offsets[i]:offsets[i + 1]]`, sorted."""

    names: list[str]
    ids: np.ndarray  # uint16
    offsets: np.ndarray  # int64, one more than there are records


def mine_concepts(captions: Sequence[Sequence[str]], train: np.ndarray, n: int) -> Concepts:
    """The `n` content words that most training images have in a caption, and every record's share of them.

    `captions`: those of each record. `train`: bool a record, whether it counts. Words are lowercase, of
    two letters or more, and count once an image, in at least 5 images; ties go by the alphabet.
    """
    assert len(captions) == len(train)
    assert 0 <= n <= MAX_CONCEPTS
    number: dict[str, int] = {}  # every content word -> order of appearance
    seen = array("I")  # word numbers, record after record, each once a record
    sizes = np.empty(len(captions), np.int64)
    for record, texts in enumerate(captions):
        content = set(WORD.findall("\n".join(texts).lower())) - STOP_WORDS
        seen.extend([number.setdefault(word, len(number)) for word in content])
        sizes[record] = len(content)

    words = np.array(list(number), np.str_)
    word = np.array(seen, np.uintc)
    owner = np.repeat(np.arange(len(captions)), sizes)
    count = np.bincount(word[train[owner]], minlength=len(words))
    best = np.lexsort((words, -count))[:n]
    best = best[count[best] >= MIN_IMAGES]

    rank = np.full(len(words), -1, np.int64)
    rank[best] = np.arange(len(best))
    label = rank[word]
    owner, label = owner[label >= 0], label[label >= 0]
    offsets = np.zeros(len(captions) + 1, np.int64)
    np.cumsum(np.bincount(owner, minlength=len(captions)), out=offsets[1:])
    return Concepts(words[best].tolist(), label[np.lexsort((label, owner))].astype(np.uint16), offsets)
