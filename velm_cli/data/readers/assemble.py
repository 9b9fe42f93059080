"""The one policy of all readers: which captions count, what a missing image means, in which order.

A reader turns its format into Entries or Questions; `assemble` turns these into a Corpus, so that an empty caption
or an absent file is treated alike whatever format it came from.
"""

from __future__ import annotations

import heapq
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from velm_cli import schema
from velm_cli.data.examples import Corpus, Example, Examples, ImageRef, captioned
from velm_cli.data.image_table import ImageTable
from velm_cli.errors import UserError
from velm_cli.lines import Refused

# What `str.split` does not take for white space, yet has no place in a caption: control characters, lone
# surrogates (they cannot be written as UTF-8), byte-order marks and zero-width spaces. Joiners stay: emoji
# are built with them.
_UNPRINTABLE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x9f\ud800-\udfff\ufeff\u200b]")
_BLANKS = re.compile(r"\s")

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


@dataclass(slots=True)
class Question:
    """One example with a source or with several images, as a reader found it: all texts raw, images may be absent.

    No `answers` at all are right for an example to test on, and where `unlabelled` says so.
    """

    id: int | str
    split: str
    images: tuple[ImageRef, ...]
    source: object
    answers: list[object]
    about: Mapping[str, str] = field(default_factory=dict)
    unlabelled: bool = False
    verbatim: bool = False  # its texts are printable, and stay as they are: line breaks count in a conversation


def labelled(image_id: int | str, split: str, image: Path, labels: list[object]) -> Question:
    """An image with its labels, which are taken as they are: one may be called `none`."""
    return Question(image_id, split, (ImageRef(image_id, image),), None, labels)


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


def clean_answers(answers: Iterable[object]) -> tuple[tuple[str, ...], list[str]]:
    """(answers as they were given, why each of the others is not taken).

    An answer may be `none` or `n/a`, and blanks within it count in the official score of VQA: only what is no text,
    and what cannot be printed, is replaced by a blank.
    """
    kept: list[str] = []
    reasons: list[str] = []
    for number, answer in enumerate(answers, start=1):
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            reasons.append(f"answer {number} is not text: {str(answer)[:40]}")
        elif text := _BLANKS.sub(" ", _UNPRINTABLE.sub(" ", str(answer))).strip():
            kept.append(text)
        else:
            reasons.append(f"answer {number} is empty")
    return tuple(kept), reasons


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
    entries: Iterable[Entry | Question],
    listing: Listing | None,
    missing: schema.Missing,
    where: str,
    doubtful: Callable[[], str] = str,
) -> Corpus:
    """Fill `corpus.examples` from `entries`, cleaned, checked and sorted; returns `corpus`.

    `listing` None means texts only: no image is looked for. `where` names the data in error messages, `doubtful`
    says why some may not have been found.
    Raises UserError for absent images (unless `missing` is skip; auto is an error here, a reader that means
    to skip says so), for an id that two examples or two images share, and when nothing remains.
    """
    found, labelled, unlabelled = Examples(), 0, 0
    for entry in entries:
        if isinstance(entry, Entry):
            example = _captioned(entry, corpus.refused, texts_only=listing is None)
        else:
            example = _question(entry, corpus.refused)
        if example is not None:
            found.append(example, present=listing is None or all(image.path in listing for image in example.images))
            labelled += bool(example.targets)
            unlabelled += not example.targets
    corpus.refused = [(_writable(name), _writable(reason)) for name, reason in corpus.refused]
    corpus.notes = [_writable(note) for note in corpus.notes]
    things = "annotated images" if found.captions_only else "examples"
    for one, other in found.doubles():
        what = "image" if found.captions_only else "example"
        raise UserError(f"{where}: the {what} id {other.id} stands for both {_named(one)} and {_named(other)}")
    if listing is not None and not found.captions_only:
        for first, second in ImageTable(found).clashes():
            raise UserError(f"{where}: the image id {second.id} stands for both {first.path} and {second.path}")

    absent = found.select(present=False)
    if absent and missing is not schema.Missing.skip:
        beside = f" ({unlabelled:,} have no caption)" if unlabelled and found.captions_only else ""
        why = f"{said}, or " if (said := doubtful()) else ""
        those = "are missing" if found.captions_only else "have an image that is missing"
        raise UserError(
            f"{len(absent):,} of {len(found):,} {things} {those}{beside}, first {_absent(absent[0], listing)}; "
            f"{why}add them, or leave them out with dataset.missing=skip"
        )
    corpus.examples = found.select(present=True, order=corpus.splits, images=listing is not None)
    if not corpus.examples:
        refused = f"; {len(corpus.refused):,} entries refused" if corpus.refused else ""
        named = ", first {} ({})".format(*corpus.refused[0]) if corpus.refused else ""
        looked = f", but none has its file (first {_absent(absent[0], listing)})" if absent else ""
        looked += f"; {said}" if absent and (said := doubtful()) else ""
        counted = f"{labelled:,} images have captions" if found.captions_only else f"{len(found):,} were found"
        if not found and corpus.refused:  # they may have been captions or questions
            counted = "nothing in it can be used"
        raise UserError(f"{where}: no example is left: {counted}{looked}{refused}{named}")
    if absent:
        few = first_few(absent.ids())
        lack = "whose file is missing" if found.captions_only else "whose image is missing"
        corpus.notes.append(f"skipped {len(absent):,} of {len(found):,} {things} {lack} ({few})")
        if "train" in absent.splits() and "train" not in corpus.examples.splits():
            corpus.notes.append("nothing is left to train on: every image of the train part is missing")
    return corpus


