"""The one policy of all readers: which captions count, what a missing image means, in which order.

A reader turns its format into Entries; `assemble` turns Entries into a Corpus, so that an empty caption
or an absent file is treated alike whatever format it came from.
"""

from __future__ import annotations

import heapq
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from velm_cli import schema
from velm_cli.data.records import Corpus, Records
from velm_cli.errors import UserError

# What `str.split` does not take for white space, yet has no place in a caption: control characters, lone
# surrogates (they cannot be written as UTF-8), byte-order marks and zero-width spaces. Joiners stay: emoji
# are built with them.
_UNPRINTABLE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x9f\ud800-\udfff\ufeff\u200b]")


MISSING = frozenset(("nan", "NaN", "NAN", "None", "none", "NULL", "null", "<NA>", "N/A", "n/a"))


@dataclass(slots=True)
class Entry:
    """One annotated image as a reader found it; `captions` are still raw, `image` may be absent.

    No captions at all are right for an image to test on; elsewhere they are an error of the data.
    """

    image_id: int | str
    split: str
    image: Path
    captions: list[object]


class Listing:
    """Which files exist, from one listing a folder: a stat an image takes minutes on network disks."""

    def __init__(self) -> None:
        self._names: dict[str, frozenset[str]] = {}

    def names(self, folder: str | Path) -> frozenset[str]:
        """Names of the files in `folder` (links followed); none if there is no such folder."""
        folder = os.fspath(folder) or "."
        if folder not in self._names:
            try:
                with os.scandir(folder) as found:
                    self._names[folder] = frozenset(item.name for item in found if item.is_file())
            except (FileNotFoundError, NotADirectoryError):
                self._names[folder] = frozenset()
            except OSError as error:
                raise UserError(f"{folder} cannot be listed: {error.strerror}") from None
        return self._names[folder]

    def __contains__(self, path: Path) -> bool:
        folder, name = os.path.split(path)
        return name in self.names(folder)


def clean_captions(captions: Iterable[object]) -> tuple[tuple[str, ...], list[str]]:
    """(usable captions, why each of the others is not).

    Line breaks, control characters and runs of spaces become one space: a line break in a caption stops
    METEOR for ever, and every tokenizer of the field ignores the difference.
    """
    kept: list[str] = []
    reasons: list[str] = []
    for number, caption in enumerate(captions, start=1):
        if not isinstance(caption, str):
            reasons.append(f"caption {number} is not text: {str(caption)[:40]}")
            continue
        text = " ".join(_UNPRINTABLE.sub(" ", caption).split())
        if text in MISSING:
            reasons.append(f"missing in its table: caption {number} is {text}")
        elif text:
            kept.append(text)
        else:
            reasons.append(f"caption {number} is empty")
    return tuple(kept), reasons


def _writable(text: str) -> str:
    """`text` with what is not UTF-8, as names of files may be, written out."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def id_order(image_id: int | str) -> tuple[bool, Any]:
    """Sort key: numbers by value, then names."""
    return isinstance(image_id, str), image_id


def first_few(ids: Iterable[int | str], show: int = 5) -> str:
    """`first: 9, 25, 30, ...`: the beginning of what may be a long list."""
    first = [str(image_id) for image_id in heapq.nsmallest(show + 1, ids, key=id_order)]
    return f"first: {', '.join(first[:show])}{', ...' if first[show:] else ''}"


def assemble(
    corpus: Corpus,
    entries: Iterable[Entry],
    listing: Listing | None,
    missing: schema.Missing,
    where: str,
    doubtful: Callable[[], str] = str,
) -> Corpus:
    """Fill `corpus.records` from `entries`, cleaned, checked and sorted; returns `corpus`.

    `listing` None means captions only: no image is looked for. `where` names the data in error messages, `doubtful`
    says why some may not have been found.
    Raises UserError for absent images (unless `missing` is skip; auto is an error here, a reader that means
    to skip says so), for an id that two images share, and when nothing remains.
    """
    found, captioned, uncaptioned = Records(), 0, 0
    for entry in entries:
        name = str(entry.image_id)
        if _writable(name) != name:
            corpus.refused.append((name, "its name is not UTF-8: rename the file"))
            continue
        captions, reasons = clean_captions(entry.captions)
        corpus.refused += [(name, reason) for reason in reasons]
        unlabelled = entry.split == "test" and not entry.captions and listing is not None
        if not captions and not unlabelled:
            corpus.refused.append((name, "no usable caption"))
            continue
        present = listing is None or entry.image in listing
        captioned += bool(captions)
        uncaptioned += not captions
        found.append(entry.image_id, entry.split, entry.image, captions, present=present)
    corpus.refused = [(_writable(name), _writable(reason)) for name, reason in corpus.refused]
    corpus.notes = [_writable(note) for note in corpus.notes]
    for one, other in found.doubles():
        raise UserError(f"{where}: the image id {other.image_id} stands for both {one.image} and {other.image}")

    absent = found.select(present=False)
    if absent and missing is not schema.Missing.skip:
        beside = f" ({uncaptioned:,} have no caption)" if uncaptioned else ""
        why = f"{said}, or " if (said := doubtful()) else ""
        raise UserError(
            f"{len(absent):,} of {len(found):,} annotated images are missing{beside}, first {absent[0].image}; "
            f"{why}add them, or leave them out with dataset.missing=skip"
        )
    corpus.records = found.select(present=True, order=corpus.splits, images=listing is not None)
    if not corpus.records:
        refused = f"; {len(corpus.refused):,} entries refused" if corpus.refused else ""
        example = ", first {} ({})".format(*corpus.refused[0]) if corpus.refused else ""
        looked = f", but none has its file (first {absent[0].image})" if absent else ""
        looked += f"; {said}" if absent and (said := doubtful()) else ""
        raise UserError(f"{where}: no example is left: {captioned:,} images have captions{looked}{refused}{example}")
    if absent:
        ids = first_few(absent.ids())
        corpus.notes.append(f"skipped {len(absent):,} of {len(found):,} annotated images whose file is missing ({ids})")
        if "train" in absent.splits() and "train" not in corpus.records.splits():
            corpus.notes.append("nothing is left to train on: every image of the train part is missing")
    return corpus
