"""Annotation files by part: given as an option, or told apart by what their folder or name says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from velm_cli.data.readers.splits import PARTS, part_of_name, part_of_word
from velm_cli.errors import UserError, did_you_mean

SPLITS = ("train", "val", "test")
Files = dict[str, list[Path]]  # part -> its files


def given_files(given: Any, option: str, root: Path | None) -> Files:
    """The files that an option names: a file, a list, or {train: a file or a list, val: ...}, below `root` too.

    UserError where one is not there, or of no part.
    """
    files: Files = {}
    if isinstance(given, dict):
        named = [(name, path) for name, paths in given.items() for path in _listed(paths)]
    else:
        named = [(None, path) for path in _listed(given)]
    for name, text in named:
        if not isinstance(text, str):
            raise UserError(f"{option}={given}: give a file, a list of files or {{train: file, val: file}}")
        path = Path(text).expanduser()
        if root is not None and not path.is_file() and (root / path).is_file():
            path = root / path
        if not path.is_file():
            raise UserError(f"{option}: {text} does not exist")
        part = part_of_file(path, (path.absolute().parent.name,)) if name is None else PARTS.get(name)
        if part is None:
            hint = did_you_mean(str(name), PARTS)
            what = f"{name} is not train, val or test"
            if name is None:
                hint, what = "", f"{text}: neither its folder nor its name says train, val or test"
            raise UserError(f"{option}: {what}; write {option}={{train: FILE, val: FILE}}{hint}")
        files.setdefault(part, []).append(path)
    return in_order(files)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def in_order(files: Files) -> Files:
    return {part: files[part] for part in SPLITS if part in files}


def part_of_file(path: Path, folders: Sequence[str]) -> str | None:
    """What the nearest of the folders says, else the file's name: train/ and val/ may both hold parts of train2014."""
    for folder in reversed(folders):
        if part := part_of_word(folder):
            return part
    return part_of_name(path.name.replace("test-dev", "test"))
