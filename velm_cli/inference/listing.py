"""Which images a command means: a file, a folder, a pattern, a tar, a list of paths. None is opened to be listed."""

from __future__ import annotations

import codecs
import glob
import os
import sys
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from velm_cli.data.readers.cells import IMAGE_EXTENSIONS
from velm_cli.data.readers.finding import walk
from velm_cli.data.readers.folder import NOT_PHOTOS
from velm_cli.data.sources import SourceError
from velm_cli.data.tars import MAX_MEMBER, members
from velm_cli.errors import UserError, on_one_line
from velm_cli.inference.pictures import ADDRESS

PATTERN = frozenset("*?[")
TEXT_LISTS = (".txt", ".lst")
STANDARD_INPUT = "-"


class Listed(NamedTuple):
    """An image by the name that results carry: its path as it was given, or that of its tar and the member's name."""

    name: str
    tar: Path | None = None  # None: `name` is the path
    member: str = ""  # its name in the tar

    @property
    def path(self) -> Path:
        return self.tar or Path(self.name)

    @property
    def stamp(self) -> str:
        """Which file it is, and as of when: what was made of it is of no use once this has changed."""
        try:
            found = os.stat(self.path)
        except (OSError, ValueError):
            return "absent"
        return f"{os.path.abspath(self.path)} {found.st_size} {found.st_mtime_ns}"


def listed_images(value: Any, option: str = "images") -> list[Listed]:
    """The images that `images=` means, each once, in the order of its parts; those of a folder or pattern sorted.

    `-` is a list on standard input, a .txt or .lst one in a file: a path a line. UserError where a part means nothing.
    """
    parts = value if isinstance(value, (list, tuple)) else [value]
    found: dict[str, Listed] = {}
    for part in map(str, parts):
        images = list(_part(part, option))
        if not images:
            raise UserError(f"{option}={on_one_line(part)}: there is no image")
        for image in images:
            found.setdefault(image.name, image)
    return list(found.values())


def _part(part: str, option: str) -> Iterator[Listed]:
    path = Path(part)
    if part == STANDARD_INPUT:
        yield from _lines(sys.stdin.buffer.read(), "standard input")
    elif ADDRESS.match(part):
        raise UserError(f"{option}={part}: velm opens no addresses; download the images first")
    elif path.is_dir():
        for folder, names in walk(path):
            for name in names:
                suffix = os.path.splitext(name)[1].lower()
                if (suffix in IMAGE_EXTENSIONS or suffix in NOT_PHOTOS) and not name.startswith("."):
                    yield Listed(os.path.join(folder, name))
    elif path.suffix.lower() == ".tar" and path.is_file():
        yield from (Listed(f"{part}/{name}", path, name) for name, _ in tar_images(path, ()))
    elif path.suffix.lower() in TEXT_LISTS and path.is_file():
        yield from _lines(path.read_bytes(), part)
    elif os.path.lexists(path):
        yield Listed(part)
    elif PATTERN & set(part):
        for name in sorted(glob.glob(part, recursive=True)):
            if os.path.isfile(name):
                yield Listed(name)
    else:
        raise UserError(f"{option}={on_one_line(part)} does not exist: give a file, a folder, a pattern or a tar")


def _lines(content: bytes, where: str) -> Iterator[Listed]:
    # Names of files are bytes; what is no UTF-8 is found all the same.
    for line in content.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape").split("\n"):
        name = line.strip(" \t\r")
        if "\0" in name:
            raise UserError(f"{where} is no list of paths: it holds binary data")
        if name:
            yield Listed(name)


def tar_images(path: Path, read: Container[str]) -> Iterator[tuple[str, bytes | None]]:
    """(member's name, content) of the images in a tar, in its order; the content of those in `read` only, and None of
    what is too large. UserError where the tar is damaged."""
    try:
        with path.open("rb") as file:
            for name, member in members(file):
                if os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS:
                    yield name, member.read() if name in read and member.size <= MAX_MEMBER else None
    except SourceError as error:
        raise UserError(f"images={path}: {error}") from error
    except OSError as error:
        raise UserError(f"images={path} cannot be read: {error.strerror}") from error
