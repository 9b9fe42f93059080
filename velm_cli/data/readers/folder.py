"""A folder of one's own images, captioned by text files beside them or by a table."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from pathlib import Path

from velm_cli import schema
from velm_cli.data.readers.assemble import IMAGE_EXTENSIONS, Entry, Listing, assemble
from velm_cli.data.readers.rows import read_rows
from velm_cli.data.readers.splits import PARTS
from velm_cli.data.records import Corpus, Records
from velm_cli.errors import UserError
from velm_cli.lines import Refused, text_lines

TABLES = ("captions.txt", "captions.csv", "captions.jsonl", "metadata.csv", "metadata.jsonl")


def read_folder(config: schema.FolderConfig, root: Path) -> Corpus:
    """Records of every image under `root`; the image id is its path relative to `root`, with slashes.

    Captions: NAME.txt beside NAME.jpg (one a line), or a table (see `TABLES`) of image and caption columns
    in any folder. Parts: the folders train/, val/ and test/ if one of them exists, else a hash of the path,
    so that an image keeps its part when others are added.
    """
    held_out = (config.val_fraction, config.test_fraction)
    if min(held_out) < 0 or sum(held_out) >= 1:
        raise UserError(
            f"dataset.val_fraction={config.val_fraction} and dataset.test_fraction={config.test_fraction} "
            "must not be negative and must leave something to train on"
        )
    corpus = Corpus(Records())
    images, tables = _walk(root)
    captions: dict[str, list[object]] = {
        image_id: _read_sidecar(path, corpus.refused) for image_id, path in images.items()
    }
    for table in tables:
        for row in read_rows(table, corpus.refused):
            beside, below_root = _key(table.parent / row.image, root), _key(root / row.image, root)
            image_id = below_root if beside not in images and below_root in images else beside
            captions.setdefault(image_id, []).extend(row.captions)

    folders = {key.split("/")[0] for key in images if "/" in key}
    part_folders = sorted(name for name in folders if name.lower() in PARTS)
    entries = []
    for image_id, found in captions.items():
        if not part_folders:
            part = hash_part(image_id, config.val_fraction, config.test_fraction)
        elif image_id.split("/")[0] in part_folders:
            part = PARTS[image_id.split("/")[0].lower()]
        else:
            corpus.refused.append((image_id, f"not in one of the folders {', '.join(part_folders)}"))
            continue
        entries.append(Entry(image_id, part, images.get(image_id, root / image_id), found))
    listing = Listing() if config.images else None
    assemble(corpus, entries, listing, config.missing, where=f"dataset.root={root}")
    if not part_folders:
        shown = ", ".join(f"{part} {count:,}" for part, count in corpus.counts().items())
        corpus.notes.append(
            f"split by a hash of the path ({shown}); folders train/, val/ and test/ would decide instead"
        )
    return corpus


def hash_part(image_id: str, val_fraction: float, test_fraction: float) -> str:
    """train, val or test with the given chances; a pure function of its arguments, on every machine."""
    position = int.from_bytes(hashlib.sha256(image_id.encode(errors="surrogateescape")).digest()[:8], "big") / 2**64
    if position < val_fraction:
        return "val"
    return "test" if position < val_fraction + test_fraction else "train"


def _key(path: Path, root: Path) -> str:
    """`path` relative to `root` in one spelling: macOS decomposes accented names, tables rarely do."""
    return unicodedata.normalize("NFC", os.path.relpath(path, root)).replace(os.sep, "/")


def _walk(root: Path) -> tuple[dict[str, Path], list[Path]]:
    """(image id -> file, tables) under `root`, links followed, hidden files and folders left aside."""
    images: dict[str, Path] = {}
    tables: list[Path] = []
    visited: set[str] = set()  # a link may lead back to where we came from
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if name.startswith("."):
                continue
            if path.suffix.lower() in IMAGE_EXTENSIONS:
                images[_key(path, root)] = path
            elif name.lower() in TABLES:
                tables.append(path)
    return images, tables


def _read_sidecar(image: Path, refused: Refused) -> list[object]:
    text = image.with_suffix(".txt")
    if not text.is_file():
        return []
    return [line for _, line in text_lines(text, refused)]
