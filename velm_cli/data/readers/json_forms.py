"""Rows out of the JSON that captions are handed around in, one value a line or one for all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from velm_cli.data.readers.captions_json import parse_captions, whole
from velm_cli.data.readers.cells import captions_of, conversation_caption, plain_path
from velm_cli.data.readers.columns import CONVERSATIONS, KNOWN, Columns, Row, Wanted
from velm_cli.data.readers.splits import part_of_word
from velm_cli.errors import UserError
from velm_cli.lines import Refused, json_lines, load_json, opened

LISTS = ("annotations", "data", "samples", "rows", "images", "captions", "results")  # keys under which rows may lie
PEEKED = 1 << 16  # bytes


def json_rows(path: Path, wanted: Wanted, refused: Refused) -> Iterator[Row]:
    """Rows of a file of JSON lines, or of one JSON value in any of the forms of `_value_rows`; others are refused.

    Which it is shows in the content: `.json` files of lines are as common as `.jsonl` files that hold a list.
    """
    objects = _Objects(wanted, refused)
    if holds_lines(path):
        for number, value in json_lines(path, refused):
            yield from objects.row(f"{path}:{number}", value)
    else:
        yield from _value_rows(load_json(path), path, objects, refused)


def holds_lines(path: Path) -> bool:
    """Whether a file has a JSON value a line, by its content; a file of one line has one value."""
    with opened(path) as file:
        start = file.read(PEEKED)
    text = start.decode("utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", errors="replace")
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
    if not lines or lines[0][0] == "[":
        return not lines
    said_so = any(suffix.lower() in (".jsonl", ".ndjson") for suffix in path.suffixes[-2:])
    if len(lines) == 1:
        return said_so and len(start) == PEEKED
    return lines[0] != "{" if said_so else lines[0].endswith(("}", "},")) and lines[1][0] == "{"


class _Objects:
    """Turns JSON objects into rows; what their keys mean is worked out once for all objects of the same keys."""

    def __init__(self, wanted: Wanted, refused: Refused) -> None:
        self.wanted, self._refused = wanted, refused
        self._columns: dict[tuple[str, ...], Columns] = {}

    def row(self, where: str, item: Any, *, split: str | None = None, image: str | None = None) -> Iterator[Row]:
        """The row of an object, if it is one. `split` and `image` are what stands around it."""
        try:
            yield self._understood(where, item, split, image)
        except ValueError as error:
            self._refused.append((where, str(error)))

    def is_row(self, item: Any) -> bool:
        """Whether an object has an image, and captions or a conversation about it."""
        if not isinstance(item, dict):
            return False
        columns = self.wanted.find(tuple(item))
        has_image = columns.image is not None or isinstance(_only(item.get("images")), str)
        asks = columns.source is not None
        return has_image and (asks or bool(columns.captions) or any(key in item for key in CONVERSATIONS))

    def _understood(self, where: str, item: Any, split: str | None, image: Any) -> Row:
        if not isinstance(item, dict):
            raise ValueError("not an object")
        keys = tuple(item)
        columns = self._columns.get(keys)
        if columns is None:
            columns = self.wanted.find(keys)
            if len(self._columns) < 1000:
                self._columns[keys] = columns
            used = CONVERSATIONS if columns.image is not None else (*CONVERSATIONS, "images")
            self.wanted.unused.update(dict.fromkeys(key for key in columns.unused if key not in used))
        values = tuple(item.values())
        if columns.image is not None:
            image = values[columns.image]
        elif image is None:
            image = item.get("images")
        if self.wanted.source and columns.source is None:
            named = f'no "{self.wanted.source}", which dataset.source_column= names'
            raise ValueError(f"{named}: the keys are {', '.join(keys)[:80]}")
        source = None if columns.source is None else values[columns.source]
        if columns.source is not None and not isinstance(source, str):
            raise ValueError("no question: it is not text")
        more_images: tuple[str, ...] = ()
        if isinstance(image, list) and len(image) > 1:
            if not all(isinstance(one, str) and one for one in image):
                raise ValueError('"images" is no list of paths')
            image, more_images = plain_path(image[0]), tuple(map(plain_path, image[1:]))
        image = _only(image)
        if isinstance(image, dict):  # as `datasets` writes it
            image = image.get("path") or image.get("file_name")
        if not isinstance(image, str) or not image:
            raise ValueError(f'no "image": the path of the image file; the keys are {", ".join(keys)[:80] or "none"}')
        captions: list[object] = []
        for at in columns.captions:
            if len(columns.captions) == 1 or values[at] not in (None, ""):
                captions += captions_of(values[at], numbers=columns.labels)
        if source is None and (not columns.captions or (values[columns.captions[0]] is None and not captions)):
            talk = next((item[key] for key in CONVERSATIONS if key in item), None)
            if talk is None:
                raise ValueError(f'no "captions" (a list) and no "caption": the keys are {", ".join(keys)[:80]}')
            captions = [conversation_caption(talk)]
        if columns.split is not None and values[columns.split] is not None:
            split = values[columns.split]
        if split is not None and not isinstance(split, str):
            raise ValueError('"split" is not text')
        image_id = None if columns.image_id is None else values[columns.image_id]
        if isinstance(image_id, float) and image_id.is_integer():
            image_id = int(image_id)
        if image_id is not None and (isinstance(image_id, bool) or not isinstance(image_id, int | str)):
            raise ValueError('"image_id" is neither a whole number nor text')
        name = None if columns.example_id is None else whole(values[columns.example_id])
        if name is not None and (isinstance(name, bool) or not isinstance(name, int | str)):
            raise ValueError('"id" is neither a whole number nor text')
        row = Row(where, plain_path(image), captions, split, image_id)
        row.source, row.example_id, row.more_images = source, name, more_images
        return row


def _value_rows(value: Any, path: Path, objects: _Objects, refused: Refused) -> Iterator[Row]:
    """COCO's captions or image info, Karpathy's splits, lists of objects, {part: list}, {image: captions}."""
    if isinstance(value, list):
        yield from _list_rows(value, str(path), objects)
    elif not isinstance(value, dict):
        raise UserError(f"{path} holds no captions but {str(value)[:40]}")
    elif (table := _pandas(value, objects)) is not None:
        yield from _list_rows(table, f"{path} row ", objects)
    elif objects.is_row(value):
        yield from objects.row(str(path), value)
    elif _is_karpathy(value):
        yield from _karpathy_rows(value["images"], str(path), objects)
    elif isinstance(value.get("images"), list) and not objects.is_row(_first(value["images"])):
        yield from _coco_rows(value, path, refused)
    elif value and all(isinstance(part, list) and part_of_word(name) for name, part in value.items()):
        for name, part in value.items():
            if part and not isinstance(part[0], dict):
                raise UserError(f"{path} holds lists of ids by part, and no captions: give it with dataset.split_file=")
            yield from _list_rows(part, f"{path} {name}", objects, split=name)
    elif key := next((key for key in LISTS if isinstance(_first(value.get(key)), dict)), None):
        yield from _list_rows(value[key], f"{path} {key}", objects)
    elif value and all(_is_captions(captions) for captions in value.values()):
        for image, captions in value.items():
            try:
                yield Row(f"{path} {image}", plain_path(image), captions_of(captions))
            except ValueError as error:
                refused.append((f"{path} {image}", str(error)))
    elif value and all(isinstance(about, dict) for about in value.values()):
        for image, about in value.items():
            yield from objects.row(f"{path} {image}", about, image=image)
    else:
        raise UserError(
            f"{path} is in no known form: its keys are {', '.join(map(str, value))[:80] or 'none'}; known are COCO's "
            '{"images": [...], "annotations": [...]}, Karpathy\'s, a list of {"image", "caption"}, {image: [captions]} '
            f"and {{part: [...]}} ({KNOWN})"
        )


def _pandas(value: dict[str, Any], objects: _Objects) -> list[Any] | None:
    """The rows of what pandas writes with orient="columns" and "split"; None for anything else."""
    if isinstance(value.get("columns"), list) and isinstance(rows := value.get("data"), list):
        return [dict(zip(value["columns"], row, strict=False)) if isinstance(row, list) else row for row in rows]
    columns = Wanted(asks=objects.wanted.asks, labels=objects.wanted.labels).find(tuple(value))
    if columns.image is None or not columns.known:
        return None
    parts = list(value.values())
    shape = parts[columns.image]
    if not isinstance(shape, dict | list) or not all(type(part) is type(shape) for part in parts):
        return None
    if isinstance(shape, list):
        alike = len(shape) > 1 and all(len(part) == len(shape) for part in parts)
        return [dict(zip(value, row, strict=True)) for row in zip(*parts, strict=True)] if alike else None
    if "path" in shape or not all(part.keys() == shape.keys() for part in parts):  # "path": as `datasets` writes it
        return None
    return [{name: part[key] for name, part in value.items()} for key in shape]


def _list_rows(items: list[Any], where: str, objects: _Objects, split: str | None = None) -> Iterator[Row]:
    for number, item in enumerate(items):
        yield from objects.row(f"{where}[{number}]", item, split=split)


def _karpathy_rows(images: list[Any], where: str, objects: _Objects) -> Iterator[Row]:
    for number, image in enumerate(images):
        if (
            isinstance(image, dict)
            and isinstance(image.get("filepath"), str)
            and isinstance(image.get("filename"), str)
        ):
            image = {**image, "filename": f"{image['filepath']}/{image['filename']}"}
            del image["filepath"]
        if isinstance(image, dict):
            known = ("filename", "sentences", "split", "cocoid")
            image = {key: value for key, value in image.items() if key in known}
        yield from objects.row(f"{where} images[{number}]", image)


def _coco_rows(data: dict[str, Any], path: Path, refused: Refused) -> Iterator[Row]:
    if "annotations" not in data:  # image_info_test2014.json: what the evaluation server asks captions for
        data["annotations"] = []
    for image_id, image in parse_captions(data, str(path), refused).items():
        where = f"{path} image {image_id}"
        try:
            yield Row(
                where, plain_path(image.file_name), image.captions, image.split, image_id, info=not data["annotations"]
            )
        except ValueError as error:
            refused.append((where, str(error)))


def _is_karpathy(value: dict[str, Any]) -> bool:
    first = _first(value.get("images"))
    return isinstance(first, dict) and "sentences" in first


def _first(items: Any) -> Any:
    return items[0] if isinstance(items, list) and items else None


def _only(image: Any) -> Any:
    """The one item of a list, as conversations name their image; else the value itself."""
    return image[0] if isinstance(image, list) and len(image) == 1 else image


def _is_captions(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(text, str) for text in value))
