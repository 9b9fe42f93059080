"""report.html: scores, curves and every image of one or more evaluations in one file that opens anywhere.

The file needs no network and no server. What it shows was written by strangers (captions, ids, names of
folders), so all of it travels as JSON in blocks that no browser runs, the page's script turns it into text
nodes only, and a Content-Security-Policy permits nothing but that script and style, named by their hashes.
Pictures lie in blocks of their own behind the script: the page stands before they have been read.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from velm_cli.data.images import read_rgb
from velm_cli.data.looked import Attention
from velm_cli.files import write_bytes
from velm_cli.metrics.comparison import Difference
from velm_cli.metrics.scores import NOT_REQUESTED, ImageId
from velm_cli.report.about import MEANINGS
from velm_cli.report.evaluations import Curves, Evaluated, Point
from velm_cli.report.items import answer_of, item_of
from velm_cli.schema.metric_names import Column

SIGN = b"velm report</p>"  # in every page, and how velm knows its own
WEB = Path(__file__).with_name("web")
SCRIPTS = ("elements.js", "items.js", "confusions.js", "overview.js", "view.js", "gallery.js")
THUMBNAIL_SIDE = 160  # pixels of the longer side
GALLERY_SIDE = 280  # where a page shows pictures and no scores
THUMBNAIL_QUALITY = 60  # about 5 kB for a photo
CURVE_POINTS = 400  # more than a chart a few hundred pixels wide can show


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as JPEG: a small one for the list and, if it is worth its size, a larger one for the close view."""

    thumbnail: bytes
    large: bytes | None = None


def thumbnail(source: Path | bytes, side: int = THUMBNAIL_SIDE) -> bytes:
    """A JPEG whose longer side has at most `side` pixels, of a file or its content; ImageRefused as `read_rgb`."""
    out = BytesIO()
    read_rgb(source, longer_side=side).save(out, "JPEG", quality=THUMBNAIL_QUALITY, optimize=True)
    return out.getvalue()


def write_page(
    path: Path,
    runs: Sequence[Evaluated],
    pictures: Mapping[ImageId, Picture] | None = None,
    *,
    title: str = "Evaluation",
    notes: Sequence[str] = (),
    columns: Sequence[Column] | None = None,
) -> None:
    """Replace `path` by the page of `runs`, whole or not at all; with two or more it compares them to the first.

    `notes` are sentences above the table.

    The images are those that any run has scored, in the order of the runs; `pictures` may lack some or all.
    Of the columns (of the first run, if not given) those are shown of which some run has a value or a reason for none;
    without any column the page shows the pictures with what was said of them, and no scores.
    """
    assert runs, "a page needs at least one run"
    columns = runs[0].columns if columns is None else columns
    shown = [column for column in columns if any(_is_told(run, column.key) for run in runs)] or columns
    images = list(dict.fromkeys(image for run in runs for image in run.per_image))
    write_bytes(path, _parts(runs, shown, images, pictures or {}, title, notes))


def is_page(path: Path) -> bool:
    """Whether `path` is a page that velm has written."""
    with path.open("rb") as file:
        start = file.read(1 << 17)  # the sign is behind the style
    return start.startswith(b"<!doctype html>") and SIGN in start


def _is_told(run: Evaluated, name: str) -> bool:
    return _finite(run.scores.get(name)) is not None or run.reasons.get(name, NOT_REQUESTED) != NOT_REQUESTED


