"""Predictions and references as files, from any system, in any form of `caption_forms` and `caption_tables`.

What does not fit together (an image twice, without a caption, without references) is listed, and an error
unless the caller asks to leave it out: a silent zero or a silently smaller test set is how wrong numbers
get published.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from velm_cli.errors import UserError, on_one_line
from velm_cli.lines import Refused, json_lines, parse_json
from velm_cli.metrics.caption_forms import PREDICTIONS, REFERENCES, Role, Rows, read_records, read_value
from velm_cli.metrics.caption_tables import read_lines
from velm_cli.metrics.given import digest_of, given_text, keys_again
from velm_cli.metrics.matching import listing, problems, same_images
from velm_cli.metrics.scores import ImageId
from velm_cli.schema import Mismatch

__all__ = ["Predictions", "References", "listing", "matched", "read_predictions", "read_references"]


@dataclass(slots=True)
class Predictions:
    """One system's captions. `sets` holds all captions of each image where a file gives several."""

    captions: dict[ImageId, str]
    sets: dict[ImageId, list[str]] = field(default_factory=dict)
    duplicates: list[ImageId] = field(default_factory=list)  # ids that came again; their first caption counts
    digest: str = ""  # of the file's content
    files: dict[ImageId, str] = field(default_factory=dict)  # names of the images' files, where they are said
    by_order: bool = False  # the file names no images: their places, from 1, are the ids
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class References:
    """Captions of the images by people; where the file says so, domains (nocaps), files' names and splits of them."""

    captions: dict[ImageId, list[str]]
    domains: dict[ImageId, str] = field(default_factory=dict)
    files: dict[ImageId, str] = field(default_factory=dict)
    splits: dict[ImageId, str] = field(default_factory=dict)
    digest: str = ""  # of the files' content
    by_order: bool = False
    lines: int = 0  # of a file whose lines are its images


def read_predictions(path: Path, option: str = "predictions") -> Predictions:
    """A file in one of the known forms; velm's own per_image.jsonl is one too ("hypothesis").

    Raises UserError for anything else.
    """
    rows, digest = _load(path, option, PREDICTIONS)
    predictions = Predictions({}, digest=digest, files=rows.files, by_order=rows.by_order, notes=rows.notes)
    for where, image, captions in rows.rows:
        if image in predictions.captions:
            predictions.duplicates.append(image)
            continue
        if not captions:
            raise UserError(f'{where}: "captions" is empty: give at least one, or leave the image out')
        predictions.captions[image] = captions[0]
        if len(captions) > 1:
            predictions.sets[image] = captions
    if not predictions.captions:
        raise UserError(f"{path} holds no predictions")
    return predictions


def read_references(path: Path | str, option: str = "references") -> References:
    """One file or several (`a.txt,b.txt`, `ref*.txt`), whose references of an image are put together.

    velm's own per_image.jsonl ("references") is read as well.
    """
    references = References({})
    digests = []
    paths = _files(str(path), option)
    for number, each in enumerate(paths):
        rows, digest = _load(each, option, REFERENCES)
        digests.append(digest)
        if number and rows.by_order != references.by_order:
            raise UserError(f"{option}: {paths[0]} and {each} do not go together: only one of them names its images")
        references.by_order = rows.by_order
        if rows.by_order and number and len(rows.rows) != references.lines:
            raise UserError(_unequal(f"{option}: {paths[0]}", references.lines, str(each), len(rows.rows)))
        references.lines = len(rows.rows) if rows.by_order else 0
        for _, image, captions in rows.rows:
            references.captions.setdefault(image, []).extend(captions)
        references.files |= rows.files
        references.domains |= rows.domains
        references.splits |= rows.splits
    if not references.captions:
        raise UserError(f"{option}={path} holds no captions")
    references.digest = digests[0] if len(digests) == 1 else digest_of("".join(digests).encode())
    return references


def _files(value: str, option: str) -> list[Path]:
    """The files that are meant: a path, a list of them with commas, or a pattern."""
    if Path(value).exists():
        return [Path(value)]
    listed = value[1:-1] if value[:1] == "[" and value[-1:] == "]" else value
    found: list[Path] = []
    for each in listed.split(","):
        name = each.strip().strip("'\"")
        matches = [] if Path(name).exists() else sorted(glob.glob(name))
        found += map(Path, matches or [name])
    return found if len(found) > 1 or found[0].exists() else [Path(value)]


