"""Images with their generated captions on one sheet: what people look at first."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from velm_cli.data.store import Store
from velm_cli.files import write_bytes

CELL, MARGIN, TEXT_LINES, COLUMNS = 200, 10, 4, 4


def contact_sheet(store: Store, indices: Iterable[int], captions: dict[Any, str], path: Path) -> None:
    """Write a PNG of the records' images, four a row, each with its caption below."""
    records = [int(index) for index in indices]
    font = ImageFont.load_default(13)
    height = CELL + TEXT_LINES * 16 + MARGIN
    rows = -(-len(records) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (CELL + MARGIN) + MARGIN, rows * (height + MARGIN) + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for position, record in enumerate(records):
        left = MARGIN + position % COLUMNS * (CELL + MARGIN)
        top = MARGIN + position // COLUMNS * (height + MARGIN)
        with Image.open(io.BytesIO(store.image_bytes(record))) as image:
            scale = CELL / max(image.size)
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            sheet.paste(image.resize(size), (left, top))
        lines = textwrap.wrap(captions[store.image_id(record)], 28)[:TEXT_LINES] or ["(empty)"]
        # The bundled font knows Latin letters only; other characters would raise.
        text = "\n".join(lines).encode("latin-1", "replace").decode("latin-1")
        draw.multiline_text((left, top + CELL + 4), text, fill="black", font=font)
    path.parent.mkdir(parents=True, exist_ok=True)
    out = io.BytesIO()
    sheet.save(out, format="PNG")
    write_bytes(path, [out.getvalue()])
