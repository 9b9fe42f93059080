"""COCO's captions file, the form that most caption data sets are handed around in."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from velm_cli.errors import UserError
from velm_cli.lines import Refused

ID = (int, str)  # types of an image id; as a tuple, for isinstance takes twice as long with int | str


@dataclass(slots=True)
class Captioned:
    """One image of a captions file: its file name, its raw captions by annotation id, its part if said."""

    file_name: str
    captions: list[object] = field(default_factory=list)
    split: str | None = None


def parse_captions(data: Any, where: str, refused: Refused) -> dict[int | str, Captioned]:
    """Image id -> file name and captions, from parsed JSON. Unusable parts go to `refused`.

    Raises UserError when this is no captions file at all: a list is absent, or no annotation has a caption.
    """
    for key in ("images", "annotations"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise UserError(f'{where} is not a COCO captions file: it has no list "{key}"')
    captioned = parse_images(data["images"], where, refused)

    rows: list[tuple[Any, int | str, object]] = []
    refused_before = len(refused)
    for position, annotation in enumerate(data["annotations"]):
        try:
            row = annotation.get("id"), annotation["image_id"], annotation["caption"]
        except (AttributeError, KeyError, TypeError):
            refused.append((f"{where} annotations[{position}]", _lacks(annotation, "image_id", "caption")))
            continue
        row = row[0], whole(row[1]), row[2]
        if isinstance(row[1], ID):
            rows.append(row)
        else:
            refused.append((f"{where} annotations[{position}]", '"image_id" is of a wrong type'))
    if data["annotations"] and not rows:
        reason = refused[refused_before][1]
        raise UserError(f"{where} is not a COCO captions file: annotations[0]: {reason}")

    if all(isinstance(row[0], int) for row in rows):
        rows.sort(key=itemgetter(0))
    else:  # an id that is no number says nothing of an order
        rows.sort(key=lambda row: (0, row[0]) if isinstance(row[0], int | float) else (1, 0))
    unlisted: dict[int | str, int] = {}
    for _, image_id, caption in rows:
        if image_id not in captioned and (other := other_form(image_id)) in captioned:
            image_id = other
        if image_id in captioned:
            captioned[image_id].captions.append(caption)
        else:
            unlisted[image_id] = unlisted.get(image_id, 0) + 1
    for image_id, count in unlisted.items():
        refused.append((str(image_id), f'{count} captions, but "images" of {where} has no such id'))
    return captioned


def parse_images(images: list[Any], where: str, refused: Refused) -> dict[int | str, Captioned]:
    """Image id -> file name, of the list `images` of a COCO file."""
    captioned: dict[int | str, Captioned] = {}
    ambiguous: dict[int | str, str] = {}
    for position, image in enumerate(images):
        try:
            image_id, file_name = whole(image["id"]), image["file_name"]
        except (KeyError, TypeError):
            refused.append((f"{where} images[{position}]", _lacks(image, "id", "file_name")))
            continue
        if not isinstance(image_id, ID) or not isinstance(file_name, str):
            refused.append((f"{where} images[{position}]", '"id" or "file_name" is of a wrong type'))
        elif image_id not in captioned:
            split = image.get("split")
            captioned[image_id] = Captioned(file_name, split=split if isinstance(split, str) else None)
        elif captioned[image_id].file_name == file_name:
            refused.append((str(image_id), f"duplicate id in {where}: kept once"))
        else:
            ambiguous[image_id] = f"{captioned[image_id].file_name} and {file_name}"
    for image_id, names in ambiguous.items():  # whose captions are whose cannot be known
        del captioned[image_id]
        refused.append((str(image_id), f"duplicate id in {where}: it stands for {names}"))
    return captioned


def whole(image_id: Any) -> Any:
    """pandas makes floats of ids."""
    return int(image_id) if isinstance(image_id, float) and image_id.is_integer() else image_id


def other_form(image_id: int | str) -> int | str:
    """The same id as text instead of a number, or the other way round."""
    if not isinstance(image_id, str):
        return str(image_id)
    return int(image_id) if image_id.isascii() and image_id.isdecimal() and len(image_id) < 19 else image_id


def _lacks(item: Any, *keys: str) -> str:
    if not isinstance(item, dict):
        return "not an object"
    return "no " + ", ".join(f'"{key}"' for key in keys if key not in item)
