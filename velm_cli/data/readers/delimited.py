"""Tables of cells with a delimiter between them, as spreadsheets, shells and other people's programs write them.

Two forms are around: cells in quotation marks where they hold the delimiter, a mark or a line break (RFC 4180), and
no quoting at all, where a mark is a character like any other. Each row shows which it is: its marks are quotes only
if they close, with as many cells as the header has, before the next line that is a row by itself. So a mark that is
never closed costs no other row.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from velm_cli.data.readers.cells import ADDRESS, looks_like_image
from velm_cli.data.readers.columns import Columns, Wanted, no_columns
from velm_cli.errors import UserError
from velm_cli.lines import Refused, text_lines

DELIMITERS = "\t;|,"
LONGEST = 1 << 17  # characters of a cell, and of the lines that a quotation mark may hold together
MOST_LINES = 200  # of one cell
OPEN: list[str] = []  # a row whose quotation mark is not closed yet

Line = tuple[int, str]


class _Strict:
    """Python's reader of RFC 4180, for one row at a time: to make one a row takes longer than to read it."""

    def __init__(self, delimiter: str) -> None:
        self._text: str | None = None
        self._reader = csv.reader(self, delimiter=delimiter, strict=True, skipinitialspace=True)

    def cells(self, text: str) -> list[str]:
        """Raises csv.Error where `text` is no row."""
        self._text = text
        return next(self._reader)

    def __iter__(self) -> _Strict:
        return self

    def __next__(self) -> str:
        text, self._text = self._text, None
        if text is None:
            raise StopIteration
        return text


@dataclass(slots=True)
class Table:
    """A file of cells: its delimiter and its columns, from its first line."""

    path: Path
    delimiter: str
    columns: Columns
    width: int
    lines: Iterator[Line]
    notes: list[str] = field(default_factory=list)
    header: str | None = None  # the first line, if it names the columns
    headers: int = 0  # how often it came again, as where files were put together
    strict: _Strict = field(init=False)
    waiting: deque[Line] = field(default_factory=deque)  # lines that were read ahead
    open_marks: list[int] = field(default_factory=list)  # the first rows with a mark that is never closed
    open_count: int = 0

    def __post_init__(self) -> None:
        self.strict = _Strict(self.delimiter)

    def rows(self, refused: Refused) -> Iterator[tuple[str, list[str]]]:
        """(file:line, cells) of each row, as many cells as there are columns or fewer. Others go to `refused`."""
        while (line := self._next()) is not None:
            number, text = line
            if text == self.header:
                self.headers += 1
                continue
            where = f"{self.path}:{number}"
            cells = text.split(self.delimiter) if '"' not in text else self._quoted(number, text)
            if len(cells) > self.width:
                cells = self._joined(cells)
            if len(cells) > self.width:
                reason = (
                    f"{len(cells)} cells in {self.width} columns: put cells that hold the delimiter in quotation marks"
                )
                refused.append((where, f"too many cells: {reason}"))
            elif len(text) > LONGEST and max(map(len, cells)) > LONGEST:
                refused.append((where, f"too long: a cell of more than {LONGEST:,} characters"))
            else:
                yield where, cells
        if self.headers:
            self.notes.append(f"{self.path}: the line of column names comes {self.headers:,} times more; passed over")
        if self.open_count:
            places = ", ".join(map(str, self.open_marks)) + ", ..." * (self.open_count > len(self.open_marks))
            rows = "rows" if self.open_count > 1 else "row"
            self.notes.append(
                f"{self.path}: {self.open_count:,} {rows} with a quotation mark that is never closed, "
                f"taken as it is written (line {places})"
            )

    def _next(self) -> Line | None:
        return self.waiting.popleft() if self.waiting else next(self.lines, None)

    def _quoted(self, number: int, text: str) -> list[str]:
        """The cells of a row with quotation marks, which may go on over further lines."""
        plain = text.split(self.delimiter)
        if not any(cell.lstrip().startswith('"') for cell in plain):
            return plain  # marks in the middle of cells quote nothing
        cells, taken = self._strict(text), list[Line]()
        length, marks = len(text), text.count('"')
        while cells is OPEN and len(taken) < MOST_LINES and length < LONGEST and (line := self._next()) is not None:
            taken.append(line)
            if self._is_row(line[1], plain):
                break
            length += len(line[1])
            marks += line[1].count('"')
            if marks % 2 == 0 and '"' in line[1]:
                cells = self._strict("\n".join([text, *(more for _, more in taken)]))
        if cells and len(cells) <= (self.width if taken else len(cells)):
            return cells
        self.waiting.extendleft(reversed(taken))
        if text.count('"') % 2:
            self.open_count += 1
            if len(self.open_marks) < 5:
                self.open_marks.append(number)
        return plain

    def _strict(self, text: str) -> list[str] | None:
        """Cells as RFC 4180 has them; OPEN where a mark is not closed, None where more lines would not help."""
        try:
            return self.strict.cells(text.rstrip(" "))
        except csv.Error as error:
            return OPEN if "unexpected end" in str(error) else None

    def _is_row(self, text: str, opening: Sequence[str]) -> bool:
        """Whether a line within quotation marks, which `opening` opens, looks like a row of its own."""
        cells, at = text.split(self.delimiter), self.columns.image
        if at is None or len(cells) < 2 or at >= len(cells):
            return False
        if looks_like_image(cells[at]):
            return True
        named = at < len(opening) and bool(opening[at].strip()) and not looks_like_image(opening[at])
        return named and len(cells) == self.width and bool(re.fullmatch(r"\S+", cells[at].strip()))

    def _joined(self, cells: list[str]) -> list[str]:
        """A caption may hold delimiters that nobody quoted, where it is clear that they are its own."""
        if len(self.columns.captions) != 1 or (self.columns.unused and self.columns.captions[0] != self.width - 1):
            return cells
        (at,) = self.columns.captions
        end = at + len(cells) - self.width + 1
        return [*cells[:at], self.delimiter.join(cells[at:end]), *cells[end:]]


