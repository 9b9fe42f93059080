"""A manifest: one JSON line an image, the simplest way to bring data of one's own with chosen parts."""

from __future__ import annotations

from pathlib import Path

from velm_cli import schema
from velm_cli.data.readers.assemble import Entry, Listing, assemble
from velm_cli.data.readers.rows import Row, read_rows
from velm_cli.data.readers.splits import PARTS
from velm_cli.data.records import Corpus
from velm_cli.errors import did_you_mean


def read_manifest(config: schema.ManifestConfig, root: Path | None, file: Path) -> Corpus:
    """Records of {"image": path, "captions": [...] or "caption": "...", "split": ..., "image_id": ...} lines.

    Paths are relative to `root`, or else to the folder of `file`. The image id defaults to the path as
    written, the split to train. Lines about the same image add their captions together. COCO's own JSON is a
    manifest of test images.
    """
    corpus = Corpus(records=[])
    listing = Listing() if config.images else None
    entries: dict[int | str, Entry] = {}
    origin: dict[int | str, Row] = {}
    for row in read_rows(file, corpus.refused):
        image_id = row.image if row.image_id is None else row.image_id
        part = PARTS.get((row.split or "train").strip().lower())
        if part is None:
            reason = f"split {row.split!r} is not train, val or test{did_you_mean(row.split or '', PARTS)}"
            corpus.refused.append((row.where, reason))
        elif image_id not in entries:
            image = _locate(row.image, [folder for folder in (root, file.parent) if folder], listing)
            entries[image_id] = Entry(image_id, part, image, row.captions)
            origin[image_id] = row
        elif (origin[image_id].image, entries[image_id].split) != (row.image, part):
            reason = f"{origin[image_id].where} gave image id {image_id} to another image or split"
            corpus.refused.append((row.where, reason))
        else:
            entries[image_id].captions.extend(row.captions)
    return assemble(corpus, entries.values(), listing, config.missing, where=str(file))


def _locate(image: str, folders: list[Path], listing: Listing | None) -> Path:
    """The first of `folders` that has the image; the first of all if none has."""
    candidates = [folder / image for folder in folders]
    if listing is not None:
        for path in candidates:
            if path in listing:
                return path
    return candidates[0]
