"""The arrays of a store: their names, and their content in pieces, so that none is ever in memory whole.

Format 1 holds captioned images (`Examples.captions_only`): record i is example i and, where there are images, image i.
Format 2 has a table of images beside that of examples, sources, and what is said about examples. What format 1 can
hold is written in it, to the byte as velm always has: its hash, and all that goes by the hash, stays.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import Any, TypeVar

import numpy as np

from velm_cli.data.concepts import labels_of
from velm_cli.data.examples import Examples
from velm_cli.data.image_table import ImageTable

STORE_FORMATS = (1, 2)
ARRAYS = (  # each NAME.npy
    "caption_text",  # uint8: every target in UTF-8, in a row
    "caption_offsets",  # int64, targets + 1: target c is text[offsets[c]:offsets[c + 1]]
    "record_captions",  # int64, examples + 1: example i has the targets from [i] up to [i + 1]
    "record_splits",  # uint8: index into the manifest's `splits`
    "image_locations",  # int32 [images, 2]: shard, row; no rows in a store without images
    "concept_ids",  # uint16: labels of every example in a row
    "concept_offsets",  # int64, examples + 1
)
MORE_ARRAYS = (  # of format 2
    "example_images",  # int32: image numbers of every example in a row
    "example_image_offsets",  # int64, examples + 1
    "source_text",  # uint8: every source in UTF-8, in a row
    "source_offsets",  # int64, examples + 1; an example without source has none
    "about",  # int32 [examples, keys]: index into the values of the key in about.json, -1 none
)
MORE_FILES = ("image_ids.json", "about.json")  # of format 2: a JSON list of one id a line; {key: [values]}
Pieces = Iterator[np.ndarray]  # of an array that is never in memory whole
T = TypeVar("T")
TOGETHER = 10_000  # examples that are in memory at once


def arrays_of(format_number: int) -> tuple[str, ...]:
    """Names of the arrays of a store of this format."""
    return ARRAYS if format_number == 1 else (*ARRAYS, *MORE_ARRAYS)


@dataclass(frozen=True)
class Content:
    """What goes into a store: the examples that are kept, and their images.

    `table` None: no images. `gone`: numbers of its images that were refused; none of the examples has one.
    """

    examples: Examples
    splits: tuple[str, ...]
    table: ImageTable | None
    gone: tuple[int, ...] = ()

    @property
    def format(self) -> int:
        """The oldest that can hold it."""
        return 1 if self.examples.captions_only else 2

    @property
    def num_images(self) -> int:
        """Images that are kept."""
        return 0 if self.table is None else len(self.table) - len(self.gone)

    def texts(self) -> dict[str, tuple[type[np.generic], tuple[int, ...], Callable[[], Pieces]]]:
        """Of each array that the annotations alone decide: type, shape of a row, and what makes its pieces."""
        found: dict[str, tuple[type[np.generic], tuple[int, ...], Callable[[], Pieces]]] = {
            "caption_text": (np.uint8, (), self._caption_text),
            "caption_offsets": (np.int64, (), self._caption_offsets),
            "record_captions": (np.int64, (), self._record_captions),
        }
        if self.format == 2:
            found |= {
                "example_images": (np.int32, (), self._example_images),
                "example_image_offsets": (np.int64, (), self._example_image_offsets),
                "source_text": (np.uint8, (), self._source_text),
                "source_offsets": (np.int64, (), self._source_offsets),
                "about": (np.int32, (len(self.about_values),), self._about),
            }
        return found

    def arrays(
        self, shards: list[dict[str, Any]], concepts: list[str]
    ) -> dict[str, tuple[type[np.generic], tuple[int, ...], Callable[[], Pieces]]]:
        """The same of all arrays of the store."""
        return {
            **self.texts(),
            "record_splits": (np.uint8, (), self._split_numbers),
            "image_locations": (np.int32, (2,), lambda: _locations(shards)),
            "concept_ids": (np.uint16, (), lambda: chain.from_iterable(self._labels(concepts))),
            "concept_offsets": (
                np.int64,
                (),
                lambda: _offsets([len(ids) for ids in some] for some in self._labels(concepts)),
            ),
        }

    def id_list(self) -> Iterator[bytes]:
        """JSON of the splits and of every example's id and split, in pieces."""
        yield f"[{json.dumps(self.splits)}, [".encode()
        for number, some in enumerate(_batches(zip(self.examples.ids(), self.examples.splits(), strict=True))):
            yield (", " * (number > 0) + json.dumps(some)[1:-1]).encode()
        yield b"]]"

    def image_ids(self) -> Iterator[int | str]:
        """The ids of the images that are kept."""
        gone = set(self.gone)
        for number, name in enumerate(self.table.ids() if self.table is not None else ()):
            if number not in gone:
                yield name

    @cached_property
    def about_values(self) -> dict[str, list[str]]:
        """Each key of what is said about examples, with its values in the order in which they come."""
        values: dict[str, dict[str, None]] = {}
        for about in self.examples.abouts():
            for key, value in about.items():
                values.setdefault(key, {})[value] = None
        return {key: list(found) for key, found in values.items()}

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of `records` (examples) and `captions` (targets) in each split, zeros included.

        In format 2 of distinct `images` and of `sources` too.
        """
        counts = {split: {"records": 0, "captions": 0} for split in self.splits}
        for split, texts in zip(self.examples.splits(), self.examples.encoded_targets(), strict=True):
            counts[split]["records"] += 1
            counts[split]["captions"] += len(texts)
        if self.format == 2:
            seen = {split: np.zeros(self.num_images, bool) for split in self.splits}
            for count in counts.values():
                count |= {"images": 0, "sources": 0}
            rows = zip(self.examples.splits(), self.examples.encoded_sources(), self._image_numbers(), strict=True)
            for split, source, images in rows:
                counts[split]["sources"] += bool(source)
                seen[split][images] = True
            for split, count in counts.items():
                count["images"] = int(seen[split].sum())
        return counts

    # ------------------------------------------------------------------------------------ pieces

    def _caption_text(self) -> Pieces:
        for some in _batches(self.examples.encoded_targets()):
            yield np.frombuffer(b"".join(chain.from_iterable(some)), np.uint8)

    def _caption_offsets(self) -> Pieces:
        batches = _batches(self.examples.encoded_targets())
        return _offsets([len(text) for texts in some for text in texts] for some in batches)

    def _record_captions(self) -> Pieces:
        return _offsets([len(texts) for texts in some] for some in _batches(self.examples.encoded_targets()))

    def _source_text(self) -> Pieces:
        for some in _batches(self.examples.encoded_sources()):
            yield np.frombuffer(b"".join(source or b"" for source in some), np.uint8)

    def _source_offsets(self) -> Pieces:
        return _offsets([len(source or b"") for source in some] for some in _batches(self.examples.encoded_sources()))

    def _image_numbers(self) -> Iterator[list[int]]:
        if self.table is None:
            return iter([] for _ in range(len(self.examples)))
        return self.table.numbers(self.gone)

    def _example_images(self) -> Pieces:
        for some in _batches(self._image_numbers()):
            yield np.array(list(chain.from_iterable(some)), np.int32)

    def _example_image_offsets(self) -> Pieces:
        return _offsets([len(images) for images in some] for some in _batches(self._image_numbers()))

    def _about(self) -> Pieces:
        numbers = [
            (key, {value: number for number, value in enumerate(values)}) for key, values in self.about_values.items()
        ]
        for some in _batches(self.examples.abouts()):
            rows = [[of[about[key]] if key in about else -1 for key, of in numbers] for about in some]
            yield np.array(rows, np.int32).reshape(len(some), len(numbers))

    def _split_numbers(self) -> Pieces:
        for some in _batches(self.examples.splits()):
            yield np.array([self.splits.index(split) for split in some], np.uint8)

    def _labels(self, concepts: list[str]) -> Iterator[list[np.ndarray]]:
        numbers = {word: number for number, word in enumerate(concepts)}
        for some in _batches(self.examples.targets()):
            yield [labels_of(captions, numbers) for captions in some]


def _locations(shards: list[dict[str, Any]]) -> Pieces:
    for shard, summary in enumerate(shards):
        yield np.stack([np.full(summary["rows"], shard), np.arange(summary["rows"])], axis=1).astype(np.int32)


def _offsets(batches: Iterable[list[int]]) -> Pieces:
    """0 and the sum of the lengths so far, after each."""
    last = 0
    yield np.zeros(1, np.int64)
    for lengths in batches:
        ends = last + np.cumsum(lengths, dtype=np.int64)
        yield ends
        last = int(ends[-1]) if len(ends) else last


def _batches(values: Iterable[T]) -> Iterator[list[T]]:
    several = iter(values)
    while some := list(islice(several, TOGETHER)):
        yield some
