"""The images of a data set, each once, however many examples name it: what is checked, shrunk and stored.

Images are numbered in the order of their first use, so those of neighbouring examples lie together. In captioning
example i has image i, and nothing is sorted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from velm_cli.data.examples import Examples, ImageRef, id_columns
from velm_cli.data.spool import Spool

# One image is what has the same id and path; `number` is that of its first use.
_IMAGES = """SELECT value, id, path, COUNT(DISTINCT example) FROM row GROUP BY id, path ORDER BY MIN(number)"""
_NUMBERS = """SELECT example, DENSE_RANK() OVER (ORDER BY first) - 1 FROM
    (SELECT number, example, MIN(number) OVER (PARTITION BY id, path) AS first FROM row) ORDER BY number"""


class ImageTable:
    """The distinct images of Examples, on disk as they are."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples
        self.one_each = examples.captions_only  # example i has image i
        self._images = Spool("value", "id", "path", "examples")
        self._uses = Spool("example", "image")
        if self.one_each:
            return
        uses = Spool("example", "value", "id", "path")
        for number, images in enumerate(examples.images()):
            for image in images:
                uses.add(number, *id_columns(image.id), os.fsencode(image.path))
        self._images.extend(uses.query(_IMAGES))
        self._uses.extend(uses.query(_NUMBERS))

    def __len__(self) -> int:
        return len(self.examples) if self.one_each else len(self._images)

    def clashes(self) -> Iterator[tuple[ImageRef, ImageRef]]:
        """Each image whose id is that of an earlier one with another path, after that one."""
        for number, first in () if self.one_each else self._images.repeats("id"):
            yield self[first - 1], self[number - 1]

    def __getitem__(self, number: int) -> ImageRef:
        if self.one_each:
            return self.examples[number].images[0]
        value, text, path, _ = next(self._rows(range(number, number + 1)))
        return ImageRef(text if value is None else int(text), Path(os.fsdecode(path)))

    def paths(self, numbers: range | None = None) -> Iterator[str]:
        """The path of each image, or of those of these numbers."""
        numbers = range(len(self)) if numbers is None else numbers
        if not self.one_each:
            yield from (os.fsdecode(path) for _, _, path, _ in self._rows(numbers))
            return
        for path in self.examples[numbers.start : numbers.stop].paths():
            assert path is not None, "an example of a data set with images has none"
            yield path

    def ids(self, numbers: range | None = None) -> Iterator[int | str]:
        """The id of each image, or of those of these numbers."""
        numbers = range(len(self)) if numbers is None else numbers
        if self.one_each:
            yield from self.examples[numbers.start : numbers.stop].ids()
            return
        for value, text, _, _ in self._rows(numbers):
            yield text if value is None else int(text)

    def about(self, numbers: range) -> Iterator[dict[str, Any]]:
        """What the JSON beside each of these images says of it: its captions, where that is all there is to say."""
        if not self.one_each:
            yield from ({"image_id": name} for name in self.ids(numbers))
            return
        some = self.examples[numbers.start : numbers.stop]
        for name, split, captions in zip(some.ids(), some.splits(), some.targets(), strict=True):
            yield {"image_id": name, "split": split, "captions": captions}

    def examples_of(self, number: int) -> int:
        """How many examples have this image."""
        return 1 if self.one_each else next(self._rows(range(number, number + 1)))[3]

    def numbers(self, without: Iterable[int] = ()) -> Iterator[list[int]]:
        """The numbers of each example's images, counted as if those in `without` were not there.

        An example that has one of these is left out.
        """
        gone = np.array(sorted(without), np.int64)
        lost = set(gone.tolist())
        rows = groupby(self._uses.query("SELECT example, image FROM row ORDER BY number"), key=itemgetter(0))
        after = 0
        for example, uses in rows:
            yield from ([] for _ in range(after, example))  # without an image
            after = example + 1
            images = [image for _, image in uses]
            if lost.isdisjoint(images):
                yield (np.array(images) - np.searchsorted(gone, images)).tolist() if len(gone) else images
        yield from ([] for _ in range(after, len(self.examples)))

    def examples_with(self, images: Iterable[int]) -> Iterator[int]:
        """The numbers of the examples that have one of these images."""
        wanted = set(images)
        if self.one_each:
            yield from sorted(wanted)
        elif wanted:
            rows = self._uses.query("SELECT example, image FROM row ORDER BY number")
            yield from dict.fromkeys(example for example, image in rows if image in wanted)

    def _rows(self, numbers: range) -> Iterator[tuple[Any, ...]]:
        return self._images.query(
            "SELECT value, id, path, examples FROM row WHERE number > ? AND number <= ? ORDER BY number",
            numbers.start,
            numbers.stop,
        )