def _captioned(entry: Entry, refused: Refused, *, texts_only: bool) -> Example | None:
    """The example of a captioned image; None, and a reason among the `refused`, where it is of no use."""
    name = str(entry.image_id)
    if _writable(name) != name:
        refused.append((name, "its name is not UTF-8: rename the file"))
        return None
    captions, reasons = clean_captions(entry.captions)
    refused += [(name, reason) for reason in reasons]
    if not captions and not (entry.split == "test" and not entry.captions and not texts_only):
        refused.append((name, "no usable caption"))
        return None
    return captioned(entry.image_id, entry.split, entry.image, captions)


def _question(entry: Question, refused: Refused) -> Example | None:
    name = str(entry.id)
    if any(_writable(one) != one for one in (name, *(str(image.id) for image in entry.images))):
        refused.append((name, "its name is not UTF-8: rename the file"))
        return None
    if entry.verbatim:
        if not entry.answers and not (entry.unlabelled and entry.split == "test"):
            refused.append((name, "no reply"))
            return None
        return Example(entry.id, entry.split, entry.images, str(entry.source), (*map(str, entry.answers),), entry.about)
    source = None
    if entry.source is not None:
        texts, reasons = clean_captions([entry.source])
        source = texts[0] if texts else None
        if source is None:
            refused.append((name, f"no usable question: {reasons[0].replace('caption 1', 'it')}"))
            return None
    answers, reasons = clean_answers(entry.answers)
    refused += [(name, reason) for reason in reasons]
    if not answers and (entry.answers or not (entry.unlabelled or entry.split == "test")):
        refused.append((name, f"no usable {'answer' if entry.source is not None else 'label'}"))
        return None
    if len({image.id for image in entry.images}) < len(entry.images):
        refused.append((name, "names an image twice"))
        return None
    return Example(entry.id, entry.split, entry.images, source, answers, entry.about)


def _named(example: Example) -> str:
    return str(example.image) if example.source is None else f"{example.source!r} ({example.split})"


def _absent(example: Example, listing: Listing | None) -> Path:
    """The first of its images that is not there."""
    assert listing is not None
    return next(image.path for image in example.images if image.path not in listing)
