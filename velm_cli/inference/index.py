"""A folder of embeddings of images, made once, and the images in it that are nearest to a text or an image.

    images.jsonl   a journal (`journal.py`): which weights embed, and the images in order, or why one was refused
    vectors.f32    float32, little-endian, [images, width]: the unit vector of each, in that order

Both only grow, so an index that a kill has cut short is one of fewer images, and goes on.

Shapes: N images, E width of the space, k nearest.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from velm_cli.errors import UserError
from velm_cli.files import refuse_links, unsealed, writing_through_no_link
from velm_cli.inference.journal import Journal, Row, open_journal

ROWS, VECTORS = "images.jsonl", "vectors.f32"
FLOAT = np.dtype("<f4")
BLOCK = 1 << 16  # images that are compared at once: 128 MB at a width of 512


class Near(NamedTuple):
    """An image that was found, and the cosine of its angle to what was searched for."""

    image: str
    cosine: float


class Index:
    """An index that is there. `about` says which checkpoint and weights made it."""

    def __init__(self, folder: Path) -> None:
        """UserError where there is none, or it is damaged."""
        self.folder = folder
        try:
            with (folder / ROWS).open("rb") as file:
                self.about: dict[str, Any] = unsealed(json.loads(next(file)))["about"]
                rows = [row for line in file for row in _rows(line)]
            self.images = [row["image"] for row in rows if "refused" not in row]
            last = {image: number for number, image in enumerate(self.images)}
            # Of an image that has changed since, the vector from before is no longer of anything.
            self._stale_N = np.array([last[image] != number for number, image in enumerate(self.images)], bool)
            width = int(self.about["width"])
            self._vectors_NE = np.memmap(folder / VECTORS, FLOAT, "r", shape=(len(self.images), width))
        except FileNotFoundError:
            raise UserError(
                f"index={folder} is no index: make one with velm search index={folder} checkpoint=RUN images=FOLDER"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
            raise UserError(f"index={folder} is damaged ({error}): make it again in another folder") from None

    def __len__(self) -> int:
        """Images that can be found."""
        return len(self.images) - int(self._stale_N.sum())

    def nearest(self, vector_E: np.ndarray, k: int) -> list[Near]:
        """The k images of the largest cosines, best first; exact, in blocks of fixed memory. Ties go by order."""
        best, number = np.full(0, -np.inf, np.float32), np.zeros(0, np.int64)
        query_E = vector_E.astype(np.float32)
        for start in range(0, len(self.images), BLOCK):
            cosines = self._vectors_NE[start : start + BLOCK] @ query_E
            cosines[self._stale_N[start : start + BLOCK]] = -np.inf
            best = np.concatenate([best, cosines])
            number = np.concatenate([number, np.arange(start, start + len(cosines))])
            kept = np.argsort(-best, kind="stable")[: min(k, len(self))]
            best, number = best[kept], number[kept]
        return [Near(self.images[n], float(cosine)) for n, cosine in zip(number.tolist(), best.tolist(), strict=True)]


class Builder:
    """An index that images are added to. Made by `building`."""

    def __init__(self, journal: Journal, vectors: Any) -> None:
        self._journal, self._vectors = journal, vectors
        # What was refused is tried again: a file may have been copied only in part, or a disk have failed.
        self._stamps = {row["image"]: row.get("stamp") for row in journal.rows() if "refused" not in row}

    def has(self, name: str, stamp: str) -> bool:
        """Whether it has this image as it is now."""
        return self._stamps.get(name) == stamp

    def add(self, rows: Sequence[Row], vectors_NE: np.ndarray) -> None:
        """A chunk: its rows, and the vectors of those that were not refused."""
        assert len(vectors_NE) == sum("refused" not in row for row in rows)
        self._vectors.write(np.ascontiguousarray(vectors_NE, FLOAT).tobytes())
        os.fsync(self._vectors.fileno())
        self._journal.append(rows)


@contextlib.contextmanager
def building(folder: Path, about: dict[str, Any]) -> Iterator[Builder]:
    """The index in the folder, new or begun by the same weights; UserError for any other, or while another builds."""
    folder.mkdir(parents=True, exist_ok=True)
    refuse_links(folder)
    others = {file.name for file in folder.iterdir()} - {ROWS, VECTORS}
    if others and not (folder / ROWS).exists():
        raise UserError(f"index={folder} holds other files: give a folder of its own")
    with open_journal(folder / ROWS, about) as journal:
        count = sum("refused" not in row for row in journal.rows())
        with os.fdopen(writing_through_no_link(folder / VECTORS), "rb+", buffering=0) as vectors:
            whole = count * int(about["width"]) * FLOAT.itemsize
            if os.fstat(vectors.fileno()).st_size < whole:
                raise UserError(f"index={folder} is damaged: {VECTORS} is too short; make it again in another folder")
            vectors.truncate(whole)  # behind it lies what a kill has left without its row
            vectors.seek(whole)
            yield Builder(journal, vectors)


def _rows(line: bytes) -> list[dict[str, Any]]:
    """Those of a chunk; none of a last line that a kill has torn."""
    try:
        rows: list[dict[str, Any]] = unsealed(json.loads(line))["rows"]
        return rows
    except ValueError:
        if line.endswith(b"\n"):
            raise
        return []