def matched(
    references: References | Mapping[ImageId, Sequence[str]],
    predictions: Predictions,
    policy: Mismatch,
    where: str = "predictions",
    noun: str = "image",
) -> tuple[list[ImageId], list[str]]:
    """The images (`noun`: what else is scored) in the order of the references, and what was done about the others.

    Ids of `predictions` that differ from those of the references in form only become these. Raises UserError, which
    lists the ids, for images that are not exactly once on both sides, unless the policy is to ignore them.
    """
    if not isinstance(references, References):
        references = References({image: list(captions) for image, captions in references.items()})
    if references.by_order != predictions.by_order:
        which, other = ("predictions", "references") if predictions.by_order else ("references", "predictions")
        raise UserError(
            f"{where}: the {which} name no images, so that only their order says whose they are; the {other} do "
            f"({_some(references if predictions.by_order else predictions)}): give both with ids, or both in order"
        )
    if predictions.by_order and references.lines and len(predictions.captions) != references.lines:
        raise UserError(_unequal(where, len(predictions.captions), "the references", references.lines))
    notes = [*predictions.notes, *_in_their_ids(references, predictions)]
    captions = references.captions
    splits = {references.splits.get(image, "") for image in captions if image in predictions.captions}
    if splits and "" not in splits:
        captions = {image: texts for image, texts in captions.items() if references.splits.get(image) in splits}
        if len(captions) < len(references.captions):
            named = " and ".join(map(on_one_line, sorted(splits)))
            notes.append(f"the references are those of the split {named}: {len(captions):,} images")
    found = list(problems(captions, predictions.captions, predictions.duplicates, noun))
    if found and policy is Mismatch.error:
        raise UserError(
            f"{where}: {'; '.join(found)}. mismatch=ignore scores the {noun}s that both files have "
            "(of several predictions the first)"
        )
    images = [image for image, texts in captions.items() if texts and image in predictions.captions]
    if not images:
        raise UserError(f"{where}: no {noun} has both a prediction and references: {'; '.join(found)}")
    return images, [*notes, *(f"left out: {problem}" for problem in found)]


def _unequal(one: str, lines: int, other: str, others: int) -> str:
    """Where lines are images, one that is missing gives all after it another image's references."""
    return (
        f"{one} has {lines:,} captions and {other} {others:,}, and only their order says which belong together: give "
        "files of equal length (an empty line for an image without a caption, but not as the last), or ids"
    )


def _some(one: References | Predictions) -> str:
    return on_one_line(", ".join(str(image) for image in list(one.captions)[:3]))[:60] + ", ..."


def _in_their_ids(references: References, predictions: Predictions) -> list[str]:
    """Calls the images of the predictions what the references call them; how, in words."""
    pairs, notes = same_images(references.captions, predictions.captions, references.files, predictions.files)
    if pairs:
        predictions.captions = {pairs.get(image, image): text for image, text in predictions.captions.items()}
        predictions.sets = {pairs.get(image, image): texts for image, texts in predictions.sets.items()}
        predictions.duplicates = [pairs.get(image, image) for image in predictions.duplicates]
        predictions.files = {pairs.get(image, image): name for image, name in predictions.files.items()}
    return notes


# ------------------------------------------------------------------------------------- one file


def _load(path: Path, option: str, role: Role) -> tuple[Rows, str]:
    """What the file holds, and a digest of it."""
    data, digest = given_text(path, option, "captions")
    if data.lstrip(b"\xef\xbb\xbf\xff\xfe\x00 \t\r\n")[:1] in (b"{", b"["):
        rows = _json(path, data, role, option)
    else:
        rows = read_lines(path, role, option)
    return rows, digest


def _json(path: Path, data: bytes, role: Role, option: str) -> Rows:
    named = f"{option}={path}"
    try:
        value = parse_json(data, named)
    except UserError as error:
        lines = data.strip().count(b"\n") or data.strip().count(b"\r")
        if lines and data.lstrip(b"\xef\xbb\xbf\xff\xfe\x00 \t\r\n")[:1] == b"{":
            return _json_lines(path, role)
        if path.suffix.lower() == ".txt":
            return read_lines(path, role, option)
        hint = "; it looks like what Python prints: write it with json.dump" if b"{'" in data[:80] else ""
        raise UserError(f"{error}{hint}") from None
    try:
        rows = read_value(value, str(path), role)
    except RecursionError:
        raise UserError(f"{named} is nested too deeply to be a file of captions") from None
    if twice := keys_again(data, value, len(rows.rows)):
        raise UserError(f"{named}: more than once in it: {listing(twice)}; JSON keeps the last, so leave one")
    return rows


def _json_lines(path: Path, role: Role) -> Rows:
    refused: Refused = []
    items = [(f"{path} line {number}", item) for number, item in json_lines(path, refused)]
    if refused:
        more = f" (and {len(refused) - 1:,} more lines)" if len(refused) > 1 else ""
        raise UserError(f"{refused[0][0]}: {refused[0][1]}{more}")
    return read_records(items, role)
