"""COCO's instances_*.json: which categories of objects are in an image, as its labels."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from velm_cli.data.readers.captions_json import Captioned, other_form, parse_images, whole
from velm_cli.errors import UserError
from velm_cli.lines import Refused, load_json

_HEAVY = ("segmentation", "bbox", "area", "iscrowd")  # most of the file, and of no use here


def read_instances(path: Path, refused: Refused) -> dict[int | str, Captioned]:
    """Image id -> file name and, instead of captions, the names of the categories in it, each once, in their order.

    How many objects there are, how large, or whether they are a crowd does not count. An image without any object is
    refused, as the literature leaves those out. UserError when it is no such file.
    """
    data = load_json(path, reduce=_light)
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise UserError(f'{path} is not a COCO instances file: it has no list "{key}"')
    names = _categories(data["categories"], path)
    found = parse_images(data["images"], str(path), refused)
    there: dict[int | str, set[Any]] = {}
    unlisted: Counter[str] = Counter()
    for position, annotation in enumerate(data["annotations"]):
        where = f"{path} annotations[{position}]"
        try:
            image, category = whole(annotation["image_id"]), whole(annotation["category_id"])
            known = category in names
        except (KeyError, TypeError):
            refused.append((where, 'no "image_id" or no "category_id"'))
            continue
        if not known:
            refused.append((where, f"no category has the id {str(category)[:40]}"))
            continue
        if not isinstance(image, int | str):
            refused.append((where, '"image_id" is of a wrong type'))
            continue
        image = image if image in found else other_form(image)
        if image in found:
            there.setdefault(image, set()).add(category)
        else:
            unlisted[str(annotation["image_id"])] += 1
    for name, count in unlisted.items():
        refused.append((name, f'{count} objects, but "images" of {path} has no such id'))
    order = {category: place for place, category in enumerate(names)}
    for image in [image for image in found if image not in there]:
        refused.append((str(image), "no object of any category is in it"))
        del found[image]
    for image, categories in there.items():
        found[image].captions = [names[category] for category in sorted(categories, key=order.__getitem__)]
    return found


def _light(item: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key not in _HEAVY} if "category_id" in item else item


def _categories(listed: list[Any], path: Path) -> dict[Any, str]:
    """Id -> name; UserError where two are one, since nobody could tell their images apart."""
    names: dict[Any, str] = {}
    for position, category in enumerate(listed):
        try:
            identity, name = whole(category["id"]), category["name"]
        except (KeyError, TypeError):
            identity = name = None
        if not isinstance(identity, int | str) or not isinstance(name, str) or not name.strip():
            raise UserError(f'{path}: categories[{position}] needs "id" and "name"')
        if identity in names or name in names.values():
            raise UserError(f"{path}: the category {identity} ({name}) is there twice")
        names[identity] = name
    return names
