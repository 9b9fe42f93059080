"""Flickr8k and Flickr30k, in each of the forms they are handed around in."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from velm_cli import schema
from velm_cli.data.examples import Corpus, Examples
from velm_cli.data.readers.assemble import Entry, Listing, assemble, first_few
from velm_cli.data.readers.captions_json import parse_captions
from velm_cli.data.readers.cells import IMAGE_EXTENSIONS
from velm_cli.data.readers.parting import hash_part
from velm_cli.data.readers.rows import read_rows
from velm_cli.data.readers.splits import PARTS, Split, part_of_word, read_split
from velm_cli.errors import UserError
from velm_cli.lines import Refused, load_json, text_lines

IMAGE_FOLDERS = (
    "images",
    "Images",
    "Flicker8k_Dataset",
    "Flickr8k_Dataset",
    "flickr30k-images",
    "flickr30k_images",
    "flickr30k_images/flickr30k_images",
    ".",
)
TEXT_FOLDERS = (".", "annotations", "captions", "Flickr8k_text")
KARPATHY_NAMES = ("dataset_flickr8k.json", "dataset_flickr30k.json")
TOKEN_NAMES = ("Flickr8k.token.txt", "results_20130124.token")
TABLE_NAMES = ("captions.txt", "captions.csv", "results.csv")
HELD_OUT = (0.05, 0.05)  # shares of val and test where nothing says the parts
PART_LISTS = ("Flickr_8k.{}Images.txt", "flickr30k_{}.txt", "{}.txt")  # file names, one a line


@dataclass(slots=True)
class _Photo:
    image_id: int | str
    captions: list[object]
    part: str | None = None


def read_flickr(config: schema.FlickrConfig, root: Path) -> Corpus:
    """Examples of Flickr8k or Flickr30k; the image id is the photo's number, with which its name begins."""
    corpus = Corpus(Examples())
    split = _find_split(config, root)
    photos = _read_photos(split, root, corpus)
    by_hash = False
    if split is None and not all(photo.part for photo in photos.values()):
        split = _read_part_lists(root, corpus.refused)
        if by_hash := split is None:
            for name, photo in photos.items():
                photo.part = hash_part(name, *HELD_OUT)
    if split is not None:
        corpus.notes += split.describe_gaps(set(photos))
        for name, photo in photos.items():
            photo.part = split.part_of.get(name)
    listing = Listing() if config.images else None
    folder = root if listing is None else _image_folder(root, listing)
    entries = (
        Entry(photo.image_id, photo.part, folder / name, photo.captions)
        for name, photo in photos.items()
        if photo.part is not None
    )
    assemble(corpus, entries, listing, config.missing, where=f"dataset.root={root}")
    if listing is not None and (bare := _images(folder, listing) - photos.keys()):
        corpus.notes.append(f"left out {len(bare):,} images of {folder} that have no caption ({first_few(bare)})")
    if by_hash:
        shown = ", ".join(f"{part} {count:,}" for part, count in corpus.counts().items())
        corpus.notes.append(
            f"split by a hash of the file name ({shown}), as {root} does not say which images are train, val and test; "
            "the parts that others use are in Karpathy's dataset_flickr8k.json or dataset_flickr30k.json, or in "
            'Flickr_8k.{train,dev,test}Images.txt; or give dataset.split_file={"train": [file names], "val": ...}'
        )
    return corpus


def _find_split(config: schema.FlickrConfig, root: Path) -> Split | None:
    if config.split_file:
        given = Path(config.split_file)
        for path in (given, root / given):
            if path.is_file():
                return read_split(path, key="filename")
        raise UserError(f"dataset.split_file: {config.split_file} does not exist")
    found = _find(root, KARPATHY_NAMES)
    return read_split(found, key="filename") if found else None


def _find(root: Path, names: Iterable[str]) -> Path | None:
    for folder in TEXT_FOLDERS:
        for name in names:
            if (root / folder / name).is_file():
                return root / folder / name
    return None