def _parts(
    runs: Sequence[Evaluated],
    columns: Sequence[Column],
    images: Sequence[ImageId],
    pictures: Mapping[ImageId, Picture],
    title: str,
    said: Sequence[str],
) -> Iterator[bytes]:
    """The template with its `%NAMES%` filled in; what is put in is never searched for names again."""
    style = (WEB / "page.css").read_text("utf-8")
    script = "\n".join((WEB / name).read_text("utf-8") for name in SCRIPTS)
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    filling = {"POLICY": policy, "STYLE": style, "SCRIPT": script}
    for number, text in enumerate(re.split("%([A-Z]+)%", (WEB / "page.html").read_text("utf-8"))):
        if number % 2 == 0:
            yield text.encode()
        elif text == "DATA":
            yield _block("data", _data(runs, columns, images, pictures, title, said))
        elif text == "BLOCKS":
            yield from _blocks(runs, images, pictures)
        else:
            yield filling[text].encode()


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _block(name: str, value: Any) -> bytes:
    """A script element that no browser runs. ASCII and without `<`, so that no text in it can end it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>\n'.encode("ascii")


def _blocks(
    runs: Sequence[Evaluated], images: Sequence[ImageId], pictures: Mapping[ImageId, Picture]
) -> Iterator[bytes]:
    """What the page reads one by one when it needs it, under the number of the image."""
    owners = range(len(images)) if runs[0].task == "caption" else _blocks_of(images, pictures)
    for number, image in enumerate(images):
        for place, run in enumerate(runs):
            if image in run.attention:
                yield _block(f"attention-{place}-{number}", _attention(run.attention[image]))
        picture = pictures.get(image)
        if picture and owners[number] == number:
            yield _block(f"thumbnail-{number}", _base64(picture.thumbnail))
            if picture.large is not None:
                yield _block(f"large-{number}", _base64(picture.large))


def _blocks_of(images: Sequence[ImageId], pictures: Mapping[ImageId, Picture]) -> list[int]:
    """For each example the number whose block has its picture: examples of one image share a `Picture`."""
    first: dict[int, int] = {}
    return [
        first.setdefault(id(pictures[image]), number) if image in pictures else number
        for number, image in enumerate(images)
    ]


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _attention(attention: Attention) -> dict[str, Any]:
    """Each word's weights as bytes of 0..255 of its own largest one, which goes with them as it is."""
    maps_THW = np.nan_to_num(np.asarray(attention.maps_THW, np.float64))
    words, height, width = maps_THW.shape
    assert words == len(attention.words), "one map for each word"
    peaks_T = maps_THW.max(axis=(1, 2))
    levels_THW = np.round(255 * maps_THW / np.maximum(peaks_T, 1e-12)[:, None, None]).clip(0, 255)
    return {
        "words": list(attention.words),
        "height": height,
        "width": width,
        "box": attention.box,
        "method": attention.method,
        "peaks": [round(float(peak), 5) for peak in peaks_T],
        "weights": _base64(levels_THW.astype(np.uint8).tobytes()),
    }


# ------------------------------------------------------------------------------------- the main block


def _data(
    runs: Sequence[Evaluated],
    columns: Sequence[Column],
    images: Sequence[ImageId],
    pictures: Mapping[ImageId, Picture],
    title: str,
    said: Sequence[str],
) -> dict[str, Any]:
    """All but pictures and attention, by columns. Ids are text: a browser's numbers end at 2^53."""
    references, other = _references(runs, images)
    notes = [
        f"{name} has other references than are shown here for {count:,} of the images" for name, count in other.items()
    ]
    shown: dict[str, Any] = {
        "ids": [str(image) for image in images],
        "references": references,
        "pictures": [number for number, image in enumerate(images) if image in pictures],
    }
    if runs[0].task != "caption":
        shown |= {"items": _items(runs, images), "blocks": _blocks_of(images, pictures)}
        shown["references"] = [list(dict.fromkeys(texts)) for texts in references]
    return {
        "title": title,
        "task": runs[0].task,
        "primary": runs[0].primary,
        "verdicts": list(said),
        "meanings": MEANINGS | {column.label: column.meaning for column in columns if column.meaning},
        "notes": notes,
        "metrics": [
            {
                "name": column.key,
                "label": column.label,
                "short": column.short or column.label,
                "scale": column.scale,
                "digits": column.digits,
                "lowerIsBetter": not column.higher_is_better,
            }
            for column in columns
        ],
        "images": shown,
        "runs": [_run(run, columns, images) for run in runs],
    }


