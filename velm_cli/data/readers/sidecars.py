"""Caption files beside images: NAME.txt, NAME.jpg.txt, NAME.caption, NAME.json."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from velm_cli.data.readers.cells import captions_of
from velm_cli.errors import UserError
from velm_cli.lines import Refused, load_json, text_lines

SUFFIXES = (".txt", ".caption", ".captions", ".cap")  # the first that is there counts
KEYS = ("captions", "caption", "text")  # of an object in NAME.json


class Sidecars:
    """The caption files of one folder. Names are compared without case where no file is called exactly so."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, dict[str, str]] = {}  # stem -> suffix -> name of the file
        self._folded: dict[str, list[str]] = {}  # stem without case -> stems
        self._used: set[str] = set()
        self._spare: dict[str, str] = {}  # file -> why it is not used though its image is there

    def take(self, name: str) -> bool:
        """Whether a file may be a caption file; then it is kept."""
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in (*SUFFIXES, ".json"):
            return False
        self._files.setdefault(stem, {}).setdefault(suffix.lower(), name)
        self._folded.setdefault(stem.casefold(), []).append(stem)
        return True

    def captions(self, image: str, refused: Refused) -> list[object]:
        """The raw captions of an image: the lines of its text file."""
        if not self._files:
            return []
        stem = os.path.splitext(image)[0]
        files = [
            (suffix, files[suffix])
            for suffix in (*SUFFIXES, ".json")
            for name in (stem, image)
            if suffix in (files := self._of(name))
        ]
        if not files:
            return []
        (suffix, first), *others = files
        self._used.add(first)
        for kind, other in others:
            if kind != ".json":
                self._spare.setdefault(other, f"not used: {first} has the captions of {image}")
        if suffix == ".json":
            return self._from_object(first, refused)
        return [line for _, line in text_lines(self._folder / first, refused)]

    def _of(self, name: str) -> dict[str, str]:
        if name in self._files:
            return self._files[name]
        others = set(self._folded.get(name.casefold(), ()))
        return self._files[others.pop()] if len(others) == 1 else {}

    def _from_object(self, name: str, refused: Refused) -> list[object]:
        try:
            item = load_json(self._folder / name)
        except UserError as error:
            refused.append((str(self._folder / name), f"not read: {error}"))
            return []
        value = next((item[key] for key in KEYS if key in item), None) if isinstance(item, dict) else None
        return captions_of(value)

    @property
    def used(self) -> bool:
        """Whether any image has a caption file."""
        return bool(self._used)

    def unused(self, images: list[str], unreadable: list[str]) -> Iterator[tuple[str, str]]:
        """(file, reason) of the text files that gave no caption; `unreadable` are images that were refused."""
        lost = {stem: name for name in unreadable for stem in (name, os.path.splitext(name)[0])}
        for files in self._files.values():
            for suffix, name in files.items():
                if suffix != ".json" and name not in self._used:
                    beside = "no image has its name" if images else "no image is next to it"
                    stem = os.path.splitext(name)[0]
                    why = f"{lost[stem]} is not read" if stem in lost else beside
                    yield name, self._spare.get(name, f"a text file of no image: {why}")

    def objects_left(self) -> int:
        """How many .json files are no captions of images."""
        return sum(
            1
            for files in self._files.values()
            for suffix, name in files.items()
            if suffix == ".json" and name not in self._used
        )
