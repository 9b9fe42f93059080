"""Rows that take no memory however many they are: a private SQLite database, on disk as far as it is large.

Nothing of it is ever read again by another process: it has no name, and is gone when this one ends, however it ends.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from typing import Any

from velm_cli.errors import UserError

TOGETHER = 1000  # rows given to SQLite at once
CACHE_KB = 8192  # of pages in memory, and again of a sort's


class Spool:
    """Rows of the same columns; in SQL the table is `row`, and its column `number` counts from 1 as they come."""

    def __init__(self, *columns: str) -> None:
        # An empty name: a temporary database that spills to disk. One thread uses it at a time, not always the same.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for setting in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{CACHE_KB}", "temp_store=FILE"):
            self._database.execute(f"PRAGMA {setting}")
        self._database.execute(f"CREATE TABLE row (number INTEGER PRIMARY KEY, {', '.join(columns)})")
        self._database.execute("BEGIN")  # and never an end: each row would be a transaction of its own
        self._insert = f"INSERT INTO row ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
        self._waiting: list[tuple[Any, ...]] = []
        self._count = 0

    def add(self, *values: Any) -> None:
        """A row: None, int (of 64 bits), float, str or bytes a column."""
        self._waiting.append(values)
        self._count += 1
        if len(self._waiting) == TOGETHER:
            self._flush()

    def extend(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """These rows, perhaps another spool's."""
        self._flush()
        with _plainly():
            self._count += self._database.executemany(self._insert, rows).rowcount

    def query(self, sql: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        """What the statement finds, with `values` for its question marks."""
        self._flush()
        with _plainly():
            yield from self._database.execute(sql, values)

    def repeats(self, *columns: str) -> Iterator[tuple[int, int]]:
        """Of each row whose `columns` are as in an earlier one: its number and the first such row's, by number."""
        return self.query(f"{_repeats(columns)} ORDER BY number")

    def groups(self, *columns: str) -> Iterator[list[tuple[Any, ...]]]:
        """The rows (their number first) in groups of the same `columns`, by the number of each group's first."""
        self._flush()
        with _plainly():
            self._database.execute("CREATE TABLE again (number INTEGER PRIMARY KEY, first INTEGER)")
            found = self._database.execute(f"INSERT INTO again {_repeats(columns)}").rowcount
        if not found:  # as in most manifests: nothing to sort
            yield from ([row] for row in self.query("SELECT * FROM row ORDER BY number"))
            return
        first = "COALESCE(first, row.number)"
        rows = self.query(f"SELECT {first}, row.* FROM row LEFT JOIN again USING (number) ORDER BY {first}, row.number")
        for _, group in groupby(rows, key=itemgetter(0)):
            yield [row[1:] for row in group]

    def __len__(self) -> int:
        return self._count

    def _flush(self) -> None:
        if self._waiting:
            with _plainly():
                self._database.executemany(self._insert, self._waiting)
            self._waiting.clear()


def _repeats(columns: tuple[str, ...]) -> str:
    same = f"SELECT number, MIN(number) OVER (PARTITION BY {', '.join(columns)}) AS first FROM row"
    return f"SELECT number, first FROM ({same}) WHERE first < number"


@contextmanager
def _plainly() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise UserError(
            f"temporary files cannot be written ({error}); name a folder that has room in the environment's TMPDIR"
        ) from error
