"""What a reader produces: Records, one an example, whatever the task and the file format were."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


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


@dataclass(slots=True)
class Corpus:
    """All Records of a data set, with what the reader has to say about them.

    `records` are sorted by (split as listed in `splits`, image_id), so the same content gives the same
    store whatever file it came from. `notes` are lines for the user; `refused` lists annotations that
    were left out, as (image id or file, reason) pairs: they go into rejects.jsonl and are never silent.
    """

    records: list[Record]
    splits: tuple[str, ...] = ("train", "val", "test")
    notes: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Number of Records in each split, in the order of `splits`, zeros included."""
        counts = dict.fromkeys(self.splits, 0)
        for record in self.records:
            counts[record.split] += 1
        return counts
