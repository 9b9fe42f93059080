"""What a folder of drawn data says of itself: its stamp is written last, so that what has one is whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def stamp_of(path: Path) -> Any:
    """The stamp in this file; None where there is none, or it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
