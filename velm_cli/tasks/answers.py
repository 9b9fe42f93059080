"""The list of answers that a question may get, from the answers of training, and labels by it.

An answer of the list stands for all that VQA's rule normalises to the same text, and is written as people write it most
often: where all ten agree, the official rule compares letter by letter.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Protocol

import numpy as np

from velm_cli.metrics.vqa import normalised, soft_targets

_normalised = cache(normalised)  # people write few different answers, and each of them very often


class HasTargets(Protocol):
    def targets(self, i: int) -> list[str]: ...


def answer_list(answers: Iterable[Sequence[str]], *, most: int, at_least: int) -> list[str]:
    """The `most` frequent answers of questions with these answers by people, the most frequent first.

    An answer's frequency is the sum of the accuracies that it would have; it is an answer to `at_least` so many
    questions. Ties go by the alphabet.
    """
    weight: dict[str, float] = defaultdict(float)
    questions: Counter[str] = Counter()
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    for given in answers:
        targets = soft_targets(given)
        for answer, accuracy in targets.items():
            weight[answer] += accuracy
        questions.update(targets.keys())
        for answer in given:
            spellings[_normalised(answer)][answer.strip()] += 1
    kept = [answer for answer in weight if questions[answer] >= at_least]
    kept.sort(key=lambda answer: (-weight[answer], answer))
    return [min(spellings[answer].items(), key=lambda item: (-item[1], item[0]))[0] for answer in kept[:most]]


class AnswerLabels:
    """The labels `answers` of a batch: of each answer of the list the accuracy that it would have."""

    def __init__(self, store: HasTargets, answers: Sequence[str]) -> None:
        self._store, self.width = store, len(answers)
        self._numbers = {_normalised(answer): number for number, answer in enumerate(answers)}

    def row(self, example: int) -> tuple[np.ndarray, np.ndarray]:
        """The answers of the list that people gave (uint32), and their accuracies (float32)."""
        targets = soft_targets(self._store.targets(example))
        known = {self._numbers[answer]: accuracy for answer, accuracy in targets.items() if answer in self._numbers}
        return np.fromiter(known, np.uint32, len(known)), np.fromiter(known.values(), np.float32, len(known))
