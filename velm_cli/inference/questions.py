"""A file of questions about images: JSON lines, JSON or CSV, with `image` and `question`, perhaps `question_id`."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from velm_cli.errors import UserError, on_one_line
from velm_cli.lines import Refused, json_lines, parse_json, read_bytes, text_lines

IDS = ("question_id", "id")


class Question(NamedTuple):
    image: str
    text: str
    id: int | str | None


def read_questions(file: str, folder: str | None) -> list[Question]:
    """The questions in their order; names of images are paths below `folder`, or as they are found from here.

    UserError for a file that has none, and for a row without image or question, by its number.
    """
    found = []
    for number, row in enumerate(_rows(Path(file), f"questions={file}"), 1):
        if not isinstance(row, dict) or not _is_text(row.get("image")) or not _is_text(row.get("question")):
            raise UserError(
                f"questions={file}: row {number} needs `image` (a path) and `question`: {on_one_line(str(row))[:120]}"
            )
        identity = next((row[key] for key in IDS if row.get(key) not in (None, "")), None)
        if not isinstance(identity, (int, str, type(None))):
            raise UserError(f"questions={file}: row {number}: question_id is neither number nor text")
        image = row["image"] if folder is None else str(Path(folder, row["image"]))
        found.append(Question(image, row["question"], identity))
    if not found:
        raise UserError(f"questions={file}: there is no question")
    return found


def _rows(path: Path, named: str) -> Iterator[Any]:
    refused: Refused = []
    suffix = path.suffix.lower()
    if suffix == ".json":
        whole = parse_json(read_bytes(path), named)
        yield from (
            (whole.get("questions") or ()) if isinstance(whole, dict) else whole if isinstance(whole, list) else ()
        )
    elif suffix == ".jsonl":
        yield from (item for _, item in json_lines(path, refused))
    elif suffix == ".csv":
        try:
            yield from csv.DictReader((line for _, line in text_lines(path, refused)), strict=True)
        except csv.Error as error:
            raise UserError(f"{named}: {error}: is a quotation mark left open?") from None
    else:
        raise UserError(f"{named}: give .jsonl, .json or .csv")
    if refused:
        raise UserError(f"questions={refused[0][0]}: {refused[0][1]}")


def _is_text(value: Any) -> bool:
    """Whether it is some text, and of characters that UTF-8 has."""
    return isinstance(value, str) and bool(value.strip()) and value == value.encode("utf-8", "replace").decode()
