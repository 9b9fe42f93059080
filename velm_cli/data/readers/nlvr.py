"""Natural Language for Visual Reasoning: a sentence, one or two pictures, and whether the sentence is true of them.

A JSON record a line: {"identifier", "sentence", "label": "true" | "false"}. In NLVR (Suhr et al. 2017) the identifier
is SET-NUMBER, and the picture, three boxes side by side, is there in the six orders of its boxes:
images/DIRECTORY/dev-SET-NUMBER-K.png, `directory` being a key of the record. In NLVR2 (Suhr et al. 2019) the identifier
is SPLIT-SET-PAIR-SENTENCE, and there are two photos, SPLIT-SET-PAIR-img0.png and -img1.png. A record of either form may
name its pictures itself: "images", a list of files.

`structured_rep`, the facts that NLVR's pictures were drawn from, is not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from velm_cli import schema
from velm_cli.data.examples import Corpus, Examples, ImageRef
from velm_cli.data.readers.assemble import Listing, Question, assemble
from velm_cli.data.readers.finding import walk
from velm_cli.data.readers.part_files import Files, given_files, in_order, part_of_file
from velm_cli.data.statements import ORDERS, Named, label_of, named
from velm_cli.errors import UserError
from velm_cli.lines import Refused, json_lines

_FILE = re.compile(r"(?:\w+_)?(?:train|training|dev|val|validation|test)(?:[12]|_p)?\.jsonl?(?:\.gz)?$")
ASIDE = ("balanced", "unbalanced")  # folders of NLVR2 with parts of its dev and test sentences again
TEST2 = "test2"  # its second test part
MOST_IMAGES = 16  # of a record that names its own


def read_nlvr(config: schema.NlvrConfig, root: Path | None) -> Corpus:
    """An example for each sentence with its pictures, and in NLVR for each order of the boxes.

    Its id is the name of the picture in the official results: dev-12-0-3 (order 3) in NLVR, dev-12-0-1 in NLVR2.
    """
    corpus = Corpus(Examples())
    files = _files(config, root, corpus.notes)
    listing = Listing() if config.images else None
    base = Path(config.images_root).expanduser() if config.images_root else None
    held_out = {str(directory) for directory in config.val_directories}
    found: set[str] = set()

    def entries() -> Iterator[Question]:
        for part, paths in files.items():
            seen: set[str] = set()
            for path in paths:
                images = _Images(_homes(path, base, root), listing)
                for where, row in _records(path, corpus.refused):
                    record = _record(row, where, corpus.refused)
                    if record is None:
                        continue
                    if (key := str(record.named.identifier)) in seen:
                        corpus.refused.append((key, f"its identifier is there again in {path}: the first one counts"))
                        continue
                    seen.add(key)
                    own = part
                    if part == "train" and record.directory in held_out:
                        own = "val"
                        found.add(record.directory)
                    yield from _examples(record, own, images, config.orders if own == "train" else ORDERS)

    where = f"dataset.root={root}" if root else "dataset.files"
    assemble(corpus, entries(), listing, config.missing, where)
    if absent := sorted(held_out - found):
        raise UserError(
            f"dataset.val_directories: no training record has the directory {', '.join(absent)}; it is the key "
            '"directory" of a record'
        )
    return corpus


# ------------------------------------------------------------------------------------------ which files


def _files(config: schema.NlvrConfig, root: Path | None, notes: list[str]) -> Files:
    if config.files is not None:
        return given_files(config.files, "dataset.files", root)
    assert root is not None, "check_root"
    files: Files = {}
    aside = 0
    for folder, names in walk(root):
        for name in filter(_FILE.match, names):
            path = Path(folder) / name
            folders = path.relative_to(root).parent.parts
            if part := part_of_file(Path(re.sub("test[12]", "test", name)), folders):
                if TEST2 in name or not set(ASIDE).isdisjoint(folders):
                    aside += 1
                else:
                    files.setdefault(part, []).append(path)
    if not files:
        raise UserError(
            f"dataset.root={root}: no train.json, dev.json or test.json below it; name the files with "
            "dataset.files={train: FILE, val: FILE}"
        )
    if aside:
        notes.append(f"left aside {aside} files ({TEST2}, {' and '.join(ASIDE)} parts); dataset.files= names others")
    return in_order(files)


def _homes(path: Path, base: Path | None, root: Path | None) -> list[Path]:
    """Folders below which the pictures of a file of records may lie, the likeliest first."""
    given = (base, path.parent, path.parent.parent, root)
    folders = [folder / sub for folder in given if folder is not None for sub in ("images", ".")]
    return list(dict.fromkeys(folders))


# ------------------------------------------------------------------------------------------ what is in them


@dataclass(slots=True)
class _Record:
    named: Named
    sentence: object
    label: str | None
    directory: str
    images: list[str] | None
    kind: str


def _records(path: Path, refused: Refused) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in json_lines(path, refused):
        where = f"{path}:{number}"
        if isinstance(row, dict):
            yield where, row
        else:
            refused.append((where, f"not a record but {str(row)[:40]}"))


def _record(row: dict[str, Any], where: str, refused: Refused) -> _Record | None:
    """None, and a reason among the `refused`, for what is none."""
    who = named(row.get("identifier"))
    if who is None:
        refused.append((where, 'its "identifier" is neither 12-0 (NLVR) nor dev-12-0-1 (NLVR2)'))
        return None
    label = label_of(row.get("label"))
    if label is None and row.get("label") is not None:
        refused.append((who.identifier, f'its "label" is {str(row["label"])[:20]}, neither true nor false'))
        return None
    if row.get("sentence") is None:
        refused.append((who.identifier, 'it has no "sentence"'))
        return None
    images = row.get("images")
    if images is not None and not (
        isinstance(images, list) and 0 < len(images) <= MOST_IMAGES and all(isinstance(name, str) for name in images)
    ):
        refused.append((who.identifier, f'its "images" is no list of 1 to {MOST_IMAGES} files'))
        return None
    directory, kind = row.get("directory"), row.get("kind")
    return _Record(
        who,
        row["sentence"],
        label,
        str(directory) if isinstance(directory, (int, str)) and not isinstance(directory, bool) else "",
        images,
        kind if isinstance(kind, str) else "",
    )


def _examples(record: _Record, part: str, images: _Images, orders: int) -> Iterator[Question]:
    who = record.named
    about = {"group": who.group} | ({"kind": record.kind} if record.kind else {})
    answers: list[object] = [] if record.label is None else [record.label]

    def example(name: str, pictures: tuple[ImageRef, ...]) -> Question:
        return Question(name, part, pictures, record.sentence, answers, about, unlabelled=record.label is None)

    if record.images is not None:
        pictures = tuple(ImageRef(name, images.place(name)) for name in record.images)
        yield example(who.identifier, pictures)
    elif who.pair is not None:
        names = [f"{who.pair}-img{number}.png" for number in (0, 1)]
        pictures = tuple(ImageRef(Path(n).stem, images.find(n, who.split, record.directory)) for n in names)
        yield example(who.identifier, pictures)
    else:
        split = images.split_of(who.identifier, record.directory, part)
        for order in range(orders):
            name = f"{split}-{who.identifier}-{order}"
            path = images.find(f"{name}.png", split, record.directory)
            yield example(name, (ImageRef(name, path),))


@dataclass
class _Images:
    """Where pictures lie: below the first of `homes` that has them, in the folders of the releases."""

    homes: list[Path]
    listing: Listing | None
    _places: dict[tuple[str, str], Path] = field(default_factory=dict)

    def find(self, name: str, split: str, directory: str) -> Path:
        """The file of that name; where it should be if it is not there."""
        folders = [home / place for home in self.homes for place in _places(split, directory)]
        if self.listing is not None:
            for folder in folders:
                if name in self.listing.names(folder):
                    return folder / name
        return folders[0] / name

    def place(self, name: str) -> Path:
        """A file that a record names, relative to one of the homes."""
        paths = [home / name for home in self.homes]
        return next((path for path in paths if self.listing is not None and path in self.listing), paths[0])

    def split_of(self, identifier: str, directory: str, part: str) -> str:
        """What the names of NLVR's pictures begin with: files that are trained on may be those of its test part."""
        usual = {"train": "train", "val": "dev", "test": "test"}[part]
        for split in dict.fromkeys((usual, "train", "dev", "test")):
            name = f"{split}-{identifier}-0.png"
            if self.listing is not None and self.find(name, split, directory) in self.listing:
                return split
        return usual


def _places(split: str, directory: str) -> tuple[str, ...]:
    """Folders of the releases: NLVR's directory; NLVR2's split with a directory, or without."""
    return (directory, f"{split}/{directory}", split, ".") if directory else (split, ".")
