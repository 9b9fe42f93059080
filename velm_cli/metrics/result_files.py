"""Predictions and references as files: COCO's results and captions, or JSON lines; from any system.

What does not fit together (an image twice, without a caption, without references) is listed, and an error
unless the caller asks to leave it out: a silent zero or a silently smaller test set is how wrong numbers
get published.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from velm_cli.data.readers.files import read_bytes
from velm_cli.errors import UserError, on_one_line
from velm_cli.metrics.scores import ImageId, check_vouched
from velm_cli.schema import Mismatch


@dataclass(slots=True)
class Predictions:
    """One system's captions. `sets` holds all captions of each image where a file gives several."""

    captions: dict[ImageId, str]
    sets: dict[ImageId, list[str]] = field(default_factory=dict)
    duplicates: list[ImageId] = field(default_factory=list)  # ids that came again; their first caption counts
    digest: str = ""  # of the file's content


@dataclass(slots=True)
class References:
    """Captions of the images by people; where the file says so, their domains (nocaps) and their files' names."""

    captions: dict[ImageId, list[str]]
    domains: dict[ImageId, str] = field(default_factory=dict)
    files: dict[ImageId, str] = field(default_factory=dict)
    digest: str = ""  # of the file's content


def read_predictions(path: Path) -> Predictions:
    """A list, or JSON lines, of {"image_id", "caption"} or {"image_id", "captions": [...]}.

    velm's own per_image.jsonl is one too ("hypothesis"). Raises UserError for anything else.
    """
    items, _, digest = _load(path, "predictions")
    predictions = Predictions({}, digest=digest)
    for where, item in items:
        image = _image_id(item, where)
        if image in predictions.captions:
            predictions.duplicates.append(image)
            continue
        captions = _texts(item, where, "caption", "captions", "hypothesis")
        if not captions:
            raise UserError(f'{where}: "captions" is empty: give at least one, or leave the image out')
        predictions.captions[image] = captions[0]
        if len(captions) > 1:
            predictions.sets[image] = captions
    if not predictions.captions:
        raise UserError(f"{path} holds no predictions")
    return predictions


def read_references(path: Path, option: str = "references") -> References:
    """COCO's captions file ({"annotations": [...]}), or JSON lines of {"image_id", "captions": [...]}.

    Lines of one caption each, and velm's own per_image.jsonl ("references"), are read as well.
    """
    items, about, digest = _load(path, option)
    references = References({}, digest=digest)
    for where, item in items:
        texts = _texts(item, where, "references", "captions", "caption")
        references.captions.setdefault(_image_id(item, where), []).extend(texts)
    if not references.captions:
        raise UserError(f"{option}={path} holds no captions")
    images = about.get("images")
    for image in images if isinstance(images, list) else []:
        if isinstance(image, dict) and isinstance(image.get("id"), (int, str)):
            for found, key in ((references.domains, "domain"), (references.files, "file_name")):
                if isinstance(image.get(key), str):
                    found[image["id"]] = image[key]
    return references


def matched(
    references: Mapping[ImageId, Sequence[str]], predictions: Predictions, policy: Mismatch, where: str = "predictions"
) -> tuple[list[ImageId], list[str]]:
    """The images to score, in the order of the references, and what was left out, in words.

    Raises UserError, which lists the ids, for images that are not exactly once on both sides, unless the
    policy is to ignore them.
    """
    ids = {type(image) for image in references} | {type(image) for image in predictions.captions}
    missing = [image for image in references if image not in predictions.captions]
    unknown = [image for image in predictions.captions if image not in references]
    empty = [image for image, captions in references.items() if not captions]
    hint = ""
    if len(ids) > 1 and set(map(str, missing)) & set(map(str, unknown)):
        hint = " (ids are numbers in one file and text in the other)"
    problems = []
    if missing:
        problems.append(f"no prediction for {listing(missing)}{hint}")
    if unknown:
        problems.append(f"no references for {listing(unknown)}{hint}")
    if predictions.duplicates:
        problems.append(f"more than one prediction for {listing(list(Counter(predictions.duplicates)))}")
    if empty:
        problems.append(f"an empty list of references for {listing(empty)}")
    if problems and policy is Mismatch.error:
        raise UserError(
            f"{where}: {'; '.join(problems)}. mismatch=ignore scores the images that both files have "
            "(of several predictions the first)"
        )
    left = set(missing) | set(empty)
    images = [image for image in references if image not in left]
    if not images:
        raise UserError(f"{where}: no image has both a prediction and references{hint}")
    return images, [f"left out: {problem}" for problem in problems]


def listing(images: Sequence[ImageId]) -> str:
    """`7 images (1, 2, 3, 4, 5, ...)`."""
    shown = ", ".join(on_one_line(str(image)) for image in images[:5])
    return f"{len(images)} image{'s' * (len(images) > 1)} ({shown}{', ...' * (len(images) > 5)})"


def _load(path: Path, option: str) -> tuple[list[tuple[str, dict[str, Any]]], dict[str, Any], str]:
    """(where, object) of a JSON list, of "annotations" in a JSON object, or of JSON lines; that JSON object; a digest
    of the file."""
    try:
        data = read_bytes(path)
        text = data.decode("utf-8-sig")
    except UserError as error:
        raise UserError(f"{option}={error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{option}={path} cannot be read: {error}") from error
    check_vouched(path)
    unit = ""
    try:
        whole = json.loads(text)
    except RecursionError as error:
        raise UserError(f"{option}={path} is not a file of captions: its JSON is nested too deeply") from error
    except ValueError as error:
        lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        if len(lines) < 2 or not lines[0][1].lstrip().startswith("{"):
            raise UserError(f"{option}={path} is not JSON: {error}") from error
        whole, unit = [_line(path, number, line) for number, line in lines], "line "
    about: dict[str, Any] = {}
    if isinstance(whole, dict):
        if "image_id" in whole:  # JSON lines of one line
            whole = [whole]
        else:
            about, whole = whole, whole.get("annotations")
    if not isinstance(whole, list):
        raise UserError(f'{option}={path}: a JSON object must have the list "annotations", as COCO\'s captions do')
    named = [(f"{path} {unit}{number}", item) for number, item in enumerate(whole, 1)]
    for where, item in named:
        if not isinstance(item, dict):
            raise UserError(f"{where}: not an object but {json.dumps(item)[:60]}")
    return named, about, hashlib.blake2b(data, digest_size=16).hexdigest()


def _line(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} line {number} is not JSON: {error}") from error


def _image_id(item: Mapping[str, Any], where: str) -> ImageId:
    image = item.get("image_id")
    if isinstance(image, bool) or not isinstance(image, (int, str)):
        raise UserError(f'{where}: "image_id" must be a number or text, not {json.dumps(image)[:40]}')
    return image


def _texts(item: Mapping[str, Any], where: str, *keys: str) -> list[str]:
    """The captions under the first of `keys` that is there: a text or a list of them."""
    key = next((key for key in keys if key in item), None)
    if key is None:
        raise UserError(f"{where}: none of {', '.join(keys)}, but {on_one_line(', '.join(item)) or 'nothing'}")
    texts = [item[key]] if isinstance(item[key], str) else item[key]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UserError(f'{where}: "{key}" must be text or a list of texts, not {json.dumps(item[key])[:40]}')
    return texts
