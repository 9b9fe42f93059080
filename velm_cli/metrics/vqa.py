"""VQA accuracy by the rule of the VQA v2 evaluation (Antol et al. 2015; Goyal et al. 2017), and by its stricter twin.

Ten people answered each question. A prediction counts min(1, k / 3), k being the number of *other* people who gave it,
averaged over the ten: 0, .3, .6, .9 or 1. The official rule normalises answers only where the ten are not all the same
text, so "Yes." is wrong where everybody wrote "yes"; `always` normalises both sides of every question, as several newer
toolkits do. Both numbers are in use, so both are reported.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r"\d,\d")
FULL_STOP = re.compile(r"\.(?!\d)")
FULL_STOPS = 32  # removed at most: the official code passes a regex flag in the place of a count
ARTICLES = frozenset(("a", "an", "the"))
NUMBERS = {
    word: str(number)
    for number, words in enumerate(
        ("none zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
    for word in words.split()
}
# Words that get their apostrophes back wherever exactly one is missing: dont, couldnt've, couldn'tve.
CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't
    must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've
    somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd
    something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're
    they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've
    who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll
    y'all'd've you'd you'd've you'll you're you've
"""


def _contractions() -> dict[str, str]:
    table = {"somebody'd": "somebodyd"}  # the official table has this one the wrong way round
    for word in CONTRACTED.split():
        for at, letter in enumerate(word):
            if letter == "'":
                table[word[:at] + word[at + 1 :]] = word
    return table


CONTRACTIONS = _contractions()


@lru_cache(maxsize=1 << 16)  # few answers are different
def normalised(answer: str) -> str:
    """An answer without punctuation, articles and capitals, numbers as digits: `The T-Shirt.` -> `t shirt`."""
    number = COMMA_IN_NUMBER.search(answer) is not None
    text = answer
    for mark in PUNCTUATION:
        if mark in text:
            beside_a_space = f"{mark} " in answer or f" {mark}" in answer
            text = text.replace(mark, "" if number or beside_a_space else " ")
    words = (NUMBERS.get(word, word) for word in FULL_STOP.sub("", text, FULL_STOPS).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def accuracy(answers: Sequence[str], prediction: str, *, always: bool = False) -> float:
    """VQA accuracy of one prediction, 0 to 1; `answers` are those of all annotators, equal ones included."""
    return accuracies(answers, [prediction])[0][always]


def accuracies(answers: Sequence[str], predictions: Iterable[str]) -> list[tuple[float, float]]:
    """(official, always) VQA accuracy of each of several predictions of one question."""
    given = Counter(map(_one_line, answers))
    always: Counter[str] = Counter()
    for answer, count in given.items():
        always[normalised(answer)] += count
    found = []
    for prediction in map(_one_line, predictions):
        strict = _agreement(always[normalised(prediction)], len(answers))
        found.append((strict if len(given) > 1 else _agreement(given[prediction], len(answers)), strict))
    return found


def soft_targets(answers: Iterable[str]) -> dict[str, float]:
    """Each normalised answer with the accuracy that it would have: what a classifier of answers is trained on."""
    counts = Counter(normalised(_one_line(answer)) for answer in answers)
    total = sum(counts.values())
    return {answer: _agreement(count, total) for answer, count in counts.items() if answer}


def _agreement(matching: int, annotators: int) -> float:
    """Mean over the annotators of min(1, others who agree / 3): those who gave the answer have one other less.

    Where fewer than three others were asked, all of them have to agree; a single answer has to be met.
    """
    if annotators < 2:
        return float(matching)
    enough = min(3, annotators - 1)
    of_givers = matching * min(enough, matching - 1) if matching else 0
    return (of_givers + (annotators - matching) * min(enough, matching)) / (enough * annotators)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
