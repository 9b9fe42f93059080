"""JSON of captions in the forms that people's tools write: which image has which captions, whatever it is wrapped in.

Systems, evaluation servers, pandas, `datasets`, pycocoevalcap and Karpathy's files all mean a list of (image,
captions); here it is found. What is not understood is refused with what was found and what is known.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from velm_cli.errors import UserError, on_one_line

ImageId = int | str
ID_KEYS = (
    *("image_id", "image", "file_name", "filename", "image_path", "filepath", "image_name", "image_file", "img_id"),
    *("img", "path", "file", "cocoid", "question_id", "key", "id", "name"),
    "image_ids",
)
# What only a system's output is called comes first: a line may hold the true caption beside it.
PREDICTED = (
    *("hypothesis", "prediction", "pred", "pred_caption", "generated_caption", "generated", "candidate"),
    "generated_text",
    *("caption", "captions", "output", "answer", "response", "text", "title", "comment", "translation", "summary"),
)
REFERRED = (
    *("references", "captions", "caption", "reference", "refs", "gts", "ground_truth", "sentences", "raw", "text"),
    *("title", "comment", "truth", "target", "targets", "translation", "summary", "highlights"),
)
INNER = ("caption", "raw", "text", "sentence")  # of the objects in a list of captions
FILE_KEYS = ("file_name", "image", "filename", "image_path", "filepath")


@dataclass(frozen=True, slots=True)
class Role:
    """What a file is read as: under which keys its captions may stand, in which lists they may be wrapped."""

    option: str
    caption_keys: tuple[str, ...]
    wrappers: tuple[str, ...]


PREDICTIONS = Role(
    "predictions", PREDICTED, ("predictions", "results", "result", "annotations", "captions", "data", "outputs")
)
REFERENCES = Role("references", REFERRED, ("references", "annotations", "captions", "data", "results"))
KNOWN = (
    'known are [{"image_id": ..., "caption": ...}, ...], {"ID": "caption" or [captions], ...}, COCO\'s and Karpathy\'s '
    "files, JSON lines, CSV or TSV with image and caption columns, and plain text, a caption a line"
)


@dataclass(slots=True)
class Rows:
    """What a file holds: (place in it, image, captions), and what it says of its images.

    `by_order` is where no image is named: then its place in the file, from 1, is its id.
    """

    rows: list[tuple[str, ImageId, list[str]]] = field(default_factory=list)
    files: dict[ImageId, str] = field(default_factory=dict)
    domains: dict[ImageId, str] = field(default_factory=dict)
    splits: dict[ImageId, str] = field(default_factory=dict)
    by_order: bool = False
    notes: list[str] = field(default_factory=list)


def read_value(value: Any, where: str, role: Role) -> Rows:
    """The captions in a parsed JSON value. Raises UserError for what is none of the known forms."""
    return _mapping(value, where, role) if isinstance(value, dict) else _list(value, where, role)


def _list(items: Any, where: str, role: Role) -> Rows:
    if not isinstance(items, list):
        raise UserError(f"{where}: not an object or a list but {_shown(items)}; {KNOWN}")
    if items and all(isinstance(item, list) and item and isinstance(item[0], dict) for item in items):  # batches
        items = [item for batch in items for item in batch]
    if items and all(isinstance(item, (str, list)) for item in items):
        return _without_keys(items, where)
    return read_records(((f"{where} {number}", item) for number, item in enumerate(items, 1)), role)


def _without_keys(items: list[Any], where: str) -> Rows:
    """Captions in the order of the images, or [id, caption] pairs."""
    named = [(f"{where} {number}", item) for number, item in enumerate(items, 1)]
    if all(isinstance(item, list) and len(item) == 2 and isinstance(item[0], int) for item in items):
        return Rows([(place, image_id(item[0], place), texts(item[1], place)) for place, item in named])
    rows = [(place, number, texts(item, place)) for number, (place, item) in enumerate(named, 1)]
    return Rows(rows, by_order=True)  # type: ignore[arg-type]


def read_records(items: Iterable[tuple[str, Any]], role: Role) -> Rows:
    """Of (place, object) pairs, each object with an image and its captions."""
    found = Rows()
    shapes: dict[tuple[str, ...], tuple[str, str, tuple[str, ...]]] = {}  # most objects have the keys of the one before
    doubly = ""
    for where, item in items:
        if not isinstance(item, dict):
            raise UserError(f"{where}: not an object but {_shown(item)}")
        shape = tuple(item)
        if shape not in shapes:
            names = tuple(key for key in FILE_KEYS if key in item)
            shapes[shape] = (
                key_of(item, ID_KEYS, "image", where),
                key_of(item, role.caption_keys, "caption", where),
                (*names, "split") if "split" in item else names,
            )
            if role is PREDICTIONS and shapes[shape][1] not in ("caption", "captions") and "caption" in item:
                doubly = shapes[shape][1]
        id_key, caption_key, others = shapes[shape]
        image = image_id(item[id_key], where, id_key)
        found.rows.append((where, image, texts(item[caption_key], where, caption_key)))
        for key in others:
            value = item[key]
            if key == "split" and isinstance(value, str):
                found.splits[image] = value
            elif isinstance(value, str) and value != image:
                found.files.setdefault(image, value)
    if doubly:
        found.notes.append(f'the predictions are those under "{doubly}"; there is "caption" too')
    return found


def _mapping(value: dict[str, Any], where: str, role: Role) -> Rows:
    others = [PREDICTIONS.option, REFERENCES.option]
    if all(isinstance(value.get(key), (list, dict)) for key in others):  # as `evaluate` takes them
        return read_value(value[role.option], f"{where} {role.option}", role)
    keys = [next((key for key in names if key in value), None) for names in (ID_KEYS, role.caption_keys)]
    if keys[0] is not None and keys[1] is not None:
        ids, captions = value[keys[0]], value[keys[1]]
        if not isinstance(ids, (dict, list)):  # JSON lines of one line
            return read_records([(where, value)], role)
        if type(ids) is type(captions) and len(ids) == len(captions) and len(ids):  # pandas, to_dict
            if isinstance(ids, dict) and isinstance(captions, dict) and ids.keys() != captions.keys():
                raise UserError(f'{where}: "{keys[0]}" and "{keys[1]}" have different rows')
            places = list(ids) if isinstance(ids, dict) else range(len(ids))
            rows = ((f"{where} row {n}", {key: column[n] for key, column in _columns(value, ids)}) for n in places)
            return read_records(rows, role)
    if isinstance(value.get("columns"), list) and isinstance(value.get("data"), list):  # pandas, orient="split"
        names = [str(name) for name in value["columns"]]
        cells = [row if isinstance(row, list) else [row] for row in value["data"]]
        return read_records(((f"{where} row {n}", dict(zip(names, row))) for n, row in enumerate(cells, 1)), role)  # noqa: B905
    images = value.get("images")
    if isinstance(images, list) and images and isinstance(images[0], dict) and "sentences" in images[0]:
        return _karpathy(images, where)
    wrapper = next((key for key in role.wrappers if isinstance(value.get(key), (list, dict))), None)
    if wrapper is not None:
        found = read_value(value[wrapper], where, role)
        _about_images(images, found)
        return found
    if isinstance(images, list):
        raise UserError(f'{where}: it has "images" and no "annotations": no captions are in it')
    return _by_id(value, where, role)


def _columns(value: dict[str, Any], ids: Any) -> Iterator[tuple[str, Any]]:
    return ((key, column) for key, column in value.items() if type(column) is type(ids) and len(column) == len(ids))


def _by_id(value: dict[str, Any], where: str, role: Role) -> Rows:
    """{"id": captions}, pycocoevalcap's {id: [{"caption": ...}]}, or pandas's {row: {"image_id", "caption"}}."""
    if not value or not all(isinstance(item, (str, list, dict)) for item in value.values()):
        there = on_one_line(", ".join(list(value)[:8])) or "nothing"
        raise UserError(f"{where}: an object of {there}, in which velm finds no captions; {KNOWN}")
    if all(isinstance(item, dict) and any(key in item for key in ID_KEYS) for item in value.values()):
        return read_records(((f"{where} {on_one_line(key)}", item) for key, item in value.items()), role)
    rows: list[tuple[str, ImageId, list[str]]] = []
    for key, item in value.items():
        place = f"{where} {on_one_line(key)}"
        captions = item[key_of(item, role.caption_keys, "caption", place)] if isinstance(item, dict) else item
        rows.append((place, key, texts(captions, place)))
    return Rows(rows)


def _karpathy(images: Sequence[Any], where: str) -> Rows:
    """Karpathy's dataset_*.json: an image's `cocoid`, or else the name of its file, is its id."""
    found = Rows()
    for number, image in enumerate(images, 1):
        place = f"{where} images {number}"
        if not isinstance(image, dict):
            raise UserError(f"{place}: not an object but {_shown(image)}")
        key = "cocoid" if "cocoid" in image else "filename"
        own = image_id(image.get(key), place, key)
        found.rows.append((place, own, texts(image.get("sentences"), place, "sentences")))
        if isinstance(image.get("filename"), str):
            found.files[own] = image["filename"]
        if isinstance(image.get("split"), str):
            found.splits[own] = image["split"]
    return found


def _about_images(images: Any, found: Rows) -> None:
    """File names and domains (nocaps) from COCO's list of images."""
    for image in images if isinstance(images, list) else []:
        if isinstance(image, dict) and isinstance(image.get("id"), (int, str)):
            for of_images, key in ((found.domains, "domain"), (found.files, "file_name"), (found.splits, "split")):
                if isinstance(image.get(key), str):
                    of_images[image["id"]] = image[key]


