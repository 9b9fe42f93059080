"""Which prediction belongs to which references, where two systems write the same image's id in two ways.

Numbers in quotes, leading zeros, file names for ids, names with folders or without an extension: an id that differs in
form only is matched when exactly one image on each side has it, and one sentence says how. What is not an image
of both files exactly once is listed, and an error unless the caller asks to leave it out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from velm_cli.errors import on_one_line
from velm_cli.metrics.caption_forms import ImageId

IMAGE_SUFFIX = re.compile(r"\.(?:jpe?g|jfif|png|webp|bmp|gif|tiff?|avif|jp2|ppm)$", re.IGNORECASE)
COCO_NAME = re.compile(r"(?:.*\w[_-])?0*(\d{1,18})")  # a minus in front is a sign


def _as_text(text: str) -> str:
    return text.strip()


def _bare_name(text: str) -> str:
    return PurePosixPath(text.strip().replace("\\", "/")).name


def _without_extension(text: str) -> str:
    return IMAGE_SUFFIX.sub("", _bare_name(text))


def _number(text: str) -> str:
    match = COCO_NAME.fullmatch(_without_extension(text))
    return match[1] if match else ""


# In this order: what changes an id least comes first. The last pairs numbers only: with other ids it says too little.
FORMS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("equal text", _as_text),
    ("file names without folders", _bare_name),
    ("file names without extension", _without_extension),
    ("numbers in file names", _number),
)


def same_images(
    wanted: Collection[ImageId],
    given: Collection[ImageId],
    names: Mapping[ImageId, str],
    given_names: Mapping[ImageId, str],
) -> tuple[dict[ImageId, ImageId], list[str]]:
    """Given id -> wanted id of those that differ in form only, and how they were matched, in words.

    `names` and `given_names` are the images' files, by which they may be called as well.
    """
    pairs: dict[ImageId, ImageId] = {}
    notes: dict[str, tuple[int, str]] = {}
    if all(image in wanted for image in given) or all(image in given for image in wanted):
        return pairs, []
    for how, form in FORMS:
        by_form = _by_form(wanted, names, form)
        for form_of_it, images in _by_form(given, given_names, form).items():
            theirs = by_form.get(form_of_it, set())
            if len(images) != 1 or len(theirs) != 1:  # two images that cannot be told apart
                continue
            (image,), (match,) = images, theirs
            if image in wanted or match in given or image in pairs or match in pairs.values():
                continue
            if form is _number and not (_is_number(image) or _is_number(match)):
                continue
            pairs[image] = match
            count, example = notes.get(how, (0, f"{_quoted(image)} is {_quoted(match)}"))
            notes[how] = count + 1, example
    if not notes:
        return pairs, []
    said = "; ".join(f"{count:,} by {how}, such as {example}" for how, (count, example) in notes.items())
    return pairs, [f"ids that differ in form are matched: {said}"]


def _by_form(
    images: Collection[ImageId], names: Mapping[ImageId, str], form: Callable[[str], str]
) -> dict[str, set[ImageId]]:
    found: dict[str, set[ImageId]] = {}
    for image in images:
        for text in (str(image), names.get(image, "")):
            if text and (key := form(text)):
                found.setdefault(key, set()).add(image)
    return found


def _is_number(image: ImageId) -> bool:
    return isinstance(image, int) or image.strip().isdigit()


def _quoted(image: ImageId) -> str:
    return str(image) if isinstance(image, int) else f'"{on_one_line(image)}"'


def problems(
    references: Mapping[ImageId, Sequence[str]],
    predictions: Collection[ImageId],
    duplicates: Sequence[ImageId],
    noun: str = "image",
) -> Iterator[str]:
    """What images are not exactly once on both sides, in words; `noun`: what they are where they are none."""
    missing = [image for image in references if image not in predictions]
    unknown = [image for image in predictions if image not in references]
    empty = [image for image, captions in references.items() if not captions]
    if missing:
        yield f"no prediction for {listing(missing, noun)}"
    if unknown:
        yield f"no references for {listing(unknown, noun)}"
    if duplicates:
        yield f"more than one prediction for {listing(list(Counter(duplicates)), noun)}"
    if empty:
        yield f"an empty list of references for {listing(empty, noun)}"


def listing(images: Sequence[ImageId], noun: str = "image") -> str:
    """`7 images (1, 2, 3, 4, 5, ...)`."""
    shown = ", ".join(on_one_line(str(image)) for image in images[:5])
    return f"{len(images)} {noun}{'s' * (len(images) > 1)} ({shown}{', ...' * (len(images) > 5)})"
