"""Which image belongs to train, val or test: Karpathy's files, and plain lists of ids by part.

Karpathy & Fei-Fei (CVPR 2015) published `dataset_coco.json`, `dataset_flickr8k.json` and
`dataset_flickr30k.json`; the field also hands their content around as {"train": [ids], "restval": ...}.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from velm_cli.data.readers.assemble import first_few
from velm_cli.errors import UserError, did_you_mean
from velm_cli.lines import load_json

# Every name the field uses for a part. restval is the rest of COCO's val2014: everybody trains on it.
PARTS = {
    "train": "train",
    "training": "train",
    "restval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "eval": "val",
    "test": "test",
    "testing": "test",
}
_AROUND = re.compile(r"[ _-]?(?:(?:19|20)\d\d|set|split|images|data)$")  # test2014, val_set, train-images


def part_of_word(word: str) -> str | None:
    """The part that a folder, a file or a cell names, in any case: `Training`, `val2014`, `test_set`. None if none."""
    word = word.strip().lower()
    return PARTS.get(word) or PARTS.get(_AROUND.sub("", word))


def part_of_name(name: str) -> str | None:
    """The one part that a file's name says: `captions_train2014.json`, `my-test.csv`. None if it says none, or two."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    found = {part for word in words if (part := part_of_word(word))}
    return found.pop() if len(found) == 1 else None


@dataclass(slots=True)
class Split:
    """`part_of`: image id (COCO) or file name (Flickr) -> train | val | test.

    `captions`: file name -> raw captions, if the file holds them (Karpathy's own do) and is keyed by name.
    """

    path: Path
    part_of: dict[int | str, str]
    captions: dict[str, list[object]]

    def describe_gaps(self, annotated: set[int | str]) -> list[str]:
        """Notes about annotated images that the split does not name, and the other way round."""
        notes = []
        if left_out := annotated - self.part_of.keys():
            count, few = f"{len(left_out):,}", first_few(left_out)
            notes.append(f"left out {count} annotated images that {self.path.name} does not name ({few})")
        if unknown := self.part_of.keys() - annotated:
            count, few = f"{len(unknown):,}", first_few(unknown)
            notes.append(f"{count} images of {self.path.name} have no annotation ({few})")
        return notes


def read_split(path: Path, key: str) -> Split:
    """Read either form (.json or .json.gz); `key`, "cocoid" or "filename", is what names an image."""
    # Karpathy's sentences come tokenised as well: to keep only their text while parsing saves much memory
    data = load_json(path, reduce=lambda item: item.get("raw", item))
    if isinstance(data, dict) and isinstance(data.get("images"), list):
        return _parse_karpathy(path, data["images"], key)
    if not isinstance(data, dict) or not data:
        raise UserError(f'{path} is not a split file: it needs "images" (Karpathy) or lists of ids by part')
    names: dict[int | str, str] = {}
    for name, ids in data.items():
        if name not in PARTS:
            raise UserError(
                f"{path}: {name!r} is not a part; the parts are {', '.join(PARTS)}{did_you_mean(name, PARTS)}"
            )
        if not isinstance(ids, list) or not all(isinstance(i, int | str) for i in ids):
            raise UserError(f"{path}: {name!r} is not a list of image ids")
        for image_id in ids:
            _put(names, image_id, name, path)
    return _to_split(path, names, {})


def _parse_karpathy(path: Path, images: list[Any], key: str) -> Split:
    names: dict[int | str, str] = {}
    captions: dict[str, list[object]] = {}
    for position, image in enumerate(images):
        for wanted in (key, "split", "sentences"):
            if not isinstance(image, dict) or wanted not in image:
                raise UserError(
                    f'{path}: images[{position}] has no "{wanted}", so this is no Karpathy split of this data'
                )
        if not isinstance(image["split"], str) or image["split"] not in PARTS:
            raise UserError(f"{path}: images[{position}] is in the unknown split {image['split']!r}")
        if not isinstance(image[key], int | str):
            raise UserError(f'{path}: "{key}" of images[{position}] is neither a number nor text')
        _put(names, image[key], image["split"], path)
        if key == "filename":
            captions[image[key]] = image["sentences"]
    return _to_split(path, names, captions)


def _put(names: dict[int | str, str], image_id: int | str, name: str, path: Path) -> None:
    if names.setdefault(image_id, name) != name:
        raise UserError(f"{path}: the image {image_id} is in both {names[image_id]} and {name}")


def _to_split(path: Path, names: dict[int | str, str], captions: dict[str, list[object]]) -> Split:
    return Split(path, {image_id: PARTS[name] for image_id, name in names.items()}, captions)
