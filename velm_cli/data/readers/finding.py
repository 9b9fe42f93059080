"""Which file on disk a table means where it does not write its path as it is.

Tables are made on other machines, in other folders and by other systems: with other case, with %20 for a blank,
without suffix, with another machine's absolute path, or with bare names while the images lie in folders. What one
file alone can be meant by is that file, and a note counts such images; nothing is guessed where two could be meant.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote

from velm_cli.data.readers.cells import IMAGE_EXTENSIONS

STORE = frozenset(("plan.json", "manifest.json", "ids.json"))
MOST_FILES = 3_000_000  # looked through below a folder; whoever has more writes whole paths


def key_of(path: Path, root: Path) -> str:
    """`path` relative to `root` in one spelling: macOS decomposes accented names, tables rarely do."""
    return unicodedata.normalize("NFC", os.path.relpath(path, root)).replace(os.sep, "/")


class Finder:
    """Finds images by what tables call them. `images` gives (path below the root with slashes, anything) pairs."""

    def __init__(self, images: Iterable[str]) -> None:
        self._images = images  # read when the first name is not as on disk
        self._exact: dict[str, str | None] = {}  # None: several could be meant
        self._bare: dict[str, str | None] = {}
        self._read = False
        self.found: Counter[str] = Counter()  # how -> images
        self._first: dict[str, tuple[str, str]] = {}
        self.several: dict[str, tuple[str, str]] = {}  # names of which several images could be meant -> two of these
        self._two: dict[str, tuple[str, str]] = {}
        self._last: tuple[str, str | None] = ("", None)  # rows about one image follow each other

    def find(self, name: str) -> str | None:
        """The one image that `name`, which is not an image's path, can mean; None if there is none or are several."""
        if name != self._last[0]:
            self._last = name, self._found(name)
        return self._last[1]

    def _found(self, name: str) -> str | None:
        self._look()
        for how, wanted in _spellings(name):
            table = self._bare if how.startswith("by the bare name") else self._exact
            if found := table.get(wanted):
                self.found[how] += 1
                self._first.setdefault(how, (name, found))
                return found
            if wanted in table:
                self.several[name] = self._two[wanted]
        return None

    def notes(self, where: str) -> list[str]:
        """A line for each way in which images were found."""
        return [f"{where}: {self.doubtful()}"] * bool(self.several) + [
            f"{where}: {count:,} names found {how} ({' is '.join(self._first[how])}{', ...' * (count > 1)})"
            for how, count in self.found.items()
        ]

    def doubtful(self) -> str:
        """What is to be said of the names that could mean several images; empty where there are none."""
        if not self.several:
            return ""
        name, two = next(iter(self.several.items()))
        return (
            f"{len(self.several):,} names could mean several images (first {name}: {' or '.join(two)}): write the path"
        )

    def _look(self) -> None:
        if self._read:
            return
        self._read = True
        for path in self._images:
            stem = os.path.splitext(path)[0]
            for table, names in (
                (self._exact, (path, stem)),
                (self._bare, (path.rpartition("/")[2], stem.rpartition("/")[2])),
            ):
                for name in {_folded(name) for name in names}:
                    other = table.setdefault(name, path)
                    if other != path:
                        self._two.setdefault(name, (other or "", path))
                        table[name] = None


def _spellings(name: str) -> Iterator[tuple[str, str]]:
    """(in which way, key) of what `name` may mean, the likeliest first."""
    decoded = unquote(name)
    suffix = os.path.splitext(name)[1].lower()
    how = "in another spelling" if suffix in IMAGE_EXTENSIONS else "without a suffix"
    for text in dict.fromkeys((name, decoded)):
        folded = _folded(text)
        yield how, folded
        if folded.startswith("/") or re.match("[a-z]:/", folded):
            parts = folded.split("/")[1:]
            for start in range(1, len(parts)):
                yield "by the end of an absolute path", "/".join(parts[start:])
        elif "/" not in folded:
            yield "by the bare name", folded


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """(folder, sorted names of the files in it) below `root`, links followed, hidden folders left aside."""
    visited: set[str] = set()  # a link may lead back to where we came from
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        if {*names} >= STORE:  # of velm's: its own pictures of images are no further images
            subfolders.clear()
            continue
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name != "__MACOSX")
        yield folder, sorted(names)


def images_below(root: Path) -> Iterator[str]:
    """Paths of the image files below a folder, relative to it; none of a folder with more files than MOST_FILES."""
    found: list[str] = []
    for folder, names in walk(root):
        for name in names:
            if os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS and not name.startswith("."):
                found.append(os.path.relpath(os.path.join(folder, name), root))
        if len(found) > MOST_FILES:
            return iter(())
    return iter(found)
