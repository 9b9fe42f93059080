"""Images whose content lies in a row of a parquet file, as the Cauldron and FineVision have them.

A path such as `train.parquet#row=12image=0` names one; it is read where images are checked, in a process of its own.
Row groups are read whole, so the last one is kept: images of neighbouring rows are asked for one after the other.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from velm_cli.data.images import ImageRefused, NormalisedImage, normalise_image

OF_TABLE = re.compile(r"#row=(\d+)image=(\d+)$")  # of the path of an image: its row, from 0, and its number there
NEEDED = "it needs pyarrow: pip install pyarrow"
COLUMNS = ("images", "image")


def in_row(file: Path, row: int) -> str:
    """What the paths of the images of a row begin with; their number follows."""
    return f"{file}#row={row}image="


def normalise_any(path: Path, *, image_size: int, quality: int, max_pixels: int) -> NormalisedImage:
    """As `normalise_image`, of an image inside a parquet file too. Raises ImageRefused as it does."""
    named = OF_TABLE.search(str(path))
    limits = {"image_size": image_size, "quality": quality, "max_pixels": max_pixels}
    if named is None:
        return normalise_image(path, **limits)
    file = Path(str(path)[: named.start()])
    try:
        content = _content(file, int(named[1]), int(named[2]))
    except ImportError:
        raise ImageRefused(f"unsupported: {NEEDED}") from None
    except MemoryError:
        raise ImageRefused("too large: its row group needs more than preprocess.memory_per_image") from None
    except Exception as error:  # Arrow's errors are of many types
        raise ImageRefused(f"unreadable: {' '.join(str(error).split())[:200] or type(error).__name__}") from None
    return normalise_image(content, **limits)


def _content(file: Path, row: int, number: int) -> bytes:
    begin, cells = _row_group(file, file.stat().st_mtime_ns, row)
    cell = cells[row - begin].as_py()
    image = (cell if isinstance(cell, list) else [cell])[number]
    content = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(content, bytes) or not content:
        raise ImageRefused("empty: its row has no bytes of it")
    return content


def _row_group(file: Path, changed: int, row: int) -> tuple[int, Any]:
    """The first row, and the cells with images, of the group that has this row."""
    begin = 0
    for group, rows in enumerate(_groups(file, changed)):
        if row < begin + rows:
            return begin, _cells(file, changed, group)
        begin += rows
    raise IndexError(f"there is no row {row}")


@lru_cache(maxsize=8)
def _groups(file: Path, _changed: int) -> list[int]:
    from pyarrow import parquet

    metadata = parquet.ParquetFile(file).metadata
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


@lru_cache(maxsize=1)
def _cells(file: Path, _changed: int, group: int) -> Any:
    from pyarrow import parquet

    table = parquet.ParquetFile(file)
    column = next(name for name in COLUMNS if name in table.schema_arrow.names)
    return table.read_row_group(group, columns=[column]).column(column)
