"""What a reader produces: Examples, whatever the task and the file format were."""

from __future__ import annotations

import json
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from velm_cli.data.spool import Spool

COLUMNS = ("value", "id", "split", "folder", "name", "targets", "present", "images", "source", "about")
ExampleId = int | str  # as result files carry it (COCO's integers stay integers)


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image as a data set names it. Several examples may name one; two ids with one file are two images."""

    id: int | str
    path: Path


@dataclass(frozen=True, slots=True)
class Example:
    """One example of a task.

    `id`: the image's in captioning, the question's in VQA. `source`: the text that goes in with the images (a
    question), None without. `targets`: the texts to produce (captions in the order of their annotation ids; answers).
    `about`: what scores are split by (question_type, answer_type).
    """

    id: ExampleId
    split: str
    images: tuple[ImageRef, ...] = ()
    source: str | None = None
    targets: tuple[str, ...] = ()
    about: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def image(self) -> Path | None:
        """The file of its first image; None without one."""
        return self.images[0].path if self.images else None


def captioned(image_id: int | str, split: str, image: Path | None = None, targets: Sequence[str] = ()) -> Example:
    """An image with its captions: an example whose image has its id. `image` None: the captions only."""
    return Example(image_id, split, () if image is None else (ImageRef(image_id, image),), targets=tuple(targets))


class Examples(Sequence[Example]):
    """Examples on disk: a million take as little memory as a thousand. An Example is made when it is asked for."""

    def __init__(self, examples: Iterable[Example] = ()) -> None:
        # `value`: an id that is a number, None for a text. `folder`, `split`: numbers of the names below.
        # `images`: JSON of [id, folder, name], None where there is at most one, of the example's id: that is `name`.
        # `about`: JSON.
        self._spool = Spool(*COLUMNS)
        self._folders: dict[str | None, int] = {}
        self._splits: dict[str, int] = {}
        self._part: range | None = None  # of the spool's rows, counted from 0; None: all
        self.captions_only = True  # no more than `captioned` makes: each example is an image, or a text without one
        for example in examples:
            self.append(example)

    def append(self, example: Example, *, present: bool = True) -> None:
        """Add an Example at the end. `present`: what `select` goes by."""
        images = source = about = None
        folder, name = None, ""
        if len(example.images) == 1 and example.images[0].id == example.id:
            folder, name = os.path.split(example.images[0].path)
        elif example.images:
            parts = ((image.id, *os.path.split(image.path)) for image in example.images)
            images = json.dumps([[one, self._folder(folder), name] for one, folder, name in parts])
        if example.source is not None:
            source = example.source.encode(errors="replace")
        if example.about:
            about = json.dumps(dict(example.about))
        self.captions_only &= images is source is about is None
        # what UTF-8 cannot write: in file names other bytes, in captions lone surrogates from JSON
        texts = [text.encode(errors="replace") for text in example.targets]
        assert not any(b"\0" in text for text in texts), "targets are printable text"
        self._spool.add(
            *id_columns(example.id),
            self._splits.setdefault(example.split, len(self._splits)),
            self._folder(folder),
            name.encode(errors="surrogatepass"),
            b"\0".join(texts) if texts else None,
            present,
            images,
            source,
            about,
        )

    def _folder(self, name: str | None) -> int:
        return self._folders.setdefault(name, len(self._folders))

    def select(self, *, present: bool, order: Sequence[str] = (), images: bool = True) -> Examples:
        """Those that are `present` or those that are not; without images unless `images`.

        With `order` by split as listed in it, then by id: numbers by value, then names. Else as they are.
        """
        assert self._part is None
        taken = self._like()
        if not images:
            taken._folders = {None: 0}
        sort = "number"
        if order:
            taken._splits = {name: number for number, name in enumerate(order)}
            ranks = " ".join(f"WHEN {number} THEN {taken._splits[name]}" for name, number in self._splits.items())
            sort = "split, value IS NULL, value, id, number"
        columns = f"value, id, {f'CASE split {ranks} END AS split' if order and ranks else 'split'}, "
        columns += "folder, name, targets, present, images" if images else "0, x'', targets, present, NULL"
        taken._spool.extend(
            self._spool.query(f"SELECT {columns}, source, about FROM row WHERE present = ? ORDER BY {sort}", present)
        )
        return taken

    def _like(self) -> Examples:
        """None yet, of those that are here."""
        taken = Examples()
        taken._folders, taken._splits = dict(self._folders), dict(self._splits)
        taken.captions_only = self.captions_only
        return taken

    def without(self, numbers: Iterable[int]) -> Examples:
        """All but the examples of these numbers."""
        left_out = set(numbers)
        assert self._part is None
        if not left_out:
            return self
        taken = self._like()
        rows = self._spool.query("SELECT * FROM row ORDER BY number")
        taken._spool.extend(row[1:] for row in rows if row[0] - 1 not in left_out)
        return taken

    def doubles(self) -> Iterator[tuple[Example, Example]]:
        """Each example whose id reads like that of an earlier one, after that one."""
        for number, first in self._spool.repeats("id"):
            yield self[first - 1], self[number - 1]

    def ids(self) -> Iterator[ExampleId]:
        """The id of each example."""
        for number, text in self._rows("value, id"):
            yield text if number is None else int(text)

    def targets(self) -> Iterator[list[str]]:
        """The targets of each example."""
        for texts in self.encoded_targets():
            yield [text.decode() for text in texts]

    def encoded_targets(self) -> Iterator[list[bytes]]:
        """The targets of each example in UTF-8."""
        for (texts,) in self._rows("targets"):
            yield [] if texts is None else texts.split(b"\0")

    def encoded_sources(self) -> Iterator[bytes | None]:
        """The source of each example in UTF-8."""
        for (source,) in self._rows("source"):
            yield source

    def abouts(self) -> Iterator[dict[str, str]]:
        """What is said about each example."""
        for (about,) in self._rows("about"):
            yield {} if about is None else json.loads(about)

    def paths(self) -> Iterator[str | None]:
        """The path of each example's image, where `captions_only`."""
        assert self.captions_only
        folders = list(self._folders)
        for number, name in self._rows("folder, name"):
            folder = folders[number]
            yield None if folder is None else os.path.join(folder, name.decode(errors="surrogatepass"))

    def images(self) -> Iterator[tuple[ImageRef, ...]]:
        """The images of each example."""
        folders = list(self._folders)
        for value, text, folder, name, images in self._rows("value, id, folder, name, images"):
            if images is not None:
                yield tuple(
                    ImageRef(one, Path(os.path.join(folders[number] or "", name)))
                    for one, number, name in json.loads(images)
                )
            elif (home := folders[folder]) is not None:
                path = Path(os.path.join(home, name.decode(errors="surrogatepass")))
                yield (ImageRef(text if value is None else int(text), path),)
            else:
                yield ()

    def splits(self) -> Iterator[str]:
        """The split of each example."""
        names = list(self._splits)
        for (number,) in self._rows("split"):
            yield names[number]

    def _rows(self, columns: str) -> Iterator[tuple[Any, ...]]:
        part = range(len(self)) if self._part is None else self._part
        return self._spool.query(
            f"SELECT {columns} FROM row WHERE number > ? AND number <= ? ORDER BY number", part.start, part.stop
        )

    def __len__(self) -> int:
        return len(self._spool) if self._part is None else len(self._part)

    def __getitem__(self, i):  # int -> Example, slice -> Examples
        if isinstance(i, slice):
            start, stop, step = i.indices(len(self))
            assert step == 1, "a part of Examples is a run of them"
            part = Examples.__new__(Examples)
            part.__dict__.update(self.__dict__)
            part._part = (range(len(self)) if self._part is None else self._part)[start:stop]
            return part
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        one = self[i % len(self) : i % len(self) + 1]
        return next(iter(one))

    def __iter__(self) -> Iterator[Example]:
        columns = (self.ids(), self.splits(), self.images(), self.encoded_sources(), self.targets(), self.abouts())
        for one, split, images, source, targets, about in zip(*columns, strict=True):
            yield Example(one, split, images, None if source is None else source.decode(), tuple(targets), about)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(Example.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type[Examples], tuple[list[Example]]]:
        return Examples, (list(self),)  # a copy in another process has a spool of its own


def id_columns(name: ExampleId) -> tuple[int | float | None, str]:
    """`value` and `id`: what sorts like the id if that is a number, and its text.

    SQLite has numbers of 64 bits; larger ones are told apart by their digits.
    """
    if isinstance(name, str):
        return None, name
    text = str(int(name))
    if abs(name) < 2**63:
        return int(name), text
    if abs(name) > sys.float_info.max:
        return math.inf if name > 0 else -math.inf, text
    return float(name), text


@dataclass(slots=True)
class Corpus:
    """All Examples of a data set, with what the reader has to say about them.

    `examples` are sorted by (split as listed in `splits`, id), so the same content gives the same store whatever file
    it came from. `notes` are lines for the user; `refused` lists annotations that were left out, as (id or file,
    reason) pairs: they go into rejects.jsonl and are never silent.
    """

    examples: Examples  # or any iterable of Example, which becomes it
    splits: tuple[str, ...] = ("train", "val", "test")
    notes: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not isinstance(self.examples, Examples):
            self.examples = Examples(self.examples)

    def counts(self) -> dict[str, int]:
        """Number of Examples in each split, in the order of `splits`, zeros included."""
        return {**dict.fromkeys(self.splits, 0), **Counter(self.examples.splits())}