def open_table(path: Path, wanted: Wanted, refused: Refused) -> Table:
    """The table in a file. UserError, which lists what was found and what is known, where its columns are not known."""
    lines = text_lines(path, refused)
    head = next(lines, None)
    if head is not None and (told := re.fullmatch(r'"?sep=(.)"?', head[1].strip(), re.I)):
        head, delimiters = next(lines, None), told[1]  # Excel's first line
    else:
        delimiters = DELIMITERS
    if head is None:
        raise UserError(f"{path} is empty: its first line must name the columns, such as image,caption")
    first = head[1]
    there = [delimiter for delimiter in delimiters if delimiter in first] or [","]
    for delimiter in there:
        names = _cells(first, delimiter)
        columns = wanted.find(names)
        if columns.known:
            wanted.find(names, str(path))  # raises for a column that is there twice
            unnamed = iter([at for at, name in enumerate(names, 1) if not name.strip()])
            wanted.unused.update(dict.fromkeys(name.strip() or f"column {next(unnamed)}" for name in columns.unused))
            return Table(path, delimiter, columns, len(names), lines, header=first)
    table = _without_header(path, head, there, wanted, lines)
    if table is None:
        names = _cells(first, max(there, key=first.count))
        wanted.find(names, str(path))
        raise no_columns(names, str(path))
    return table


def _cells(text: str, delimiter: str) -> list[str]:
    return next(csv.reader([text], delimiter=delimiter, skipinitialspace=True), [])


def _without_header(
    path: Path, head: Line, delimiters: Sequence[str], wanted: Wanted, lines: Iterator[Line]
) -> Table | None:
    """A table whose first line is a row already: two columns, one of which is clearly the image."""
    if wanted.image or wanted.captions or wanted.split or wanted.source:
        return None
    for delimiter in delimiters:
        cells = _cells(head[1], delimiter)
        images = [at for at, cell in enumerate(cells) if looks_like_image(cell)]
        if len(images) != 1 or len(cells) < 2 or images[0] not in (0, len(cells) - 1):
            continue
        if len(cells) > 2 and delimiter != ",":
            continue
        if "://" in cells[images[0]] and not cells[images[0]].strip().startswith("file:"):
            raise UserError(f"{path}:{head[0]}: {ADDRESS}")
        at = 0 if images[0] == 0 else 1
        note = f"{path}: its first line names no columns; column {at + 1} is the image, the other the caption"
        return Table(path, delimiter, Columns(at, (1 - at,)), 2, lines, [note], waiting=deque([head]))
    return None