def _items(runs: Sequence[Evaluated], images: Sequence[ImageId]) -> list[dict[str, Any]]:
    """What the page shows of each example, from the first run that has it."""
    place = {image: number for number, image in enumerate(images)}
    by_image = {image: run for run in reversed(runs) for image in run.per_image}
    items = [item_of(by_image[image], image) for image in images]
    return [
        {
            "prompt": item.prompt,
            "truth": list(item.truth),
            "group": item.group,
            "found": [[place[each] for each in found if each in place] for found in item.found],
        }
        for item in items
    ]


def _answers(run: Evaluated, images: Sequence[ImageId]) -> list[dict[str, Any]]:
    found = (answer_of(run, image) for image in images)
    return [{"right": _finite(answer.right), "candidates": list(answer.candidates)} for answer in found]


def _references(runs: Sequence[Evaluated], images: Sequence[ImageId]) -> tuple[list[list[str]], dict[str, int]]:
    """Each image's references, from the first run that has it; how many a later run has otherwise, by name."""
    chosen: list[list[str]] = []
    other: dict[str, int] = {}
    for image in images:
        found = [(run.name, list(run.references.get(image, ()))) for run in runs if image in run.per_image]
        chosen.append(found[0][1])
        for name, captions in found[1:]:
            if captions != found[0][1]:
                other[name] = other.get(name, 0) + 1
    return chosen, other


def _run(run: Evaluated, columns: Sequence[Column], images: Sequence[ImageId]) -> dict[str, Any]:
    names = [column.key for column in columns]
    reasons = {column.label: run.reasons[column.key] for column in columns if column.key in run.reasons}
    more: dict[str, Any] = _others(run, images) if run.task == "caption" else {"answers": _answers(run, images)}
    if run.floors:
        floors = run.floors.items()
        more["floors"] = [[floor, [_finite(values.get(name)) for name in names]] for floor, values in floors]
    return {
        **more,
        "name": run.name,
        "count": len(run.per_image),
        "scores": [_finite(run.scores.get(name)) for name in names],
        "intervals": [_interval(run.intervals.get(name)) for name in names],
        "differences": [_difference(run.differences.get(name)) for name in names],
        "notes": [*run.warnings, *(f"{label} is missing: {reason}" for label, reason in reasons.items())],
        "about": dict(run.about),
        "details": dict(run.details),
        "signature": {key: str(value) for key, value in run.signature.items()},
        "curves": None if run.curves is None else _curves(run.curves),
        "hypotheses": [run.hypotheses.get(image) for image in images],
        "values": [[_finite(run.per_image.get(image, {}).get(name)) for image in images] for name in names],
        "attended": [number for number, image in enumerate(images) if image in run.attention],
    }


def _others(run: Evaluated, images: Sequence[ImageId]) -> dict[str, Any]:
    """The captions of each image behind the first, where any has some."""
    written = (run.examples.get(image, {}).get("captions") for image in images)
    others = [
        [text for text in texts[1:] if isinstance(text, str)] if isinstance(texts, list) else [] for texts in written
    ]
    return {"others": others} if any(others) else {}


def _finite(value: float | None) -> float | None:
    """NaN and infinities are not scores: they must not reach a mean, a sort or strict JSON."""
    return round(float(value), 6) if value is not None and math.isfinite(value) else None


def _difference(found: Difference | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {"interval": _interval(found.interval), "p": _finite(found.p)}


def _interval(ends: tuple[float, float] | None) -> tuple[float, float] | None:
    low, high = (_finite(end) for end in ends) if ends else (None, None)
    return None if low is None or high is None else (low, high)


def _curves(curves: Curves) -> dict[str, list[Point]]:
    return {
        "trainLoss": _thinned(curves.train_loss),
        "validationLoss": _thinned(curves.validation_loss),
        "validationScore": _thinned(curves.validation_score),
    }


def _thinned(points: Sequence[Point]) -> list[Point]:
    """Every n-th point, counted from the last, which is the one that people look for."""
    stride = -(-len(points) // CURVE_POINTS) or 1
    return [(step, round(value, 5)) for step, value in points[::-1][::stride][::-1] if math.isfinite(value)]
