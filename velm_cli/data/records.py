"""What a reader produces: Records, one an example, whatever the task and the file format were."""

from __future__ import annotations

import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from velm_cli.data.spool import Spool


@dataclass(frozen=True, slots=True)
class Record:
    """One example.

    `image_id` is the id that result files carry (COCO's integers stay integers). `targets` are the
    captions in the order of their annotation ids. `source` is the text that goes in with the image
    (a question, a sentence to translate), None for captioning.
    """

    image_id: int | str
    split: str
    image: Path | None = None
    targets: tuple[str, ...] = ()
    source: str | None = None


class Records(Sequence[Record]):
    """Records on disk: a million take as little memory as a thousand. A Record is made when it is asked for."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        # `value`: an id that is a number, None for a text. `folder`, `split`: numbers of the names below.
        self._spool = Spool("value", "id", "split", "folder", "name", "captions", "present")
        self._folders: dict[str | None, int] = {}
        self._splits: dict[str, int] = {}
        self._part: range | None = None  # of the spool's rows, counted from 0; None: all
        for record in records:
            assert record.source is None, "captioning has no source text; a store for such tasks is to be designed"
            self.append(record.image_id, record.split, record.image, record.targets)

    def append(
        self, image_id: int | str, split: str, image: Path | None, targets: Iterable[str], *, present: bool = True
    ) -> None:
        """Add a Record (without source) at the end. `present`: what `select` goes by."""
        folder, name = os.path.split(image) if image is not None else (None, "")
        # what UTF-8 cannot write: in file names other bytes, in captions lone surrogates from JSON
        texts = [text.encode(errors="replace") for text in targets]
        assert not any(b"\0" in text for text in texts), "captions are printable text"
        self._spool.add(
            _number(image_id),
            str(image_id if isinstance(image_id, str) else int(image_id)),
            self._splits.setdefault(split, len(self._splits)),
            self._folders.setdefault(folder, len(self._folders)),
            name.encode(errors="surrogatepass"),
            b"\0".join(texts) if texts else None,
            present,
        )

    def select(self, *, present: bool, order: Sequence[str] = (), images: bool = True) -> Records:
        """Those that are `present` or those that are not; with None for an image unless `images`.

        With `order` by split as listed in it, then by id: numbers by value, then names. Else as they are.
        """
        assert self._part is None
        taken = Records()
        taken._folders = dict(self._folders) if images else {None: 0}
        taken._splits = dict(self._splits)
        sort = "number"
        if order:
            taken._splits = {name: number for number, name in enumerate(order)}
            ranks = " ".join(f"WHEN {number} THEN {taken._splits[name]}" for name, number in self._splits.items())
            sort = "split, value IS NULL, value, id, number"
        columns = f"value, id, {f'CASE split {ranks} END AS split' if order and ranks else 'split'}, "
        columns += "folder, name, captions" if images else "0, x'', captions"
        taken._spool.extend(
            self._spool.query(f"SELECT {columns}, present FROM row WHERE present = ? ORDER BY {sort}", present)
        )
        return taken

    def without(self, numbers: Iterable[int]) -> Records:
        """All but the records of these numbers."""
        left_out = set(numbers)
        assert self._part is None
        if not left_out:
            return self
        taken = Records()
        taken._folders, taken._splits = self._folders, self._splits
        rows = self._spool.query("SELECT * FROM row ORDER BY number")
        taken._spool.extend(row[1:] for row in rows if row[0] - 1 not in left_out)
        return taken

    def doubles(self) -> Iterator[tuple[Record, Record]]:
        """Each record whose id reads like that of an earlier one, after that one."""
        for number, first in self._spool.repeats("id"):
            yield self[first - 1], self[number - 1]

    def ids(self) -> Iterator[int | str]:
        """The image id of each record."""
        for number, text in self._rows("value, id"):
            yield text if number is None else int(text)

    def targets(self) -> Iterator[list[str]]:
        """The captions of each record."""
        for texts in self.encoded_targets():
            yield [text.decode() for text in texts]

    def encoded_targets(self) -> Iterator[list[bytes]]:
        """The captions of each record in UTF-8."""
        for (texts,) in self._rows("captions"):
            yield [] if texts is None else texts.split(b"\0")

    def paths(self) -> Iterator[str | None]:
        """The path of each record's image."""
        folders = list(self._folders)
        for number, name in self._rows("folder, name"):
            folder = folders[number]
            yield None if folder is None else os.path.join(folder, name.decode(errors="surrogatepass"))

    def splits(self) -> Iterator[str]:
        """The split of each record."""
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

    def __getitem__(self, i):  # int -> Record, slice -> Records
        if isinstance(i, slice):
            start, stop, step = i.indices(len(self))
            assert step == 1, "a part of Records is a run of them"
            part = Records.__new__(Records)
            part.__dict__.update(self.__dict__)
            part._part = (range(len(self)) if self._part is None else self._part)[start:stop]
            return part
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        one = self[i % len(self) : i % len(self) + 1]
        (path,), (image_id,), (split,), (targets,) = one.paths(), one.ids(), one.splits(), one.targets()
        return Record(image_id, split, None if path is None else Path(path), tuple(targets))

    def __iter__(self) -> Iterator[Record]:
        for image_id, split, path, targets in zip(self.ids(), self.splits(), self.paths(), self.targets(), strict=True):
            yield Record(image_id, split, None if path is None else Path(path), tuple(targets))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(Record.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type[Records], tuple[list[Record]]]:
        return Records, (list(self),)  # a copy in another process has a spool of its own


def _number(image_id: int | str) -> int | float | None:
    """What sorts like the id if that is a number. SQLite has 64 bits; larger ones are told apart by their digits."""
    if isinstance(image_id, str):
        return None
    if abs(image_id) < 2**63:
        return int(image_id)
    if abs(image_id) > sys.float_info.max:
        return math.inf if image_id > 0 else -math.inf
    return float(image_id)


@dataclass(slots=True)
class Corpus:
    """All Records of a data set, with what the reader has to say about them.

    `records` are sorted by (split as listed in `splits`, image_id), so the same content gives the same
    store whatever file it came from. `notes` are lines for the user; `refused` lists annotations that
    were left out, as (image id or file, reason) pairs: they go into rejects.jsonl and are never silent.
    """

    records: Records  # or any iterable of Record, which becomes it
    splits: tuple[str, ...] = ("train", "val", "test")
    notes: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not isinstance(self.records, Records):
            self.records = Records(self.records)

    def counts(self) -> dict[str, int]:
        """Number of Records in each split, in the order of `splits`, zeros included."""
        return {**dict.fromkeys(self.splits, 0), **Counter(self.records.splits())}
