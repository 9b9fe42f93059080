"""Visual Genome in its official files: what is said of regions, questions with answers, objects with attributes.

image_data.json: [{"image_id", "coco_id", ...}]. region_descriptions.json: [{"id", "regions": [{"region_id", "phrase",
"x", "y", "width", "height"}]}]. question_answers.json: [{"id", "qas": [{"qa_id", "question", "answer"}]}].
objects.json: [{"image_id", "objects": [{"object_id", "names"}]}]. attributes.json: [{"image_id", "attributes":
[{"object_id", "attributes"}]}]. Images are VG_100K/ID.jpg and VG_100K_2/ID.jpg. Krishna et al. 2017.

Half of the images are COCO's: `dataset.exclude` keeps those out that a model is tested on later.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from velm_cli import schema
from velm_cli.data.examples import Corpus, Examples, ImageRef
from velm_cli.data.images import ImageRefused, normalise_image
from velm_cli.data.readers.assemble import Entry, Listing, Question, assemble
from velm_cli.data.readers.parting import hash_part
from velm_cli.data.readers.splits import read_split
from velm_cli.errors import UserError
from velm_cli.files import write_bytes
from velm_cli.lines import Refused, load_json
from velm_cli.schema import VgExamples

FOLDERS = ("VG_100K", "VG_100K_2", "images", ".")
FILES = {
    VgExamples.regions: "region_descriptions.json",
    VgExamples.questions: "question_answers.json",
    VgExamples.objects: "objects.json",
}
CROPPED_QUALITY = 95


def read_vg(config: schema.VgConfig, root: Path) -> Corpus:
    """Examples of the kind that `dataset.examples` names; regions are cut out of their images, into ROOT/regions."""
    corpus = Corpus(Examples())
    images = _Images.of(config, root, corpus)
    rows = _rows(root, FILES[config.examples])
    match config.examples:
        case VgExamples.regions:
            entries: Iterator[Entry | Question] = _regions(config, root, rows, images, corpus.refused)
        case VgExamples.questions:
            entries = _questions(rows, images, corpus.refused)
        case _:
            entries = _objects(rows, _attributes(root, corpus.refused), images, corpus.refused)
    done = assemble(corpus, entries, images.listing, config.missing, f"dataset.root={root}")
    if images.excluded:
        done.notes.append(f"left out {len(images.excluded):,} images whose COCO number dataset.exclude names")
    return done


@dataclass
class _Images:
    """Where the images lie, which part each is of, and which of them are kept out."""

    config: schema.VgConfig
    listing: Listing | None
    folder_of: dict[str, Path]
    root: Path
    coco_of: dict[int, int] = field(default_factory=dict)
    kept_out: frozenset[int | str] = frozenset()
    part_of: dict[int | str, str] | None = None
    excluded: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, config: schema.VgConfig, root: Path, corpus: Corpus) -> _Images:
        listing = Listing() if config.images else None
        folder_of: dict[str, Path] = {}
        for folder in FOLDERS if listing is not None else ():
            for name in listing.names(root / folder) if listing is not None else ():
                folder_of.setdefault(name, root / folder)
        found = cls(config, listing, folder_of, root)
        if config.exclude:
            found.kept_out = _kept_out(Path(config.exclude).expanduser())
        if (root / "image_data.json").is_file():
            found.coco_of = dict(_coco_numbers(_rows(root, "image_data.json"), corpus.refused))
            corpus.notes.append(f"{len(found.coco_of):,} images are COCO's, by image_data.json")
        elif config.exclude:
            raise UserError(f"dataset.exclude needs {root / 'image_data.json'}, which says which images are COCO's")
        if config.split_file:
            found.part_of = read_split(Path(config.split_file).expanduser(), key="image_id").part_of
        return found

    def part(self, image: int) -> str | None:
        """train, val or test; None where the image is kept out, or the split file does not name it."""
        if self.coco_of.get(image) in self.kept_out:
            self.excluded.add(image)
            return None
        if self.part_of is not None:
            return self.part_of.get(image)
        return hash_part(str(image), self.config.val_fraction, self.config.test_fraction)

    def path(self, image: int) -> Path:
        """Its file; where it should be if it is not there."""
        for suffix in (".jpg", ".png"):
            if (folder := self.folder_of.get(f"{image}{suffix}")) is not None:
                return folder / f"{image}{suffix}"
        return self.root / FOLDERS[0] / f"{image}.jpg"


def _kept_out(path: Path) -> frozenset[int | str]:
    """COCO's numbers: a list, or the val and test parts of a split file such as Karpathy's."""
    if not path.is_file():
        raise UserError(f"dataset.exclude: {path} does not exist")
    data = load_json(path)
    if isinstance(data, list) and all(isinstance(one, int) and not isinstance(one, bool) for one in data):
        return frozenset(data)
    if isinstance(data, list):
        raise UserError(f"dataset.exclude: {path} is a list of other things than COCO's numbers")
    return frozenset(number for number, part in read_split(path, key="cocoid").part_of.items() if part != "train")


def _coco_numbers(rows: list[Any], refused: Refused) -> Iterator[tuple[int, int]]:
    for position, row in enumerate(rows):
        image = _whole(row, "image_id", "id")
        if image is None:
            refused.append((f"image_data.json[{position}]", 'it has no usable "image_id"'))
        elif (coco := _whole(row, "coco_id")) is not None:
            yield image, coco


def _regions(
    config: schema.VgConfig, root: Path, rows: list[Any], images: _Images, refused: Refused
) -> Iterator[Entry]:
    """Each region an image of its own with one caption, at most `regions_per_image` of an image, the largest first."""
    seen: set[int] = set()
    for image, part, regions in _of_images(rows, "regions", images, refused):
        usable = []
        for region in regions:
            number, box = _whole(region, "region_id", "id"), _box(region)
            if number is None or box is None or not isinstance(region.get("phrase"), str):
                refused.append((f"{image}", 'a region has no usable "region_id", "phrase" or box'))
            elif number in seen:
                refused.append((f"{image}/{number}", "the region is there again: the first one counts"))
            elif min(box[2] - box[0], box[3] - box[1]) < config.min_side:
                refused.append((f"{image}/{number}", f"its box is smaller than dataset.min_side={config.min_side}"))
            else:
                seen.add(number)
                usable.append((number, box, region["phrase"]))
        usable.sort(key=lambda one: (-(one[1][2] - one[1][0]) * (one[1][3] - one[1][1]), one[0]))
        folder = root / "regions" / f"{image % 1000:03d}" / str(image)  # its own, listed once all are cut out
        whole: Image.Image | None = None
        there = []
        for number, box, phrase in usable[: config.regions_per_image or None]:
            path = folder / f"{number}.jpg"
            if images.listing is not None and not path.is_file() and images.path(image) in images.listing:
                try:
                    whole = whole or _opened(images.path(image), config.max_pixels)
                    _cut(whole, box, path, config.min_side)
                except (ImageRefused, OSError) as error:
                    refused.append((f"{image}/{number}", f"cannot be cut out: {error}"))
                    continue
            there.append(Entry(number, part, path, [phrase]))
        yield from there


def _opened(path: Path, max_pixels: int) -> Image.Image:
    # As it is, but upright and RGB: by the one function that knows what files may hold.
    jpeg = normalise_image(path, image_size=1 << 16, quality=CROPPED_QUALITY, max_pixels=max_pixels).jpeg
    return Image.open(io.BytesIO(jpeg))


def _cut(whole: Image.Image, box: tuple[int, int, int, int], path: Path, least: int) -> None:
    left, top, right, bottom = max(0, box[0]), max(0, box[1]), min(whole.width, box[2]), min(whole.height, box[3])
    if right - left < least or bottom - top < least:
        raise ImageRefused("box: it lies outside of the image")
    file = io.BytesIO()
    whole.crop((left, top, right, bottom)).save(file, "JPEG", quality=CROPPED_QUALITY)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, [file.getvalue()])


def _questions(rows: list[Any], images: _Images, refused: Refused) -> Iterator[Question]:
    """Each has one answer, in lower case without a full stop, as VQA's answers are written."""
    seen: set[int] = set()
    for image, part, asked in _of_images(rows, "qas", images, refused):
        reference = ImageRef(image, images.path(image))
        for row in asked:
            number = _whole(row, "qa_id", "id")
            if number is None or not isinstance(row.get("question"), str) or not isinstance(row.get("answer"), str):
                refused.append((str(image), 'a question has no usable "qa_id", "question" or "answer"'))
            elif number in seen:
                refused.append((str(number), "it is asked again: the first one counts"))
            else:
                seen.add(number)
                answer = " ".join(row["answer"].lower().split()).rstrip(". ")
                yield Question(number, part, (reference,), row["question"], [answer])


