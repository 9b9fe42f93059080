"""Answers to questions, scored: VQA accuracy in both versions, by kind of answer and of question, over its floors.

Questions are balanced badly: who always answers "no" is right in every fifth of VQA v2, and who knows the kind of a
question in every third, without the image. So both stand below the table (`metrics/floors.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from velm_cli import __version__
from velm_cli.errors import UserError, on_one_line
from velm_cli.metrics.floors import warn_of_floors
from velm_cli.metrics.scores import ExampleId, Scores
from velm_cli.metrics.significance import Summands, bootstrap_all, mean_of
from velm_cli.metrics.vqa import accuracies
from velm_cli.schema import MetricsConfig
from velm_cli.schema.metric_names import Column

__all__ = ["VQA_COLUMNS", "VQA_PRIMARY", "Question", "score_vqa"]

ANSWER_TYPES = ("yes/no", "number", "other")
VQA_PRIMARY = "VQA"
VQA_COLUMNS = (
    Column("VQA", "VQA", digits=2, meaning="by the official rule: mean of min(1, others who gave the answer / 3)"),
    Column("VQA_always", "VQA always", "always", digits=2, meaning="the same, normalised where people agree too"),
    *(
        Column(f"VQA_{kind}", f"VQA {kind}", kind, digits=2, meaning=f"of the questions with an answer of type {kind}")
        for kind in ANSWER_TYPES
    ),
)
APART = 0.01  # of the two versions, from which on a sentence says why
BY_TYPE = "prior by question type"


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its answers by people, as they are written, equal ones included."""

    answers: tuple[str, ...]
    text: str = ""
    answer_type: str = ""  # yes/no, number, other
    question_type: str = ""  # its first words
    answer: str = ""  # the one that stands for them (VQA v2: multiple_choice_answer), where the data say so
    image: ExampleId | None = None

    @property
    def votes(self) -> tuple[str, ...]:
        """What it adds to the count of frequent answers."""
        return (self.answer,) if self.answer else self.answers


def score_vqa(
    truth: Mapping[ExampleId, Question],
    predicted: Mapping[ExampleId, str],
    config: MetricsConfig,
    *,
    training: Collection[Question] | None = None,
    alternatives: Mapping[ExampleId, Sequence[tuple[str, float]]] | None = None,
) -> Scores:
    """The scores of one answer per question, by question id.

    Floors are learned from the `training` questions, or, without them, from the scored questions themselves, which
    the signature then says. `alternatives` are answers with their probabilities, which the page shows. Raises
    UserError when the ids differ, or a question has no answers.
    """
    _check(truth, predicted)
    answers = {number: predicted[number] for number in truth}
    rules = _rules(training or truth.values())
    judged = {
        number: accuracies(question.answers, [answers[number], *(rule(question) for rule in rules.values())])
        for number, question in truth.items()
    }
    official, always = ({number: found[0][version] for number, found in judged.items()} for version in (0, 1))
    summands = _summands(truth, official, always)
    corpus = {column.key: summands[column.key].total() if column.key in summands else None for column in VQA_COLUMNS}
    intervals: dict[str, tuple[float, float] | None] = dict.fromkeys(corpus)
    intervals |= bootstrap_all(summands, resamples=config.resamples)
    scores = Scores(
        corpus=corpus,
        intervals=intervals,
        reasons={name: "no question has this answer type" for name, value in corpus.items() if value is None},
        per_image={number: _own_scores(truth[number], official[number], always[number]) for number in truth},
        signature=_signature(truth, training, rules),
        warnings=[*_empty_answers(answers), *_unlike_people(corpus)],
        references={number: list(question.answers) for number, question in truth.items()},
        hypotheses=answers,
        summands=summands,
        task="vqa",
        columns=VQA_COLUMNS,
        primary=VQA_PRIMARY,
        groups=_groups(truth, official, always),
        about={
            number: _about(question, None if alternatives is None else alternatives.get(number))
            for number, question in truth.items()
        },
    )
    for place, name in enumerate(rules, 1):
        versions = ({number: found[place][version] for number, found in judged.items()} for version in (0, 1))
        made_of = scores.floor_summands[name] = _summands(truth, *versions)
        scores.floors[name] = {key: made_of[key].total() if key in made_of else None for key in corpus}
    warn_of_floors(scores, config.resamples)
    return scores


def _check(truth: Mapping[ExampleId, Question], predicted: Mapping[ExampleId, str]) -> None:
    if not truth:
        raise UserError("there are no questions to score")
    for problem, ids in (
        ("no answer predicted for", [number for number in truth if number not in predicted]),
        ("no reference for", [number for number in predicted if number not in truth]),
        ("no answers of people for", [number for number, question in truth.items() if not question.answers]),
    ):
        if ids:
            raise UserError(f"{problem} {questions_listed(ids)}")


def questions_listed(ids: Sequence[ExampleId]) -> str:
    """`7 questions (1, 2, 3, 4, 5, ...)`."""
    shown = ", ".join(on_one_line(str(number)) for number in ids[:5])
    return f"{len(ids):,} question{'s' * (len(ids) > 1)} ({shown}{', ...' * (len(ids) > 5)})"


