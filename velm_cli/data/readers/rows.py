"""Tables of images and captions: JSON lines and CSV, as people write them, and COCO's JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from velm_cli.data.readers.captions_json import parse_captions
from velm_cli.errors import UserError
from velm_cli.lines import Refused, load_json, text_lines

IMAGE_KEYS = ("image", "file_name", "filename", "file", "path")
CAPTION_KEYS = ("captions", "caption", "text")


@dataclass(slots=True)
class Row:
    """One line: `where` is file:line, `captions` are raw, the rest as written (None if absent)."""

    where: str
    image: str
    captions: list[object]
    split: str | None = None
    image_id: int | str | None = None


def read_rows(path: Path, refused: Refused) -> Iterator[Row]:
    """Rows of a .jsonl file, of a .csv or .txt file with a header line, or of COCO's .json(.gz).

    Bad lines go to `refused`.
    """
    if path.name.lower().endswith((".json", ".json.gz")):
        return _coco_rows(path, refused)
    return _jsonl_rows(path, refused) if path.suffix.lower() == ".jsonl" else _csv_rows(path, refused)


def _coco_rows(path: Path, refused: Refused) -> Iterator[Row]:
    """COCO's captions or image info, nocaps': a test set, with captions or without."""
    data = load_json(path)
    if isinstance(data, dict) and "annotations" not in data:
        data["annotations"] = []  # image_info_test2014.json: what the evaluation server asks captions for
    for image_id, image in parse_captions(data, str(path), refused).items():
        yield Row(f"{path} image {image_id}", image.file_name, image.captions, "test", image_id)


def _jsonl_rows(path: Path, refused: Refused) -> Iterator[Row]:
    for number, line in text_lines(path, refused):
        where = f"{path}:{number}"
        try:
            yield _parse_row(where, json.loads(line))
        except json.JSONDecodeError as error:
            refused.append((where, f"not JSON: {error.msg} (column {error.colno})"))
        except RecursionError:
            refused.append((where, "not JSON: nested too deeply"))
        except ValueError as error:
            refused.append((where, str(error)))


def _parse_row(where: str, item: Any) -> Row:
    """Raises ValueError with the reason why `item` is no row."""
    if not isinstance(item, dict):
        raise ValueError("not an object")
    image = next((item[key] for key in IMAGE_KEYS if key in item), None)
    if not isinstance(image, str) or not image:
        raise ValueError('no "image": the path of the image file')
    captions = next((item[key] for key in CAPTION_KEYS if key in item), None)
    if captions is None:
        raise ValueError('no "captions" (a list) and no "caption"')
    split, image_id = item.get("split"), item.get("image_id")
    if split is not None and not isinstance(split, str):
        raise ValueError('"split" is not text')
    if image_id is not None and (isinstance(image_id, bool) or not isinstance(image_id, int | str)):
        raise ValueError('"image_id" is neither a whole number nor text')
    return Row(where, image, captions if isinstance(captions, list) else [captions], split, image_id)


def _csv_rows(path: Path, refused: Refused) -> Iterator[Row]:
    number = 0

    def lines() -> Iterator[str]:
        nonlocal number
        for number, line in text_lines(path, refused):  # noqa: B007  (read below, after each row)
            yield line + "\n"

    source = lines()
    head = next(source, "")
    delimiter = "\t" if "\t" in head else ","
    columns = [name.strip().lower() for name in next(csv.reader([head], delimiter=delimiter), [])]
    image_at = next((columns.index(key) for key in IMAGE_KEYS if key in columns), None)
    caption_at = next((columns.index(key) for key in CAPTION_KEYS if key in columns), None)
    if image_at is None or caption_at is None:
        raise UserError(f"{path}: its first line must name the columns, such as image,caption")
    try:
        for cells in csv.reader(source, delimiter=delimiter):
            where = f"{path}:{number}"
            if len(cells) <= max(image_at, caption_at) or not cells[image_at].strip():
                refused.append((where, f"no image or no caption in its {len(cells)} columns"))
                continue
            # a caption in the last column may hold commas that nobody quoted
            last = caption_at == len(columns) - 1
            caption = delimiter.join(cells[caption_at:]) if last else cells[caption_at]
            yield Row(where, cells[image_at].strip(), [caption])
    except csv.Error as error:
        raise UserError(f"{path}:{number}: {error}; is a quotation mark left open?") from None
