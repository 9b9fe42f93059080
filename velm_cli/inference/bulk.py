"""Many images through a model: read by processes that no image can break, predicted in chunks, damaged ones told."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from velm_cli.data.images import ImageRefused
from velm_cli.data.processes import Died, Limits, work_in_order
from velm_cli.errors import UserError
from velm_cli.inference.journal import Row
from velm_cli.inference.listing import Listed, tar_images
from velm_cli.inference.pictures import Form

ALONE = 16  # so few are read by this process: others take a second to start
LIMITS = Limits(seconds=60, memory=4_000_000_000)  # an image, as preprocessing has them by default

Predict = Callable[[Sequence[Listed], Sequence[bytes]], Sequence[Sequence[Row]]]


def rows_of(
    images: Sequence[Listed], form: Form, predict: Predict, *, chunk: int, workers: int = 0
) -> Iterator[list[Row]]:
    """The rows of each `chunk` of images: those that `predict` makes of an image, or one that says why it is refused.

    `predict` gets the readable images of a chunk, in the form of the store, and gives the rows of each.
    """
    with closing(_prepared(images, form, workers)) as coming:
        for start in range(0, len(images), chunk):
            some = images[start : start + chunk]
            found = list(islice(coming, len(some)))
            readable = [
                (image, jpeg) for image, jpeg in zip(some, found, strict=True) if not isinstance(jpeg, ImageRefused)
            ]
            told = iter(predict([image for image, _ in readable], [jpeg for _, jpeg in readable]) if readable else ())
            rows: list[Row] = []
            for image, jpeg in zip(some, found, strict=True):
                if isinstance(jpeg, ImageRefused):
                    rows.append({"image": image.name, "refused": str(jpeg)})
                else:
                    rows += next(told)
            yield rows


def _prepared(images: Sequence[Listed], form: Form, workers: int) -> Generator[bytes | ImageRefused, None, None]:
    """Each image in the form of the store, or why it cannot be used."""
    work = partial(_stored, form)
    if len(images) <= ALONE:
        yield from map(work, _sources(images))
        return
    with closing(work_in_order(_sources(images), work, workers, LIMITS)) as results:
        for result in results:
            if not isinstance(result, Died):
                yield result
            elif result.too_slow:
                yield ImageRefused(f"too slow: not decoded in {LIMITS.seconds:g} s")
            else:
                yield ImageRefused("fatal: the process that decoded it died (a crash, or out of memory)")


def _stored(form: Form, source: Path | bytes | ImageRefused) -> bytes | ImageRefused:
    try:
        return source if isinstance(source, ImageRefused) else form.stored(source)
    except ImageRefused as refusal:
        return refusal
    except (OSError, ValueError) as error:  # ValueError: no path has a null byte
        return ImageRefused(f"unreadable: {getattr(error, 'strerror', None) or error}")


def _sources(images: Iterable[Listed]) -> Iterator[Path | bytes | ImageRefused]:
    for tar, some in groupby(images, key=lambda image: image.tar):
        if tar is None:
            yield from (image.path for image in some)
            continue
        yield from _members(tar, [image.member for image in some])


def _members(tar: Path, wanted: Sequence[str]) -> Iterator[bytes | ImageRefused]:
    """The members of these names, which are in the order of the tar."""
    inside = tar_images(tar, frozenset(wanted))
    place = 0
    for name, content in inside:
        if place < len(wanted) and name == wanted[place]:
            yield ImageRefused("too large: a member of the tar beyond 256 MB") if content is None else content
            place += 1
    if place < len(wanted):
        raise UserError(f"images={tar}: {wanted[place]} is no longer in it: the tar has changed since it was listed")


def shown_refusals(rows: Iterable[Row], most: int = 5) -> list[str]:
    """Lines about the refused images among the rows: the first of them, and how many more there are."""
    refused = [row for row in rows if "refused" in row]
    lines = [f"refused     {row['image']}: {row['refused']}" for row in refused[:most]]
    return [*lines, *([f"            and {len(refused) - most:,} more"] if len(refused) > most else [])]


def told(rows: Iterable[Row], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What results hold of the rows of readable images."""
    for row in rows:
        if "refused" not in row:
            yield {column: row[column] for column in columns if column in row}
