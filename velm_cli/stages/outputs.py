"""Where results may go: to places where nothing is, or over velm's own earlier output of the same kind.

A name is no proof of ownership: what is to be replaced must itself tell that velm wrote it. Looked at before the work
begins, since the answer after an hour of scoring would be too late.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from velm_cli.engine.folder import lock_folder
from velm_cli.errors import UserError, on_one_line
from velm_cli.files import read_sealed, refused_by_the_system, sealed, write_json

INPUTS = "inputs.json"  # what a folder of scores was made from, sealed; also the sign that velm made it
SCORE_FILES = {
    "scores.json",
    "per_image.jsonl",
    "per_example.jsonl",
    "report.html",
    "confusion.csv",
    "chair.json",
    "domains.json",
    ".lock",
}


def output_file(option: str, value: str, is_own: Callable[[Path], bool], kind: str) -> Path:
    """The file that `option` names, links followed, in a folder that is there.

    UserError when there is something that is no `kind` of velm's (`is_own`), or nothing can be written.
    """
    with _explained(option, value):
        path = Path(value).resolve()
        if path.is_dir():
            raise UserError(f"{option}={value} is a folder: give the name of a file")
        if path.exists() and not (path.is_file() and is_own(path)):
            raise UserError(f"{option}={value} is there and is not {kind}: give another name, nothing was changed")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


@contextlib.contextmanager
def score_folder(option: str, value: str, inputs: dict[str, str], options: dict[str, Any]) -> Iterator[Path]:
    """The folder for scores of `inputs` (file -> digest), locked: a new one, an empty one, or that of the same inputs
    and of the same `options` (JSON values by their names).

    UserError for any other.
    """
    path = Path(value)
    with _explained(option, value):
        _refuse_other_folder(f"{option}={value}", path, inputs, options)
        path.mkdir(parents=True, exist_ok=True)
    with lock_folder(path):
        _refuse_other_folder(f"{option}={value}", path, inputs, options)
        write_json(path / INPUTS, sealed({"made_by": "velm score", "inputs": inputs, "options": options}))
        yield path


def _refuse_other_folder(where: str, path: Path, inputs: dict[str, str], options: dict[str, Any]) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise UserError(f"{where} is not a folder: give another name")
    there = {file.name for file in path.iterdir() if not file.name.endswith(".part")}
    if (path / INPUTS).is_file():
        try:
            made = read_sealed(path / INPUTS)
        except (OSError, ValueError) as error:
            raise UserError(f"{where}: {error}: give another folder") from error
        if made.get("made_by") != "velm score":
            raise UserError(f"{where} holds files that velm score did not write: give another folder")
        if there <= {INPUTS, ".lock"}:  # what was scored then was refused, or stopped: no scores to lose
            return
        if made.get("inputs") != inputs:
            raise UserError(f"{where} holds the scores of other files: give another folder, or delete this one")
        before = made.get("options", options)  # an older velm's does not say
        if not isinstance(before, dict):
            raise UserError(f"{where} holds files that velm score did not write: give another folder")
        for key in (*options, *before):
            if before.get(key) != options.get(key):
                raise UserError(
                    f"{where} holds scores with {key}={_shown(before.get(key))}, and here it is "
                    f"{_shown(options.get(key))}: give another folder, or delete this one"
                )
    elif foreign := sorted(there - SCORE_FILES):  # without INPUTS: an older velm's
        raise UserError(f"{where} holds files that velm score did not write ({foreign[0]}): give another folder")


def _shown(value: Any) -> str:
    text = "null" if value is None else f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)
    return on_one_line(text)[:80]


@contextlib.contextmanager
def _explained(option: str, value: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # how Python before 3.13 says that links go round
        raise UserError(f"{option}={value} cannot be written: its links lead nowhere") from error
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and refused_by_the_system(error):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{option}={value} cannot be written: {reason}") from error
