"""A folder of one's own images, captioned by text files beside them or by a table."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from velm_cli import schema
from velm_cli.data.examples import Corpus, Examples
from velm_cli.data.readers.assemble import Entry, Listing, Question, assemble, labelled
from velm_cli.data.readers.cells import IMAGE_EXTENSIONS
from velm_cli.data.readers.columns import Row, Wanted
from velm_cli.data.readers.finding import Finder, key_of, walk
from velm_cli.data.readers.levels import Level, find_level
from velm_cli.data.readers.manifest import named_columns, separated
from velm_cli.data.readers.parting import check_fractions, hash_part, shares_without_effect
from velm_cli.data.readers.rows import read_rows
from velm_cli.data.readers.sidecars import Sidecars
from velm_cli.data.readers.splits import PARTS, part_of_name, part_of_word
from velm_cli.errors import UserError, did_you_mean
from velm_cli.lines import Refused

TABLES = ("captions.txt", "captions.csv", "captions.jsonl", "metadata.csv", "metadata.jsonl")  # must be readable
STEMS = ("caption", "captions", "metadata", "results", "annotation", "annotations", "dataset", "data", "labels")
KINDS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
# fmt: off
NOT_PHOTOS = {  # pictures that `data.images` does not decode
    **dict.fromkeys((".heic", ".heif"), "unsupported: HEIC; convert it to JPEG, for example with heif-convert"),
    **dict.fromkeys((
        ".svg", ".ico", ".tga", ".qoi", ".psd", ".eps", ".pdf", ".exr", ".hdr", ".jxl", ".dds", ".xcf", ".ai",
        ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf",
    ), "unsupported: not a format of photos; convert it to JPEG or PNG"),
}
# fmt: on
SYSTEMS = ("thumbs.db", "desktop.ini", ".ds_store")
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*")


@dataclass
class Found:
    """What lies below the folder: images by id, raw captions of each, tables, and what was left aside."""

    images: dict[str, Path] = field(default_factory=dict)
    captions: dict[str, list[object]] = field(default_factory=dict)
    tables: list[Path] = field(default_factory=list)
    other_tables: list[Path] = field(default_factory=list)
    aside: Counter[str] = field(default_factory=Counter)  # suffixes of files that are nothing of these
    captioned: bool = False  # whether there is anything that may hold captions


def read_folder(config: schema.FolderConfig, root: Path) -> Corpus:
    """Examples of every image under `root`; the image id is its path relative to `root`, with slashes, unless a table
    gives another.

    Captions: a text file beside the image (see `Sidecars`), or a table (see `_is_table`) of image and caption columns
    in any folder. Parts: what a table says, else folders train/, val/ and test/ (see `find_level`), else a hash of the
    path, so that an image keeps its part when others are added. Without any caption all images are test.
    """
    check_fractions(config.val_fraction, config.test_fraction)
    corpus = Corpus(Examples())
    found = look(root, corpus.refused)
    tables = _Tables(found, root, corpus, named_columns(config))
    tables.read_all()
    if not tables.read:
        for option in ("image_column", "caption_column", "split_column", "label_column"):
            if value := getattr(config, option):
                raise UserError(f"dataset.{option}={value}: there is no table in {root}")

    if not found.captioned and not any(found.captions.values()) and found.images:
        folders = {key.rpartition("/")[0].rpartition("/")[2] for key in found.images}
        classes = [folder for folder in folders if folder and part_of_word(folder) is None]
        labels = "; dataset.labels=true takes the names of the folders for labels" if len(classes) > 1 else ""
        corpus.notes.append(f"no image has a caption: all are test, to be captioned{labels}")
        entries = [Entry(image_id, "test", path, []) for image_id, path in found.images.items()]
    else:
        entries = _divided(found, tables, corpus, config, root)
    listing = Listing() if config.images else None
    assemble(corpus, _as_labels(entries, config), listing, config.missing, f"dataset.root={root}", tables.doubtful)
    if tables.hashed:
        shown = ", ".join(f"{part} {count:,}" for part, count in corpus.counts().items())
        said = f"split by a hash of the path ({shown}); folders train/, val/ and test/ would decide instead"
        corpus.notes.append(said + tables.level.hint)
    corpus.notes += shares_without_effect(config, tables.hashed)
    if found.aside:
        kinds = ", ".join(f"{suffix} {count:,}" for suffix, count in found.aside.most_common(8))
        corpus.notes.append(f"left aside {found.aside.total():,} files that are neither images nor captions ({kinds})")
    return corpus


def _as_labels(entries: Iterable[Entry], config: schema.FolderConfig) -> Iterator[Entry | Question]:
    """The same; what their tables have in dataset.label_column are labels."""
    for one in entries:
        if config.label_column is None:
            yield one
        else:
            labels = separated(one.captions, config.label_separator)
            yield labelled(one.image_id, one.split, one.image, labels)


def _divided(found: Found, tables: _Tables, corpus: Corpus, config: schema.FolderConfig, root: Path) -> list[Entry]:
    """An Entry for each image and each row, with its part."""
    tables.level = level = find_level(found.images)
    entries, defaulted = [], 0
    for key, captions in found.captions.items():
        said, part = tables.parts.get(key), level.part_of(key)
        if level.found and part is None and said is None:
            corpus.refused.append((key, f"not in one of the folders {level.names}"))
            continue
        if said and part and said != part:
            corpus.refused.append((key, f"conflict: its folder says {part}, its table {said}"))
            continue
        part = said or part
        if part is None and tables.parts and captions:
            part, defaulted = "train", defaulted + 1
        elif part is None:
            # a hash is no reason to caption an image: `assemble` refuses those of train that have no caption
            part = hash_part(key, config.val_fraction, config.test_fraction) if captions else "train"
            tables.hashed |= bool(captions)
        image_id = tables.ids.get(key, key)
        entries.append(Entry(image_id, part, found.images.get(key, root / key), captions))
    if defaulted:
        corpus.notes.append(f"{defaulted:,} images whose rows say no part are train, as other rows do say theirs")
    if level.depth:
        corpus.notes.append(f"parts are the folders {level.names}")
    return entries


class _Tables:
    """What the tables say of the images."""

    def __init__(self, found: Found, root: Path, corpus: Corpus, wanted: Wanted) -> None:
        self._found, self._root, self._corpus, self._wanted = found, root, corpus, wanted
        self._finder = Finder(found.images)
        self.parts: dict[str, str] = {}
        self.ids: dict[str, int | str] = {}
        self.level, self.hashed, self.read = Level(), False, 0

    def read_all(self) -> None:
        found, refused = self._found, self._corpus.refused
        for table in found.tables:
            self._read(table, must=table.name.lower() in TABLES)
        if len(found.other_tables) == 1 and not any(found.captions.values()):
            self._read(found.other_tables[0], must=True)
        else:
            named = "call it captions.csv, metadata.jsonl or the like, or give dataset=manifest dataset.file="
            for table in found.other_tables:
                refused.append((str(table), f"a table of another name: {named}{table}"))
        self._corpus.notes += self._finder.notes("tables")

    def doubtful(self) -> str:
        """See `Finder.doubtful`."""
        return self._finder.doubtful()

    def _read(self, table: Path, must: bool) -> None:
        """Read a table; one that need not be one of captions is refused where it is none."""
        refused = self._corpus.refused
        self.read += 1
        self._found.captioned = True
        named = part_of_name(table.name) if must is False else None
        try:
            for row in read_rows(table, refused, self._wanted, self._corpus.notes):
                self._take(row, table, named, refused)
        except UserError as error:
            if must:
                raise
            refused.append((str(table), f"not a table of captions: {error}"))

    def _take(self, row: Row, table: Path, named: str | None, refused: Refused) -> None:
        key = self._key(row.image, table)
        part = part_of_word(row.split) if row.split and row.split.strip() else named
        if row.split and part is None:
            reason = f"unknown split: {row.split!r} is not train, val or test{did_you_mean(row.split, PARTS)}"
            refused.append((row.where, reason))
            return
        if part and self.parts.setdefault(key, part) != part:
            refused.append((row.where, f"conflict: another row says that {key} is {self.parts[key]}, this one {part}"))
            return
        if row.image_id is not None and self.ids.setdefault(key, row.image_id) != row.image_id:
            refused.append(
                (row.where, f"conflict: another row gives {key} the id {self.ids[key]}, this one {row.image_id}")
            )
            return
        self._found.captions.setdefault(key, []).extend(row.captions)

    def _key(self, image: str, table: Path) -> str:
        """The id of the image that a row means, beside its table or below the root; else where it should be."""
        images = self._found.images
        beside = key_of(table.parent / image, self._root)
        if beside in images:
            return beside
        below = key_of(self._root / image, self._root)
        if below in images:
            return below
        return self._finder.find(image) or beside


def look(root: Path, refused: Refused) -> Found:
    """All that lies under `root`; hidden files are left aside."""
    found = Found()
    for folder, names in walk(root):
        images, unreadable, sidecars = list[str](), list[str](), Sidecars(Path(folder))
        for name in names:
            path, lower = Path(folder, name), name.lower()
            suffix = path.suffix.lower()
            if name.startswith(".") or lower in SYSTEMS:
                if suffix in IMAGE_EXTENSIONS and not name.startswith("._"):
                    found.aside["hidden images"] += 1
            elif suffix in IMAGE_EXTENSIONS or (not suffix and _is_image(path)):
                images.append(name)
            elif suffix in NOT_PHOTOS:
                refused.append((key_of(path, root), NOT_PHOTOS[suffix]))
                unreadable.append(name)
            elif _is_table(lower):
                found.tables.append(path)
            elif not sidecars.take(name):
                plain = Path(lower.removesuffix(".gz")).suffix
                if plain in (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".xlsx"):
                    found.other_tables.append(path)
                else:
                    found.aside[suffix or "no suffix"] += 1
        for name in images:
            path = Path(folder, name)
            key = key_of(path, root)
            found.images[key] = path
            found.captions[key] = sidecars.captions(name, refused)
        found.captioned |= sidecars.used
        for name, reason in sidecars.unused(images, unreadable):
            path = Path(folder, name)
            if _begins_with_an_image(path):
                found.other_tables.append(path)
            else:
                refused.append((key_of(path, root), reason))
        if aside := sidecars.objects_left():
            found.aside[".json"] += aside
    return found


def _is_table(name: str) -> bool:
    """Whether a file is called as tables are: captions.txt, metadata.csv, train.csv, captions_val.json.gz."""
    name = name.removesuffix(".gz")
    stem, kind = os.path.splitext(name)
    if name in TABLES:
        return True
    if kind not in KINDS:
        return False
    first, _, last = stem.replace("-", "_").partition("_")
    return stem in STEMS or part_of_word(stem) is not None or (first in STEMS and part_of_word(last) is not None)


def _begins_with_an_image(path: Path) -> bool:
    """Whether the first line of a text file is an image's name and more, as in Flickr8k.token.txt."""
    try:
        with path.open("rb") as file:
            name, *more = re.split(rb"(?:#\d+)?[\t,|]", file.readline(1000), maxsplit=1)
    except OSError:
        return False
    return bool(more) and os.path.splitext(os.fsdecode(name.strip()))[1].lower() in IMAGE_EXTENSIONS


def _is_image(path: Path) -> bool:
    """Whether a file without a suffix begins like an image."""
    try:
        with path.open("rb") as file:
            start = file.read(12)
    except OSError:
        return False
    return start.startswith(MAGIC) or (start[:4] == b"RIFF" and start[8:] == b"WEBP")