def _objects(rows: list[Any], attributes: dict[int, list[str]], images: _Images, refused: Refused) -> Iterator[Entry]:
    """An image with what is in it, "old wooden table" a text: the words are the concepts that L_image predicts."""
    seen: set[int] = set()
    for image, part, things in _of_images(rows, "objects", images, refused):
        if image in seen:
            refused.append((str(image), "its objects are there again: the first ones count"))
            continue
        seen.add(image)
        texts: list[object] = []
        for thing in things:
            names = thing.get("names") if isinstance(thing, dict) else None
            if not isinstance(names, list) or not names or not isinstance(names[0], str):
                refused.append((str(image), 'an object has no usable "names"'))
                continue
            has = attributes.get(_whole(thing, "object_id", "id") or -1, [])
            texts.append(" ".join([*dict.fromkeys(one.strip().lower() for one in has), names[0].strip().lower()]))
        yield Entry(image, part, images.path(image), list(dict.fromkeys(texts)))


def _attributes(root: Path, refused: Refused) -> dict[int, list[str]]:
    """Object -> its attributes; none where the file is absent."""
    if not (root / "attributes.json").is_file():
        return {}
    found: dict[int, list[str]] = {}
    for row in _rows(root, "attributes.json"):
        for thing in row.get("attributes") or [] if isinstance(row, dict) else []:
            number = _whole(thing, "object_id", "id")
            said = thing.get("attributes") if isinstance(thing, dict) else None
            if number is not None and isinstance(said, list):
                found[number] = [one for one in said if isinstance(one, str)]
            elif said is not None:
                refused.append(("attributes.json", 'an object has no usable "object_id" or "attributes"'))
    return found