def _summands(
    truth: Mapping[ExampleId, Question], official: Mapping[ExampleId, float], always: Mapping[ExampleId, float]
) -> dict[str, Summands]:
    """Of each column, without the types of answer that no question has; rows in the order of `truth`."""
    found = {"VQA": mean_of([official[number] for number in truth])}
    found["VQA_always"] = mean_of([always[number] for number in truth])
    for kind in ANSWER_TYPES:
        values = [official[number] if question.answer_type == kind else None for number, question in truth.items()]
        if any(value is not None for value in values):
            found[f"VQA_{kind}"] = mean_of(values)
    return found


def _own_scores(question: Question, official: float, always: float) -> dict[str, float | None]:
    of_type: dict[str, float | None] = {f"VQA_{question.answer_type}": official}
    return {"VQA": official, "VQA_always": always, **(of_type if question.answer_type in ANSWER_TYPES else {})}


def _groups(
    truth: Mapping[ExampleId, Question], official: Mapping[ExampleId, float], always: Mapping[ExampleId, float]
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Count and scores of each type of question and of answer, the frequent ones first."""
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for heading in ("question_type", "answer_type"):
        members: dict[str, list[ExampleId]] = {}
        for number, question in truth.items():
            members.setdefault(getattr(question, heading), []).append(number)
        members.pop("", None)
        in_order = sorted(members.items(), key=lambda item: (-len(item[1]), item[0]))
        groups: dict[str, dict[str, float | None]] = {
            kind: {
                "count": len(ids),
                "VQA": sum(official[number] for number in ids) / len(ids),
                "VQA_always": sum(always[number] for number in ids) / len(ids),
            }
            for kind, ids in in_order
        }
        if groups:
            found[heading.replace("_", " ")] = groups
    return found


# ------------------------------------------------------------------------------------- floors


class _Majority:
    """Always the same answer: the most frequent one."""

    def __init__(self, questions: Collection[Question]) -> None:
        self.answer = _most_frequent(questions)

    def __call__(self, question: Question) -> str:
        return self.answer


class _PriorByType(_Majority):
    """The most frequent answer of the question's type; of all questions where the type is not known."""

    def __init__(self, questions: Collection[Question]) -> None:
        super().__init__(questions)
        of_type: dict[str, list[Question]] = {}
        for question in questions:
            if question.question_type:
                of_type.setdefault(question.question_type, []).append(question)
        self.by_type = {kind: _most_frequent(members) for kind, members in of_type.items()}

    def __call__(self, question: Question) -> str:
        return self.by_type.get(question.question_type, self.answer)


def _most_frequent(questions: Collection[Question]) -> str:
    """Of several answers that are equally frequent the first."""
    return Counter(answer for question in questions for answer in question.votes).most_common(1)[0][0]


def _rules(questions: Collection[Question]) -> dict[str, _Majority]:
    rules = {"majority": _Majority(questions)}
    if any(question.question_type for question in questions):
        rules[BY_TYPE] = _PriorByType(questions)
    return rules


# ------------------------------------------------------------------------------------- what is told of them


def _signature(
    truth: Mapping[ExampleId, Question], training: Collection[Question] | None, rules: Mapping[str, _Majority]
) -> dict[str, Any]:
    counts = [len(question.answers) for question in truth.values()]
    source = f"{len(training):,} training questions" if training else "the scored questions themselves, no training's"
    return {
        "velm": __version__,
        "metric": "VQA accuracy, official rule: normalised only where the annotators' answers differ",
        "metric_always": "VQA accuracy, both sides normalised always",
        "normalisation": "VQA v2 evaluation (GT-Vision-Lab/VQA a013f00)",
        "questions": len(counts),
        "annotators_min": min(counts),
        "annotators_max": max(counts),
        "floors": f"learned from {source}; majority answer {rules['majority'].answer!r}",
    }


def _empty_answers(answers: Mapping[ExampleId, str]) -> list[str]:
    empty = [number for number, answer in answers.items() if not answer.strip()]
    return [f"the answer is empty in {questions_listed(empty)}"] if empty else []


def _unlike_people(corpus: Mapping[str, float | None]) -> list[str]:
    official, always = corpus["VQA"] or 0.0, corpus["VQA_always"] or 0.0
    if always - official < APART:
        return []
    return [
        f"VQA is {100 * (always - official):.1f} lower than VQA always, since the official rule normalises nothing "
        "where all people gave the same answer: write answers in lower case, without a full stop"
    ]


def _about(question: Question, alternatives: Sequence[tuple[str, float]] | None) -> dict[str, Any]:
    """What the page shows of a question beside its answers; only what is known."""
    told: dict[str, Any] = {
        "question": question.text,
        "image": question.image,
        "answer_type": question.answer_type,
        "question_type": question.question_type,
        "alternatives": None if alternatives is None else [[text, float(share)] for text, share in alternatives],
    }
    return {key: value for key, value in told.items() if value not in ("", None)}
