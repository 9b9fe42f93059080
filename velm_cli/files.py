"""Writing files whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_bytes(path: Path, parts: Iterable[bytes]) -> None:
    """Replace `path` by the parts in a row; a kill at any moment leaves the old file or the new one.

    The temporary name carries the process's number, so two processes may write the same file.
    """
    part_path = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part_path, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part_path, path)
    finally:
        part_path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in UTF-8, whole or not at all."""
    write_bytes(path, [text.encode()])


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Replace `path` by strict JSON (no NaN), in ASCII: captions may hold what UTF-8 cannot."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")
