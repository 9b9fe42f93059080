"""Captions in lines: tables with columns (CSV, TSV, Kaggle's captions.txt, Flickr's .token), or a caption a line."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from velm_cli.data.readers.cells import listed_texts
from velm_cli.errors import UserError, on_one_line
from velm_cli.lines import Refused, text_lines
from velm_cli.metrics.caption_forms import ID_KEYS, KNOWN, PREDICTIONS, Role, Rows, image_id

DELIMITERS = "\t;,|"
NUMBERED = re.compile(r"captions?[ _-]?\d+|comment[ _-]?\d+")
# Without a first line of names: "1000268201_693b08cb0e.jpg#0<tab>caption" or "42<tab>caption".
IMAGE_CELL = re.compile(r"(?P<image>\d+|.+\.(?:jpe?g|png|webp|bmp|gif|tiff?))(?:#\d+)?", re.IGNORECASE)


def read_lines(path: Path, role: Role, option: str) -> Rows:
    """The captions of a text file that is not JSON, given as `option`.

    Raises UserError for a table that cannot be read wholly.
    """
    refused: Refused = []
    lines = list(text_lines(path, refused))
    if refused:
        more = f" (and {len(refused) - 1:,} more lines)" if len(refused) > 1 else ""
        raise UserError(f"{option}={refused[0][0]}: {refused[0][1]}{more}")
    if not lines:
        raise UserError(f"{option}={path} is empty")
    told = re.fullmatch(r"\"?sep=(.)\"?", lines[0][1].strip(), re.IGNORECASE)  # Excel's
    if told:
        lines = lines[1:]
    first = lines[0][1] if lines else ""
    for delimiter in told[1] if told else DELIMITERS:
        names = [cell.strip().strip('"').strip().lower() for cell in first.split(delimiter)]
        if any(name in ID_KEYS for name in names) and _caption_columns(names, role):
            return _table(path, lines, names, delimiter, role, option)
    pairs = [line.split("\t", 1) for _, line in lines]
    if all(len(pair) == 2 and IMAGE_CELL.fullmatch(pair[0].strip()) for pair in pairs):
        return _pairs(path, [number for number, _ in lines], pairs)
    if path.name.lower().removesuffix(".gz").endswith((".csv", ".tsv")) or told:
        raise UserError(
            f"{option}={path}: its first line must name a column of images ({', '.join(ID_KEYS[:5])}, ...) "
            f"and one of captions ({', '.join(role.caption_keys[-8:])}, ...), and is {on_one_line(first)[:80]}"
        )
    return _plain(path, lines, role, option)


def _caption_columns(names: Sequence[str], role: Role) -> list[int]:
    """All numbered caption columns, or the first of the known names."""
    numbered = [place for place, name in enumerate(names) if NUMBERED.fullmatch(name)]
    key = next((key for key in role.caption_keys if key in names), None)
    plain = [names.index(key)] if key is not None and names.index(key) not in numbered else []
    return plain + numbered if numbered and key != "comment" else plain


def _table(path: Path, lines: list[tuple[int, str]], names: list[str], delimiter: str, role: Role, option: str) -> Rows:
    image_at = names.index(next(key for key in ID_KEYS if key in names))
    captions_at = _caption_columns(names, role)
    found = Rows()
    for number, cells in _cells(path, lines[1:], delimiter, option):
        where = f"{path} line {number}"
        if len(cells) <= max(image_at, captions_at[0]) or not cells[image_at].strip():
            raise UserError(f"{where}: no image or no caption in its {len(cells)} columns")
        image = image_id(_number(cells[image_at].strip()), where)
        if captions_at == [len(names) - 1]:  # a caption in the last column may hold commas that nobody quoted
            captions = [delimiter.join(cells[captions_at[0] :]).strip()]
        else:
            if len(cells) > len(names):
                raise UserError(f"{where}: {len(cells)} cells in {len(names)} columns: put quotes around the caption")
            captions = [cells[place].strip() for place in captions_at if place < len(cells)]
        given = [text for caption in captions for text in _listed(caption) if text]
        found.rows.append((where, image, given or ([""] if role is PREDICTIONS else [])))
        if "split" in names and names.index("split") < len(cells) and cells[names.index("split")].strip():
            found.splits[image] = cells[names.index("split")].strip()
    return found


def _listed(cell: str) -> list[str]:
    """The captions of a cell, which may be a list that was written as text: `['a dog', 'a pet']`."""
    texts = listed_texts(cell) if cell.startswith(("[", "array(")) else None
    return [cell] if texts is None else [text.strip() for text in texts if isinstance(text, str)]


def _cells(path: Path, lines: list[tuple[int, str]], delimiter: str, option: str) -> list[tuple[int, list[str]]]:
    """(number of its first line, cells) of each row; quotation marks as CSV has them, or as they are in a TSV."""
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE):
        reader = csv.reader((line + "\n" for _, line in lines), delimiter=delimiter, quoting=quoting, strict=True)
        rows: list[tuple[int, list[str]]] = []
        begin = 0
        try:
            for cells in reader:
                rows.append((lines[begin][0], cells))
                begin = reader.line_num
        except csv.Error as error:
            if delimiter != ",":  # people write TSV without quoting
                continue
            raise UserError(
                f"{option}={path} line {lines[begin][0]}: a quotation mark is left open or stands alone "
                f"({error}): close it, or write it twice inside quotes"
            ) from None
        return rows
    raise UserError(f"{option}={path} is no table that can be read")


def _pairs(path: Path, numbers: list[int], pairs: list[list[str]]) -> Rows:
    found = Rows()
    for number, (image, caption) in zip(numbers, pairs, strict=True):
        match = IMAGE_CELL.fullmatch(image.strip())
        assert match is not None
        found.rows.append((f"{path} line {number}", _number(match["image"]), [caption.strip()]))
    return found


def _plain(path: Path, lines: list[tuple[int, str]], role: Role, option: str) -> Rows:
    """The n-th line is of the n-th image; an empty line is an empty caption, or no reference."""
    by_number = dict(lines)
    if path.name.lower().endswith((".json", ".json.gz")):
        raise UserError(f"{option}={path} is not JSON: it begins with {on_one_line(lines[0][1])[:60]}; {KNOWN}")
    rows = []
    for number in range(1, max(by_number) + 1):
        text = by_number.get(number, "").strip()
        rows.append((f"{path} line {number}", number, [text] if text or role is PREDICTIONS else []))
    return Rows(rows, by_order=True)  # type: ignore[arg-type]


def _number(text: str) -> int | str:
    """Numbers without leading zeros are numbers, as in JSON; 7.0 too, which pandas writes beside gaps."""
    match = re.fullmatch(r"(0|[1-9]\d{0,17})(?:\.0)?", text)
    return int(match[1]) if match else text
