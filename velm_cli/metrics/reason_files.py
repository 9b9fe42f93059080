"""Files for `velm score task=reason`: records of NLVR and NLVR2, and predictions as their official scripts take them.

Those are lines `dev-12-0-3,true`: the name of a picture (with or without .png) in NLVR, where every order of the boxes
is predicted, and the identifier in NLVR2. velm's own predictions.json, JSON lines, {"ID": "true"} and a CSV with a
header are read too.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from velm_cli.data.statements import ORDERS, label_of, named, picture_of
from velm_cli.errors import UserError, on_one_line
from velm_cli.lines import Refused, json_lines, text_lines
from velm_cli.metrics.given import given_text
from velm_cli.metrics.reason_scores import Statement, examples_listed
from velm_cli.metrics.scores import ExampleId
from velm_cli.metrics.vqa_files import read_answers
from velm_cli.schema import Mismatch

NAMES, VALUES = ("identifier", "id"), ("prediction", "label", "answer")  # of columns
KNOWN = 'known are lines "dev-12-0-3,true" (CSV), {"ID": "true"}, [{"id": ..., "prediction": "true"}] and JSON lines'


@dataclass(slots=True)
class Judgements:
    """One system's labels by the name of the example; `duplicates` came again, the first counts."""

    labels: dict[ExampleId, str]
    duplicates: list[ExampleId] = field(default_factory=list)
    digest: str = ""


def read_judgements(path: Path, option: str = "predictions") -> Judgements:
    """A system's labels. UserError for a file in no known form, or a label that is neither true nor false."""
    named_so = f"{option}={path}"
    data, digest = given_text(path, option, "predictions")
    if data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        answers = read_answers(path, option)
        pairs = [(number, answer, f"{named_so}: {number}") for number, answer in answers.answers.items()]
        found = Judgements({}, list(answers.duplicates), digest)
    else:
        pairs, found = _table(path, option), Judgements({}, [], digest)
    for number, answer, where in pairs:
        label = label_of(answer)
        if label is None:
            raise UserError(f"{on_one_line(where)}: {on_one_line(answer)[:40]} is neither true nor false; {KNOWN}")
        if number in found.labels:
            found.duplicates.append(number)
        found.labels.setdefault(number, label)
    if not found.labels:
        raise UserError(f"{named_so} holds no predictions; {KNOWN}")
    return found


def _table(path: Path, option: str) -> list[tuple[ExampleId, str, str]]:
    """(name, label, place) of each line; a first line of names of columns is a header."""
    refused: Refused = []
    lines = list(text_lines(path, refused))
    if refused:
        raise UserError(f"{option}={refused[0][0]}: {refused[0][1]}")
    rows: list[tuple[ExampleId, str, str]] = []
    columns = (0, 1)
    for place, (number, line) in enumerate(lines):
        cells = [cell.strip() for cell in next(csv.reader([line]))]
        if len(cells) <= max(columns):
            raise UserError(f"{option}={path} line {number}: it has {len(cells)} cells; {KNOWN}")
        header = [cell.lower() for cell in cells]
        names = [header.index(name) for name in NAMES if name in header]
        values = [header.index(name) for name in VALUES if name in header]
        if place == 0 and (names or values):
            columns = (names[0] if names else 0, values[0] if values else 1)
            continue
        rows.append((cells[columns[0]].removesuffix(".png"), cells[columns[1]], f"{option}={path} line {number}"))
    return rows


def read_statements(path: Path, option: str = "references") -> tuple[dict[str, Statement], str]:
    """Labelled records by their identifiers, and a digest of the file. UserError for other files."""
    _, digest = given_text(path, option, "records")
    refused: Refused = []
    found: dict[str, Statement] = {}
    for number, row in json_lines(path, refused):
        where = f"{option}={path} line {number}"
        who = named(row.get("identifier")) if isinstance(row, dict) else None
        if who is None:
            raise UserError(
                f'{where}: no record of NLVR: {{"identifier": "12-0" or "dev-12-0-1", "sentence": "...", '
                '"label": "true"}'
            )
        label = label_of(row.get("label"))
        if label is None:
            raise UserError(f"{where}: its label is neither true nor false, so there is nothing to compare with")
        if who.identifier in found:
            raise UserError(f"{where}: {who.identifier} is there twice")
        text, kind = row.get("sentence"), row.get("kind")
        text = text if isinstance(text, str) else ""
        found[who.identifier] = Statement(label, who.group, text, kind if isinstance(kind, str) else "")
    if refused:
        raise UserError(f"{option}={refused[0][0]}: {refused[0][1]}")
    if not found:
        raise UserError(f"{option}={path} holds no records")
    return found, digest


def matched_statements(
    statements: Mapping[str, Statement], given: Judgements, policy: Mismatch, where: str
) -> tuple[dict[ExampleId, Statement], dict[ExampleId, str], list[str]]:
    """(what is scored, by example, and the labels predicted of it, what was done about the others).

    In NLVR a record is six examples, one for each order of the boxes, unless no prediction says an order (a system that
    reads the facts). UserError for examples that are not exactly once on both sides, unless the policy is to ignore
    them.
    """
    labels: dict[ExampleId, str] = {}
    duplicates = list(given.duplicates)
    for number, label in given.labels.items():
        key = number if next(iter(statements))[0].isalpha() else _ordered(number)
        if key in labels:
            duplicates.append(number)
        labels.setdefault(key, label)
    wanted: dict[ExampleId, Statement] = {}
    for identifier, statement in statements.items():
        orders = [f"{identifier}-{order}" for order in range(ORDERS)]
        several = identifier not in labels and not identifier[0].isalpha()
        wanted |= dict.fromkeys(orders if several else [identifier], statement)
    problems = [
        f"{what} {examples_listed(ids)}"
        for what, ids in (
            ("no prediction for", [key for key in wanted if key not in labels]),
            ("no reference for", [key for key in labels if key not in wanted]),
            ("more than one prediction for", list(dict.fromkeys(duplicates))),
        )
        if ids
    ]
    if problems and policy is Mismatch.error:
        raise UserError(
            f"{where}: {'; '.join(problems)}. mismatch=ignore scores the examples that both files have (of several "
            "predictions the first)"
        )
    shared = {key: statement for key, statement in wanted.items() if key in labels}
    if not shared:
        raise UserError(f"{where}: no example has both a prediction and a reference: {'; '.join(problems)}")
    return shared, {key: labels[key] for key in shared}, [f"left out: {problem}" for problem in problems]


def _ordered(number: ExampleId) -> ExampleId:
    """The name of one of NLVR's pictures without what the official script leaves out: dev-12-0-3 is 12-0-3."""
    found = picture_of(str(number))
    return number if found is None else "-".join(found)
