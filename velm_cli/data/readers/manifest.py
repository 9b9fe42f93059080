"""A manifest: one JSON line an image, the simplest way to bring data of one's own with chosen parts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from velm_cli import schema
from velm_cli.data.readers.assemble import Entry, Listing, assemble
from velm_cli.data.readers.rows import Row, read_rows
from velm_cli.data.readers.splits import PARTS
from velm_cli.data.records import Corpus, Records
from velm_cli.data.spool import Spool
from velm_cli.errors import did_you_mean
from velm_cli.lines import Refused


def read_manifest(config: schema.ManifestConfig, root: Path | None, file: Path) -> Corpus:
    """Records of {"image": path, "captions": [...] or "caption": "...", "split": ..., "image_id": ...} lines.

    Paths are relative to `root`, or else to the folder of `file`. The image id defaults to the path as
    written, the split to train. Lines about the same image add their captions together. COCO's own JSON is a
    manifest of test images.
    """
    corpus = Corpus(Records())
    listing = Listing() if config.images else None
    folders = [folder for folder in (root, file.parent) if folder]
    entries = _entries(read_rows(file, corpus.refused), corpus.refused, folders, listing)
    return assemble(corpus, entries, listing, config.missing, where=str(file))


def _entries(rows: Iterable[Row], refused: Refused, folders: list[Path], listing: Listing | None) -> Iterator[Entry]:
    """An Entry an image, in the order of their first lines; millions of lines need no memory."""
    lines = Spool("id", "content")
    for row in rows:
        image_id = row.image if row.image_id is None else row.image_id
        part = PARTS.get((row.split or "train").strip().lower())
        if part is None:
            reason = f"split {row.split!r} is not train, val or test{did_you_mean(row.split or '', PARTS)}"
            refused.append((row.where, reason))
        else:  # JSON in ASCII: what is no UTF-8 gets through
            lines.add(json.dumps(image_id), json.dumps([row.where, image_id, row.image, part, row.captions]))
    for group in lines.groups("id"):
        (origin, image_id, image, part, captions), *others = (json.loads(content) for _, _, content in group)
        for where, _, other_image, other_part, more in others:
            if (other_image, other_part) == (image, part):
                captions += more
            else:
                refused.append((where, f"{origin} gave image id {image_id} to another image or split"))
        yield Entry(image_id, part, _locate(image, folders, listing), captions)


def _locate(image: str, folders: list[Path], listing: Listing | None) -> Path:
    """The first of `folders` that has the image; the first of all if none has."""
    candidates = [folder / image for folder in folders]
    if listing is not None:
        for path in candidates:
            if path in listing:
                return path
    return candidates[0]
