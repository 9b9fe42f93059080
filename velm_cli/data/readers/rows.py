"""Rows of images and captions out of tables in whatever form people have them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from velm_cli.data.readers.cells import captions_of, listed_texts, plain_path
from velm_cli.data.readers.columns import Columns, Row, Wanted, no_columns
from velm_cli.data.readers.delimited import open_table
from velm_cli.data.readers.json_forms import json_rows
from velm_cli.errors import UserError
from velm_cli.lines import Refused, not_the_file, opened

JSON = (".json", ".jsonl", ".ndjson")
NOT_READ = {  # what people have as well, and the way from there
    ".xlsx": "a spreadsheet: save it as CSV UTF-8",
    ".xls": "a spreadsheet: save it as CSV UTF-8",
    ".ods": "a spreadsheet: save it as CSV UTF-8",
    ".zip": "an archive: unpack it",
    ".tar": "an archive: unpack it, or read its shards with dataset=webdataset",
    ".tgz": "an archive: unpack it",
    ".7z": "an archive: unpack it",
    ".pkl": "a pickle, which may run code: write it as CSV or JSON lines",
    ".pickle": "a pickle, which may run code: write it as CSV or JSON lines",
    ".npy": "an array: write it as CSV or JSON lines",
    ".arrow": "an Arrow file: write it with to_csv, to_json or to_parquet",
    ".feather": "an Arrow file: write it as CSV, JSON lines or parquet",
}
MAGIC = {b"PK\x03\x04": ".zip", b"\x1f\x8b": ".tgz", b"\xd0\xcf\x11\xe0": ".xls"}


def read_rows(
    path: Path, refused: Refused, wanted: Wanted | None = None, notes: list[str] | None = None
) -> Iterator[Row]:
    """Rows of a table: JSON lines, CSV and its kin, parquet, or one of the forms of JSON; any but parquet may be .gz.

    Bad rows go to `refused`, lines for the user to `notes`. UserError, which lists what was found and what is known,
    for what is no table of captions. Paths of images are plain (see `plain_path`).
    """
    wanted = wanted or Wanted()
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    suffix = suffixes[-1] if suffixes else ""
    with opened(path) as file:
        start = file.read(1 << 12)
    if other := not_the_file(start):
        raise UserError(f"{path} is {other}")
    found = next((name for magic, name in MAGIC.items() if start.startswith(magic)), suffix)
    if reason := NOT_READ.get(suffix) or NOT_READ.get(found):
        raise UserError(f"{path} is {reason}")
    if suffix == ".parquet" or start.startswith(b"PAR1"):
        yield from _parquet_rows(path, wanted, refused)
    elif suffix in JSON or (suffix not in (".csv", ".tsv") and start.lstrip(b"\xef\xbb\xbf \r\n")[:1] in (b"{", b"[")):
        yield from json_rows(path, wanted, refused)
    else:
        table = open_table(path, wanted, refused)
        for where, cells in table.rows(refused):
            if (row := _row(where, cells, table.columns, refused)) is not None:
                yield row
        if notes is not None:
            notes += table.notes
    if notes is not None:
        notes += wanted.notes(str(path))


def _row(where: str, cells: list[str], columns: Columns, refused: Refused) -> Row | None:
    width, several = len(cells), len(columns.captions) > 1
    captions = [cells[at] for at in columns.captions if at < width and (not several or cells[at].strip())]
    at = columns.image
    assert at is not None
    source = None if columns.source is None else _cell(cells, columns.source)
    if at >= width or not (captions or source) or not cells[at].strip():
        refused.append((where, f"no image or no caption: it has {width} cells"))
        return None
    if columns.source is not None and source is None:
        refused.append((where, "no question: its cell is empty"))
        return None
    try:
        image, more_images = _paths(cells[at])
    except ValueError as error:
        refused.append((where, str(error)))
        return None
    texts: list[object] = []
    for caption in captions:
        texts += captions_of(caption, numbers=columns.source is not None or columns.labels)
    if columns.source is not None:
        texts = [text for text in texts if text != ""]  # of a table that also has questions to be answered
    row = Row(where, image, texts, source=source, more_images=more_images)
    if columns.example_id is not None:
        row.example_id = _as_id(_cell(cells, columns.example_id))
    if columns.split is not None:
        row.split = _cell(cells, columns.split)
    if columns.image_id is not None:
        row.image_id = _as_id(_cell(cells, columns.image_id))
    return row


def _paths(image: str | list) -> tuple[str, tuple[str, ...]]:
    """The first of the images that a cell names, and the others: of a path, a list of them, or one written as text."""
    if isinstance(image, str):
        text = image.strip()
        listed = listed_texts(text) if text.startswith("[") and text.endswith("]") else None
        image = [text] if listed is None else listed
    if not image or not all(isinstance(one, str) and one.strip() for one in image):
        raise ValueError("no image: it is no list of paths")
    first, *more = map(plain_path, image)
    return first, tuple(more)


def _cell(cells: list[str], at: int) -> str | None:
    return cells[at].strip() or None if at < len(cells) else None


def _as_id(text: str | None) -> int | str | None:
    """A number where the text is one in its only spelling, so that 007 stays a name."""
    return int(text) if text and text.isdecimal() and len(text) < 19 and str(int(text)) == text else text


def _parquet_rows(path: Path, wanted: Wanted, refused: Refused) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(f"{path} is a parquet file, which needs pyarrow: pip install pyarrow") from None
    try:
        file = parquet.ParquetFile(path)
        names = [str(name) for name in file.schema_arrow.names]
        columns = wanted.find(names, str(path))
        if not columns.known:
            raise no_columns(names, str(path))
        wanted.unused.update(dict.fromkeys(columns.unused))
        wanted_columns = (columns.image, *columns.captions, columns.split, columns.image_id, columns.source)
        taken = [at for at in (*wanted_columns, columns.example_id) if at is not None]
        number = 0
        for batch in file.iter_batches(columns=[names[at] for at in dict.fromkeys(taken)]):
            for item in batch.to_pylist():
                number += 1
                yield from _parquet_row(f"{path} row {number}", item, names, columns, refused)
    except (ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from None


def _parquet_row(where: str, item: dict, names: list[str], columns: Columns, refused: Refused) -> Iterator[Row]:
    def value(at: int | None) -> object:
        return None if at is None else item[names[at]]

    try:
        image, source, name = value(columns.image), value(columns.source), value(columns.example_id)
        if columns.source is not None and not isinstance(source, str):
            raise ValueError("no question: it is not text")
        if isinstance(image, dict):  # as `datasets` writes it, with the file's content beside
            image = image.get("path")
        if not isinstance(image, str | list):
            raise ValueError('no "image": the path of the image file (images inside the table are not read)')
        captions = [text for at in columns.captions for text in captions_of(value(at))]
        split, image_id = value(columns.split), value(columns.image_id)
        if image_id is not None and not isinstance(image_id, int | str):
            raise ValueError('"image_id" is neither a whole number nor text')
        if name is not None and not isinstance(name, int | str):
            raise ValueError('"id" is neither a whole number nor text')
        first, more_images = _paths(image)
        row = Row(where, first, captions, None if split is None else str(split), image_id, more_images=more_images)
        row.source, row.example_id = source, name
        yield row
    except ValueError as error:
        refused.append((where, str(error)))