# ------------------------------------------------------------------------------------- one image, its captions


def key_of(item: Mapping[str, Any], keys: Sequence[str], kind: str, where: str) -> str:
    """The first of `keys` that is in the object. Raises UserError that lists what is there instead."""
    found = next((key for key in keys if key in item), None)
    if found is None:
        there = on_one_line(", ".join(map(str, item))) or "nothing"
        known = sorted(keys, key=lambda key: not key.startswith(kind))[:8]
        raise UserError(f"{where}: no {kind}: none of {', '.join(known)}, ... but {there}")
    return found


def image_id(value: Any, where: str, key: str = "image_id") -> ImageId:
    """A whole number (1.0 is one: what pandas makes of 1 beside gaps) or text."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
        raise UserError(f'{where}: "{key}" must be a number or text, not {_shown(value)}')
    return value


def texts(value: Any, where: str, key: str = "caption") -> list[str]:
    """A caption, a list of them, or of objects that hold one each."""
    if isinstance(value, str):
        return [value]
    found = [
        text if isinstance(text, str) else _inner(text) for text in (value if isinstance(value, list) else [value])
    ]
    if not all(isinstance(text, str) for text in found):
        missing = value is None or (isinstance(value, float) and math.isnan(value))
        cure = ": it is missing in the table that it came from; leave the image out, or give it a text" * missing
        raise UserError(f'{where}: "{key}" must be text or a list of texts, not {_shown(value)}{cure}')
    return found


def _inner(value: Any) -> Any:
    if not isinstance(value, dict):
        return None
    return next((value[key] for key in INNER if isinstance(value.get(key), str)), None)


def _shown(value: Any) -> str:
    return on_one_line(json.dumps(value, default=str))[:60]