def _of_images(rows: list[Any], key: str, images: _Images, refused: Refused) -> Iterator[tuple[int, str, list[Any]]]:
    """(image, part, its list `key`) of the images that are of a part."""
    for position, row in enumerate(rows):
        image = _whole(row, "id", "image_id")
        listed = row.get(key) if isinstance(row, dict) else None
        if image is None or not isinstance(listed, list):
            refused.append((f"{key}[{position}]", f'it has no usable image id or "{key}"'))
        elif (part := images.part(image)) is not None:
            yield image, part, [one if isinstance(one, dict) else {} for one in listed]


def _rows(root: Path, name: str) -> list[Any]:
    path = root / name
    if not path.is_file():
        raise UserError(f"dataset.root={root}: {name} is not there (visualgenome.org has it)")
    data = load_json(path)
    if not isinstance(data, list):
        raise UserError(f"{path} is not Visual Genome's {name}: it is no list")
    return data


def _whole(row: Any, *keys: str) -> int | None:
    """The first of these that is a whole number, not negative."""
    for key in keys:
        value = row.get(key) if isinstance(row, dict) else None
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63:
            return value
    return None


def _box(row: dict[str, Any]) -> tuple[int, int, int, int] | None:
    """left, top, right, bottom in pixels; files have some with negative corners, which the image's edge cuts."""
    sides = [row.get(key) for key in ("x", "y", "width", "height")]
    numbers = [one for one in sides if isinstance(one, (int, float)) and not isinstance(one, bool) and abs(one) < 2**31]
    if len(numbers) < 4 or numbers[2] <= 0 or numbers[3] <= 0:
        return None
    x, y, width, height = map(int, numbers)
    return x, y, x + width, y + height
