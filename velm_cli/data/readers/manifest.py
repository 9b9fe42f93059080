"""A manifest: one table of images and captions, the simplest way to bring data of one's own with chosen parts."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterator
from pathlib import Path

from velm_cli import schema
from velm_cli.data.examples import Corpus, Examples, ImageRef
from velm_cli.data.readers.assemble import Entry, Listing, Question, assemble, labelled
from velm_cli.data.readers.columns import Wanted
from velm_cli.data.readers.finding import Finder, images_below
from velm_cli.data.readers.frames import ClipListing, Clips
from velm_cli.data.readers.parting import check_fractions, hash_part, shares_without_effect
from velm_cli.data.readers.rows import read_rows
from velm_cli.data.readers.splits import PARTS, part_of_name, part_of_word
from velm_cli.data.spool import Spool
from velm_cli.errors import UserError, did_you_mean


def read_manifest(config: schema.ManifestConfig, root: Path | None, file: Path) -> Corpus:
    """Examples of the tables that `file` names, in any of the forms that `read_rows` takes.

    Paths are relative to `root`, or else to the folder of the table. The image id defaults to the path. Rows about
    the same image add their captions together. The part of an image: what its rows say, else what the name of its
    table says (train.csv), else train where other rows say their parts, else a hash of the path. Without any
    caption all images are test.

    With a column of questions a row is a question; its id defaults to its number among all rows, and rows of the same
    id add their answers together.
    """
    check_fractions(config.val_fraction, config.test_fraction)
    corpus = Corpus(Examples())
    files = manifest_files(file)
    clips = Clips(config, corpus.refused) if isinstance(config, schema.FramesConfig) else None
    listing = None if not config.images else Listing() if clips is None else ClipListing()
    rows = _Rows(corpus, named_columns(config))
    for path in files:
        rows.read(path, alone=len(files) == 1)
    finders = {
        folder: Finder(images_below(folder)) for folder in (root or path.parent for path in files if clips is None)
    }
    entries = _entries(rows, config, root, listing, finders, clips)
    assemble(
        corpus,
        entries,
        listing,
        config.missing,
        str(file),
        lambda: "; ".join(filter(None, map(Finder.doubtful, finders.values()))),
    )
    corpus.notes += clips.notes() if clips else []
    for folder, finder in finders.items():
        corpus.notes += finder.notes(str(folder))
    if rows.hashed:
        shown = ", ".join(f"{part} {count:,}" for part, count in corpus.counts().items())
        corpus.notes.append(
            f"split by a hash of the path ({shown}), as no row says its part: "
            "dataset.val_fraction= and dataset.test_fraction= change the shares, a column split decides instead"
        )
    corpus.notes += shares_without_effect(config, rows.hashed)
    return corpus


def named_columns(config: schema.OwnDataConfig) -> Wanted:
    """The columns that a config names."""
    labels = config.labels or config.label_column is not None
    named = config.label_column if labels else config.caption_column
    captions = tuple(name.strip() for name in (named or "").split(",") if name.strip())
    asks = isinstance(config, schema.ManifestConfig) and not labels
    source = config.source_column if isinstance(config, schema.ManifestConfig) else None
    clips = isinstance(config, schema.FramesConfig)
    named_ones = config.image_column or None, captions, config.split_column or None, source or None
    return Wanted(*named_ones, asks, labels, clips)


def separated(labels: list[object], separator: str | None) -> list[object]:
    """The labels of cells that hold several, with this between them."""
    if not separator:
        return labels
    return [part for one in labels for part in (one.split(separator) if isinstance(one, str) else [one])]


TABLES = "a table of images and captions, such as JSON lines or CSV"


def manifest_files(file: Path, wanted: str = TABLES) -> list[Path]:
    """The files that `dataset.file` names: one, or those of a pattern with * and {a,b}. UserError if there is none,
    which says what is `wanted`."""
    if file.is_file():
        return [file]
    patterns = [str(file)]
    while (found := re.search(r"\{([^{}]*)\}", patterns[0])) is not None:
        patterns = [
            pattern.replace(found[0], word, 1)
            for pattern in patterns
            for word in found[1].split(",")
            if found[0] in pattern
        ]
        if len(patterns) > 1000:
            break
    files = [Path(name) for pattern in patterns for name in sorted(glob.glob(pattern)) if Path(name).is_file()]
    if not files:
        what = "is a folder" if file.is_dir() else "does not exist"
        of_images = file.is_dir() and wanted == TABLES
        cure = f"; for a folder of images give dataset=folder dataset.root={file}" if of_images else ""
        raise UserError(f"dataset.file: {file} {what}; give {wanted}{cure}")
    return list(dict.fromkeys(files))


class _Rows:
    """The rows of all tables, on disk: millions of them need no memory."""

    def __init__(self, corpus: Corpus, wanted: Wanted) -> None:
        self.corpus, self._wanted, self.labels = corpus, wanted, wanted.labels
        self.spool = Spool("id", "image", "file", "content")
        self.say_parts = self.have_captions = self.ask = False  # whether any row does
        self.numbered = 0  # questions that have no id
        self.without_part = 0
        self.files: list[tuple[Path, str | None]] = []  # each with the part that its name says
        self.hashed = False  # whether a hash decides
        self._count = 0

    def read(self, path: Path, *, alone: bool) -> None:
        """Take the rows of a table. One that is `alone` and is named after val or test is there to be tested on."""
        refused, known = self.corpus.refused, dict[str, str | None]()
        number = len(self.files)
        part = part_of_name(path.name)
        self.files.append((path, "test" if alone and part == "val" else part))
        for row in read_rows(path, refused, self._wanted, self.corpus.notes):
            part = None  # as the row says
            if row.split and row.split.strip():
                if row.split not in known:
                    known[row.split] = part_of_word(row.split)
                part = known[row.split]
                if part is None:
                    hint = did_you_mean(row.split, PARTS)
                    refused.append((row.where, f"unknown split: {row.split!r} is not train, val or test{hint}"))
                    continue
                self.say_parts = True
            elif row.info:
                part = "test"
            self.without_part += part is None
            self.have_captions |= bool(row.captions)
            image_id = row.image if row.image_id is None else row.image_id
            question = None
            if row.source is not None:
                name = self._count if row.example_id is None else row.example_id
                question = [name, row.source, row.more_images]
                self.numbered += row.example_id is None
                self.ask = True
            elif row.more_images:  # an example of several images, which has an id of its own
                name = "+".join((row.image, *row.more_images)) if row.image_id is None else row.image_id
                question, image_id = [name, None, row.more_images], row.image
            self._count += 1
            # JSON in ASCII: what is no UTF-8 gets through
            content = json.dumps([row.where, image_id, row.image, part, row.captions, number, question])
            key = json.dumps(row.image)
            if question is not None:
                self.spool.add(json.dumps(question[0]), key, number, content)
            else:
                self.spool.add(key if row.image_id is None else json.dumps(image_id), key, number, content)

    def ids_repeat(self) -> bool:
        """Whether several tables give one id to several images, as each may count its images from 0."""
        several = "SELECT 1 FROM row GROUP BY id HAVING COUNT(DISTINCT file) > 1 AND COUNT(DISTINCT image) > 1 LIMIT 1"
        return len(self.files) > 1 and any(True for _ in self.spool.query(several))


def _entries(
    rows: _Rows,
    config: schema.ManifestConfig,
    root: Path | None,
    listing: Listing | None,
    finders: dict[Path, Finder],
    clips: Clips | None,
) -> Iterator[Entry | Question]:
    """An Entry an image or a Question a question, in the order of their first rows."""
    refused, notes, defaulted, cut = rows.corpus.refused, rows.corpus.notes, 0, 0
    by_name = set[int]()  # the tables whose names decided something
    if not rows.have_captions and not rows.say_parts and rows.without_part:
        lacks, done = ("question has an answer", "answered") if rows.ask else ("image has a caption", "captioned")
        lacks, done = ("image has a label", "classified") if rows.labels else (lacks, done)
        notes.append(f"no {lacks}: all are test, to be {done}")
    if rows.numbered:
        notes.append(f"{rows.numbered:,} questions have no id: it is their number among all rows, from 0")
    by = "id"
    if rows.ids_repeat() and not rows.ask:
        by = "image"
        notes.append("the tables give the same ids to different images: the path of an image is its id instead")
    for group in rows.spool.groups(by):
        (origin, image_id, image, part, captions, number, question), *others = (json.loads(row[-1]) for row in group)
        image_id = image if by == "image" else image_id
        path, named = rows.files[number]
        for where, _, other_image, other_part, more, other_number, other_question in others:
            other_named = rows.files[other_number][1]
            if part or other_part:  # what a row says counts more than the name of its table
                agree = part is None or other_part in (None, part)
            else:
                agree = named is None or other_named in (None, named)
            if other_image == image and other_question == question and agree:
                captions += more
                part = part or other_part
            else:
                said = f"image id {image_id} to another image or split"
                if question or other_question:
                    said = f"id {(question or other_question)[0]} to another question, image or split"
                refused.append((where, f"conflict: {origin} gave {said}"))
        if part is None and rows.say_parts:
            part, defaulted = named or "train", defaulted + (named is None)
        elif part is None:
            part = named if rows.have_captions else "test"
            by_name.add(number)
        if part is None:
            # a hash is no reason to caption an image: `assemble` refuses those of train that have no caption
            part = hash_part(image, config.val_fraction, config.test_fraction) if captions else "train"
            rows.hashed |= bool(captions)
        if rows.labels:
            captions = separated(captions, config.label_separator)
        if question is None and clips is None:
            place = _locate(image, root, path, listing, finders)
            if rows.labels:
                yield labelled(image_id, part, place, captions)
            else:
                yield Entry(image_id, part, place, captions)
            continue
        name, source, more_images = question or (image_id, None, ())
        if clips is not None:
            where = [clips.locate(one, root, path) for one in (image, *more_images)]
            frames = clips.of_list(image, where) if more_images else clips.frames(image, where[0])
            if frames is not None:
                yield Question(name, part, frames, source, captions)
            continue
        if len(more_images) >= config.max_images:
            cut, more_images = cut + 1, more_images[: config.max_images - 1]
        paths = [(one, _locate(one, root, path, listing, finders)) for one in (image, *more_images)]
        images = [ImageRef(image_id if one == image else one, place) for one, place in paths]
        yield Question(name, part, tuple(images), source, captions)
    if cut:
        notes.append(
            f"{cut:,} examples had more images than dataset.max_images={config.max_images}: the others are left out"
        )
    if defaulted:
        notes.append(f"{defaulted:,} images whose rows say no part are train, as other rows do say theirs")
    for number, (path, part) in enumerate(rows.files):
        if part and number in by_name and rows.have_captions and not rows.say_parts:
            notes.append(f"{path}: its images are {part}, as its name says")


def _locate(image: str, root: Path | None, file: Path, listing: Listing | None, finders: dict[Path, Finder]) -> Path:
    """Where the image is; where it should be if nothing there can be meant."""
    candidates = [folder / image for folder in (root, file.parent) if folder]
    if listing is None:
        return candidates[0]
    for path in candidates:
        if path in listing:
            return path
    folder = root or file.parent
    found = finders[folder].find(image)
    return candidates[0] if found is None else folder / found