def _read_photos(split: Split | None, root: Path, corpus: Corpus) -> dict[str, _Photo]:
    """File name -> photo, from the first form that is there; `part` is set where the form says it."""
    if split is not None and split.captions:
        return {name: _Photo(_photo_id(name), captions) for name, captions in split.captions.items()}
    if photos := _read_coco_form(root, corpus.refused):
        return photos
    if token_file := _find(root, TOKEN_NAMES):
        return _read_token_file(token_file, corpus.refused)
    if table := _find(root, TABLE_NAMES):
        for row in read_rows(table, corpus.refused, notes=corpus.notes):
            name = PurePosixPath(row.image).name
            part = part_of_word(row.split) if row.split else None
            photo = photos.setdefault(name, _Photo(_photo_id(name), [], part))
            if photo.part != part or (row.split and not part):
                corpus.refused.append(
                    (row.where, f"conflict: {row.split!r} is no part, or another than in an earlier row")
                )
                continue
            photo.captions.extend(row.captions)
        return photos
    raise UserError(
        f"no Flickr captions in {root}: looked for {', '.join((*KARPATHY_NAMES, 'captions_train.json'))}, "
        f"{', '.join((*TOKEN_NAMES, *TABLE_NAMES))}"
    )


def _read_coco_form(root: Path, refused: Refused) -> dict[str, _Photo]:
    photos: dict[str, _Photo] = {}
    for name, part in PARTS.items():
        path = _find(root, (f"captions_{name}.json",))
        if path is None:
            continue
        for image_id, image in parse_captions(load_json(path), str(path), refused).items():
            photo = photos.setdefault(image.file_name, _Photo(image_id, image.captions, part))
            if photo.part != part:
                raise UserError(f"{path}: {image.file_name} is in {photo.part} as well")
    return photos


def _read_token_file(path: Path, refused: Refused) -> dict[str, _Photo]:
    """The original form: NAME#NUMBER, a tab, the caption."""
    numbered: dict[str, list[tuple[int, str]]] = {}
    for line_number, line in text_lines(path, refused):
        key, tab, caption = line.partition("\t")
        name, _, number = key.rpartition("#")
        if tab and name and number.isdecimal():
            numbered.setdefault(name, []).append((int(number), caption))
        else:
            refused.append((f"{path}:{line_number}", "not of the form NAME#NUMBER, tab, caption"))
    return {
        name: _Photo(_photo_id(name), [caption for _, caption in sorted(captions)])
        for name, captions in numbered.items()
    }


def _read_part_lists(root: Path, refused: Refused) -> Split | None:
    """The parts from text files of image names: Flickr_8k.trainImages.txt and its like."""
    for pattern in PART_LISTS:
        part_of: dict[int | str, str] = {}
        for name, part in PARTS.items():
            path = _find(root, (pattern.format(name),))
            for _, line in text_lines(path, refused) if path else ():
                image = line.strip()
                image = image if PurePosixPath(image).suffix.lower() in IMAGE_EXTENSIONS else f"{image}.jpg"
                if part_of.setdefault(image, part) != part:
                    raise UserError(f"{path}: {image} is in {part_of[image]} as well")
        if part_of:
            return Split(root / pattern.format("*"), part_of, {})
    return None


def _image_folder(root: Path, listing: Listing) -> Path:
    for name in IMAGE_FOLDERS:
        folder = root / name
        if _images(folder, listing):
            return folder
    raise UserError(
        f"dataset.root={root} holds no images: put them into images/, Flicker8k_Dataset/ or "
        "flickr30k-images/, or set dataset.images=false to read captions only"
    )


def _images(folder: Path, listing: Listing) -> set[str]:
    return {name for name in listing.names(folder) if os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS}


def _photo_id(name: str) -> int | str:
    """The photo's number at Flickr, with which every such file name begins; else the name itself."""
    digits = name.partition("_")[0].partition(".")[0]
    return int(digits) if digits.isdecimal() and len(digits) < 19 else name
