"""Questions and answers as files: VQA v2's annotations and questions, and any system's answers.

As with captions, what does not fit together (a question twice, without an answer, unknown) is listed and an error,
unless the caller asks to leave it out.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from velm_cli.errors import UserError, on_one_line
from velm_cli.lines import Refused, json_lines, parse_json, text_lines
from velm_cli.metrics.caption_forms import image_id
from velm_cli.metrics.given import given_text, keys_again
from velm_cli.metrics.scores import ExampleId
from velm_cli.metrics.vqa_scores import Question, questions_listed
from velm_cli.schema import Mismatch

ID_KEYS = ("question_id", "id", "image")  # the last is VizWiz's, with one question an image
PREDICTED = ("prediction", "answer", "pred", "predicted_answer", "generated_text", "output", "text")
TRUE = ("answers", "direct_answers", "truth")
KNOWN = {
    "predictions": 'known are [{"question_id": ..., "answer": ...}, ...], {"ID": "answer"}, JSON lines and CSV with '
    "question_id and answer",
    "references": 'known is VQA\'s {"annotations": [{"question_id", "answers"}, ...]}, or the list alone',
    "questions": 'known is VQA\'s {"questions": [{"question_id", "question", "image_id"}, ...]}',
}
OF = dict.fromkeys(("references", "training"), "annotations") | {"questions": "questions"}
KNOWN |= dict.fromkeys(("vs",), KNOWN["predictions"]) | dict.fromkeys(("training",), KNOWN["references"])


@dataclass(slots=True)
class Answers:
    """One system's answers by question id; `duplicates` are ids that came again, whose first answer counts."""

    answers: dict[ExampleId, str]
    duplicates: list[ExampleId] = field(default_factory=list)
    digest: str = ""


def read_answers(path: Path, option: str = "predictions") -> Answers:
    """A system's answers. UserError for a file in no known form."""
    found = Answers({})
    rows, found.digest = _rows(path, option)
    for where, item in rows:
        number = image_id(item[_key(item, ID_KEYS, where, "question_id")], where, "question_id")
        value = item[_key(item, PREDICTED, where, "answer")]
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            raise UserError(f"{where}: the answer must be text, not {on_one_line(str(value))[:60]}")
        if number in found.answers:
            found.duplicates.append(number)
        found.answers.setdefault(number, value)
    if not found.answers:
        raise UserError(f"{option}={path} holds no answers; {KNOWN[option]}")
    return found


def read_questions(
    path: Path, questions: Path | None = None, option: str = "references"
) -> tuple[dict[ExampleId, Question], str]:
    """Questions with people's answers, by id, and a digest of the file; the text is from the file `questions`.

    UserError for other forms, a question that comes twice or has no answers.
    """
    found: dict[ExampleId, Question] = {}
    seen: set[str] = set()
    rows, digest = _rows(path, option)
    for where, item in rows:
        found[_new_id(item, ID_KEYS, where, seen)] = _question(item, where)
    if not found:
        raise UserError(f"{option}={path} holds no questions; {KNOWN[option]}")
    if questions is not None:
        _add_texts(found, questions)
    return found, digest


def _question(item: Mapping[str, Any], where: str) -> Question:
    given = item[_key(item, TRUE, where, "answers")]
    if not isinstance(given, list):
        raise UserError(f"{where}: the answers must be a list, not {on_one_line(str(given))[:60]}")
    answers = [each.get("answer") if isinstance(each, dict) else each for each in given]
    written = tuple(answer for answer in answers if isinstance(answer, str))
    if not written or len(written) < len(answers):
        raise UserError(f'{where}: the answers must be a list of texts, or of {{"answer": text}}, and not be empty')
    about = item["about"] if isinstance(item.get("about"), dict) else item  # velm's own per_example.jsonl

    def text(key: str) -> str:
        return value if isinstance(value := about.get(key, ""), str) else ""

    image = next((about[key] for key in ("image_id", "image") if isinstance(about.get(key), (int, str))), None)
    return Question(
        answers=written,
        text=text("question"),
        answer_type=text("answer_type"),
        question_type=text("question_type"),
        answer=text("multiple_choice_answer"),
        image=image,
    )


def _add_texts(found: dict[ExampleId, Question], path: Path) -> None:
    rows, _ = _rows(path, "questions")
    texts: dict[str, tuple[str, Any]] = {}
    seen: set[str] = set()
    for where, item in rows:
        number = _new_id(item, ID_KEYS[:2], where, seen)
        text = item.get("question")
        if not isinstance(text, str):
            raise UserError(f'{where}: "question" must be text')
        texts[str(number)] = (text, item.get("image_id"))
    if missing := [number for number in found if str(number) not in texts]:
        raise UserError(f"questions={path}: no text for {questions_listed(missing)} of the references")
    for number, question in found.items():
        text, image = texts[str(number)]
        image = image if isinstance(image, (int, str)) and question.image is None else question.image
        found[number] = replace(question, text=text, image=image)


def _new_id(item: Mapping[str, Any], keys: tuple[str, ...], where: str, seen: set[str]) -> ExampleId:
    """The question's id. UserError where it was `seen` before, be it as a number or as text."""
    number = image_id(item[_key(item, keys, where, "question_id")], where, "question_id")
    if str(number) in seen:
        raise UserError(f"{where}: question {on_one_line(str(number))[:40]} is there twice")
    seen.add(str(number))
    return number


# ------------------------------------------------------------------------------------- both together


