"""Which column of a table, or key of a JSON object, is the image, its captions, its part and its id.

One list of names for tables of every form. Names are compared without case, blanks, hyphens and underscores.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from velm_cli.errors import UserError

# In the order in which they are taken.
# fmt: off
IMAGE = (
    "image", "file_name", "file", "path", "file_path", "image_path", "image_file", "image_name", "image_file_name",
    "img", "img_path", "img_name", "img_file", "photo",
)
CLIP = ("frames", "video", "clip", "video_path", "video_file", "video_name", "clip_path", "folder")  # dataset=frames
CAPTIONS = (
    "captions", "caption", "text", "title", "sentences", "sentence", "description", "raw", "comment", "alt_text",
)
# fmt: on
SOURCE = ("source", "question", "query")
ANSWERS = ("answers", "answer", "targets", "target", "labels", "label")
LABELS = ("labels", "label", "classes", "class", "categories", "category", "tags")  # of images
EXAMPLE_ID = ("id", "question_id", "example_id")  # of rows with a source
SPLIT = ("split", "partition", "subset")
ID = ("image_id", "img_id", "cocoid")
CONVERSATIONS = frozenset(("conversations", "messages"))  # whose first answer is a caption
URL = ("url", "image_url", "img_url")
KNOWN = f"images: {', '.join(IMAGE)}; captions: {', '.join(CAPTIONS)}, also numbered (caption_1, caption_2 ...)"


def squashed(name: str) -> str:
    """A name in the one spelling that names are compared in: `File Name` as `filename`."""
    return re.sub(r"[\W_]", "", name.lower())


_IMAGE, _CLIP, _CAPTIONS, _SPLIT, _ID, _URL, _SOURCE, _ANSWERS, _EXAMPLE_ID, _LABELS = (
    [squashed(name) for name in names]
    for names in (IMAGE, CLIP, CAPTIONS, SPLIT, ID, URL, SOURCE, ANSWERS, EXAMPLE_ID, LABELS)
)


@dataclass(frozen=True, slots=True)
class Columns:
    """Positions among the names; `captions` (with a source: answers) may be several. `unused`: the other names."""

    image: int | None
    captions: tuple[int, ...]
    split: int | None = None
    image_id: int | None = None
    unused: tuple[str, ...] = ()
    source: int | None = None
    example_id: int | None = None
    labels: bool = False  # whether `captions` are labels

    @property
    def known(self) -> bool:
        """Whether they are enough for rows: images, and captions or questions about them."""
        return self.image is not None and (bool(self.captions) or self.source is not None)


@dataclass(slots=True)
class Row:
    """One line: `where` is file:line, `captions` are raw, `split` and `image_id` as written (None if absent).

    `info`: it comes from a list of images to be captioned. With a `source`, which is raw too, `captions` are answers;
    `more_images` are those after the first.
    """

    where: str
    image: str
    captions: list[object]
    split: str | None = None
    image_id: int | str | None = None
    info: bool = False
    source: object = None
    example_id: int | str | None = None
    more_images: tuple[str, ...] = ()


@dataclass(slots=True)
class Wanted:
    """The columns that the user named (`dataset.image_column=` and its like); None and () are found by their names.

    `asks`: questions are looked for, where no column has captions or the user named one. `labels`: these are in the
    place of captions.
    """

    image: str | None = None
    captions: tuple[str, ...] = ()
    split: str | None = None
    source: str | None = None
    asks: bool = False
    labels: bool = False
    clips: bool = False  # images are folders of frames, or videos
    unused: dict[str, None] = field(default_factory=dict)  # names that no reader took, as they came

    def find(self, names: Sequence[str], where: str | None = None) -> Columns:
        """The columns among `names`; UserError, with `where`, for a column that the user named and is not there, or
        that is there twice. Without `where` such a column is missing."""
        keys = [squashed(name) for name in names]

        def one(option: str, given: str | None, known: list[str]) -> int | None:
            wanted = [squashed(given)] if given else known
            found = next((key for key in wanted if key in keys), None)
            if where and given and found is None:
                raise UserError(f"dataset.{option}_column={given}: {where} has the columns {_listed(names)}")
            if where and found is not None and keys.count(found) > 1:
                raise UserError(
                    f"{where} has {keys.count(found)} columns called {names[keys.index(found)]}: rename one"
                )
            return None if found is None else keys.index(found)

        image = one("image", self.image, [*_CLIP, *_IMAGE] if self.clips else _IMAGE)
        if image is None and not self.image:
            image = one("image", None, _URL)
        split = one("split", self.split, _SPLIT)
        image_id = one("id", None, _ID)
        if self.captions:
            for name in self.captions:
                one("label" if self.labels else "caption", name, [])
            captions = tuple(at for name in self.captions for at, key in enumerate(keys) if key == squashed(name))
        else:
            known = _LABELS if self.labels else _CAPTIONS
            captions = next((found for base in known if (found := _numbered(base, keys))), ())
        source = example_id = None
        if self.source or (self.asks and not captions and not CONVERSATIONS.intersection(keys)):
            source = one("source", self.source, _SOURCE)
        if source is not None:
            example_id = one("id", None, _EXAMPLE_ID)
            if not self.captions:
                others = [key if at != source else "" for at, key in enumerate(keys)]
                known = [*_ANSWERS, *_CAPTIONS]
                captions = next((found for base in known if (found := _numbered(base, others))), ())
        if where and self.captions and image in captions:
            option = "label" if self.labels else "caption"
            raise UserError(f"dataset.{option}_column={','.join(self.captions)}: {where} has its images there")
        taken = {image, split, image_id, source, example_id, *captions}
        unused = tuple(name for at, name in enumerate(names) if at not in taken)
        return Columns(image, captions, split, image_id, unused, source, example_id, self.labels)

    def notes(self, where: str) -> list[str]:
        """A line on the columns that were not used, if there were any."""
        if not self.unused:
            return []
        names = list(self.unused)
        self.unused.clear()
        return [f"{where}: not used: {_listed(names)}"]


def _numbered(base: str, keys: list[str]) -> tuple[int, ...]:
    return tuple(
        at for at, key in enumerate(keys) if key.startswith(base) and (key == base or key[len(base) :].isdecimal())
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name.strip()[:30] or "''" for name in names[:12])
    return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def no_columns(names: Sequence[str], where: str) -> UserError:
    """The error of a table in which no image or no caption column is known: what it has, and what is known."""
    return UserError(
        f"{where}: no column of images, or none of captions, among {_listed(names)}; known are {KNOWN}; "
        "name yours with dataset.image_column= and dataset.caption_column=, or dataset.label_column= where images have "
        "labels"
    )
