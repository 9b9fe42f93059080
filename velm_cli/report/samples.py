"""Images with their captions on one sheet: what people look at first."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from velm_cli.data.store import Store, first_image
from velm_cli.files import write_bytes

CELL, MARGIN, TEXT_LINES, COLUMNS = 200, 10, 4, 4


def stored_images(store: Store, numbers: Iterable[int], texts: Sequence[str]) -> list[tuple[Image.Image, str]]:
    """The first image of each of these examples, with the text below it; nothing of those without."""
    pictures: list[tuple[Image.Image, str]] = []
    for number, text in zip(numbers, texts, strict=True):
        if (image := first_image(store, number)) >= 0:
            pictures.append((Image.open(io.BytesIO(store.image_bytes(image))), text))
    return pictures


def contact_sheet(pictures: Sequence[tuple[Image.Image, str]], path: Path) -> None:
    """Write a PNG of the pictures, four a row, each with its caption below."""
    font = ImageFont.load_default(13)
    height = CELL + TEXT_LINES * 16 + MARGIN
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (CELL + MARGIN) + MARGIN, rows * (height + MARGIN) + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for position, (image, caption) in enumerate(pictures):
        left = MARGIN + position % COLUMNS * (CELL + MARGIN)
        top = MARGIN + position // COLUMNS * (height + MARGIN)
        scale = CELL / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        sheet.paste(image.resize(size), (left, top))
        lines = textwrap.wrap(caption, 28)[:TEXT_LINES] or ["(empty)"]
        # The bundled font knows Latin letters only; other characters would raise.
        text = "\n".join(lines).encode("latin-1", "replace").decode("latin-1")
        draw.multiline_text((left, top + CELL + 4), text, fill="black", font=font)
    path.parent.mkdir(parents=True, exist_ok=True)
    out = io.BytesIO()
    sheet.save(out, format="PNG")
    write_bytes(path, [out.getvalue()])