def matched_questions(
    truth: Mapping[ExampleId, Question], predicted: Answers, policy: Mismatch, where: str
) -> tuple[list[ExampleId], dict[ExampleId, str], list[str]]:
    """(questions to score in the order of the references, answers by their ids, what was done about the others).

    Ids that are numbers on one side and text on the other are matched. UserError for questions that are not exactly
    once on both sides, unless the policy is to ignore them.
    """
    by_text = {str(number): number for number in truth}
    own = {number: by_text.get(str(number).strip(), number) for number in predicted.answers}
    notes = []
    if changed := sum(number is not mine and number != mine for number, mine in own.items()):
        notes.append(f"ids that are numbers on one side and text on the other are matched: {changed:,}")
    answers: dict[ExampleId, str] = {}
    duplicates = [by_text.get(str(number).strip(), number) for number in predicted.duplicates]
    for number, answer in predicted.answers.items():
        if own[number] in answers:
            duplicates.append(own[number])
        answers.setdefault(own[number], answer)
    problems = [
        f"{what} {questions_listed(ids)}"
        for what, ids in (
            ("no answer for", [number for number in truth if number not in answers]),
            ("no reference for", [number for number in answers if number not in truth]),
            ("more than one answer for", list(Counter(duplicates))),
        )
        if ids
    ]
    if problems and policy is Mismatch.error:
        raise UserError(
            f"{where}: {'; '.join(problems)}. mismatch=ignore scores the questions that both files have "
            "(of several answers the first)"
        )
    shared = [number for number in truth if number in answers]
    if not shared:
        raise UserError(f"{where}: no question has both an answer and references: {'; '.join(problems)}")
    return shared, answers, [*notes, *(f"left out: {problem}" for problem in problems)]


# ------------------------------------------------------------------------------------- one file


def _key(item: Mapping[str, Any], keys: tuple[str, ...], where: str, kind: str) -> str:
    found = next((key for key in keys if key in item), None)
    if found is None:
        there = on_one_line(", ".join(map(str, item)))[:80] or "nothing"
        raise UserError(f"{where}: no {kind}: none of {', '.join(keys)} but {there}")
    return found


def _rows(path: Path, option: str) -> tuple[Iterator[tuple[str, dict[str, Any]]], str]:
    """(place, object) of each question of a file, and a digest of it."""
    named = f"{option}={path}"
    data, digest = given_text(path, option, OF.get(option, "answers"))
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".csv", ".tsv")):
        return _table(path, option, "\t" if name.endswith(".tsv") else ","), digest
    try:
        items = _listed(value := parse_json(data, named), option, named)
        if twice := keys_again(data, value, len(items)):
            raise UserError(f"{named}: more than once in it: {questions_listed(twice)}; JSON keeps the last: leave one")
        return _objects((f"{path} {number}", item) for number, item in items), digest
    except UserError:
        if data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"{" or b"\n" not in data.strip():
            raise
        try:
            parse_json(data, named)
        except UserError:  # JSON lines are no JSON value
            return _json_lines(path, option), digest
        raise


def _listed(value: Any, option: str, named: str) -> list[tuple[Any, Any]]:
    """(number or key, object) of the questions in a JSON value."""
    if isinstance(value, dict):
        wrapper = next(
            (key for key in ("annotations", "questions", "predictions", "results", "data") if key in value), None
        )
        if wrapper is not None:
            return _listed(value[wrapper], option, named)
        if any(key in value for key in ID_KEYS):  # JSON lines of one line
            return [(1, value)]
        key = "answers" if option in ("references", "training") else "answer"
        return [
            (number, item if isinstance(item, dict) else {"question_id": number, key: item})
            for number, item in value.items()
        ]
    if not isinstance(value, list):
        raise UserError(f"{named} is no list and no object; {KNOWN[option]}")
    return list(enumerate(value, 1))


def _objects(items: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, item in items:
        if not isinstance(item, dict):
            raise UserError(f"{where}: not an object but {on_one_line(str(item))[:60]}")
        yield where, item


def _json_lines(path: Path, option: str) -> Iterator[tuple[str, dict[str, Any]]]:
    refused: Refused = []
    yield from _objects((f"{path} line {number}", item) for number, item in json_lines(path, refused))
    _refuse(refused, option)


def _table(path: Path, option: str, delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if option in ("references", "training", "questions"):
        raise UserError(f"{option}={path} is a table; {KNOWN[option]}")
    refused: Refused = []
    lines = list(text_lines(path, refused))
    _refuse(refused, option)
    rows = csv.reader((line for _, line in lines), delimiter=delimiter, strict=True)
    try:
        names = [name.strip().lower() for name in next(rows)]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise UserError(f"{option}={path}: the column {on_one_line(twice[0])[:40]} is there twice: leave one")
        for cells in rows:
            where = f"{path} line {lines[rows.line_num - 1][0]}"
            if len(cells) != len(names):
                raise UserError(f"{where}: {len(cells)} cells in {len(names)} columns: put quotes around the answer")
            item: dict[str, Any] = dict(zip(names, cells, strict=True))
            key = _key(item, ID_KEYS, where, "question_id")
            text = item[key].strip()
            is_number = text.isdecimal() and len(text) < 19  # Python turns no text of thousands of digits into a number
            yield where, item | {key: int(text) if is_number else text}
    except csv.Error as error:
        raise UserError(f"{option}={path}: {error}: is a quotation mark left open?") from None


def _refuse(refused: Refused, option: str) -> None:
    if refused:
        more = f" (and {len(refused) - 1:,} more lines)" if len(refused) > 1 else ""
        raise UserError(f"{option}={refused[0][0]}: {refused[0][1]}{more}")
