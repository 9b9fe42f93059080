"""Labels of images as files: what is right, and any system's labels or scores of labels.

Forms: {"ID": label}, {"ID": [labels]} or {"ID": {label: score}}; a list, or JSON lines, of {"id", "label"}, {"id",
"labels"} or {"id", "scores"}; CSV with `id` and `label` (several rows of an id are several labels), or with `id` and a
column of scores for each label; of references also COCO's instances_*.json.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from velm_cli.errors import UserError, on_one_line
from velm_cli.lines import Refused, json_lines, parse_json, text_lines
from velm_cli.metrics.caption_forms import image_id
from velm_cli.metrics.given import given_text, keys_again
from velm_cli.metrics.label_scores import AT_LEAST, Found
from velm_cli.metrics.scores import ExampleId
from velm_cli.schema import Mismatch

ID_KEYS = ("id", "image_id", "image", "file_name", "filename", "path", "question_id")
LABEL_KEYS = ("labels", "label", "truth", "classes", "class", "category", "target", "prediction")
SCORE_KEYS = ("scores", "probabilities")
KNOWN = (
    'known are {"ID": "label"}, {"ID": ["label", ...]}, JSON lines and CSV with id and label (or labels); of '
    'predictions also {"ID": {"label": score}} and "scores"; of references also COCO\'s instances_*.json'
)
WRAPPERS = ("annotations", "predictions", "results", "data")


@dataclass(slots=True)
class Given:
    """What a file says of images: labels, and scores of labels where it has them."""

    labels: dict[ExampleId, list[str]] = field(default_factory=dict)
    scores: dict[ExampleId, dict[str, float]] = field(default_factory=dict)
    digest: str = ""


def read_labels(path: Path, option: str) -> Given:
    """UserError for a file in no known form, an image that is there twice, or a score that is no finite number."""
    found = Given()
    data, found.digest = given_text(path, option, "labels")
    for where, item in _rows(path, data, option):
        _take(found, where, item, option)
    if not found.labels and not found.scores:
        raise UserError(f"{option}={path} holds no labels; {KNOWN}")
    if found.scores and option in ("references", "training"):
        raise UserError(f"{option}={path} holds scores; what is right are labels: {KNOWN}")
    if found.scores:
        _refuse_gaps(found, path, option)
    return found


def found_of(given: Given, ids: Sequence[ExampleId], *, single: bool) -> Found:
    """The predictions of these images. Without labels of its own the highest score is one, or those of at least .5."""
    if not given.scores:
        names = list(dict.fromkeys(label for name in ids for label in given.labels[name]))
        return Found(names, {name: given.labels[name] for name in ids})
    names = list(next(iter(given.scores.values())))
    scores = {name: np.array([given.scores[name][label] for label in names]) for name in ids}
    chosen: dict[ExampleId, Sequence[str]] = {}
    for name, scores_C in scores.items():
        if name in given.labels:
            chosen[name] = given.labels[name]
        elif single:
            chosen[name] = [names[int(scores_C.argmax())]]
        else:
            chosen[name] = [names[c] for c in np.flatnonzero(scores_C >= AT_LEAST)]
    shares = all(((scores_C >= 0) & (scores_C <= 1)).all() for scores_C in scores.values())
    decided = single or shares or all(name in given.labels for name in ids)
    return Found(names, chosen, scores, decided)


def matched(
    truth: Mapping[ExampleId, Any], given: Given, policy: Mismatch, where: str
) -> tuple[list[ExampleId], Given, list[str]]:
    """(images to score in the order of the references, predictions by their ids, what was done about the others).

    UserError for images that are not in both files, unless the policy is to ignore them.
    """
    by_text = {str(name): name for name in truth}
    own = {name: by_text.get(str(name), name) for name in (*given.labels, *given.scores)}
    labels = {own[name]: each for name, each in given.labels.items()}
    scores = {own[name]: each for name, each in given.scores.items()}
    there = {**labels, **scores}
    lacking, unknown = [name for name in truth if name not in there], [name for name in there if name not in truth]
    said = [
        f"{what} {len(ids):,} images (first {on_one_line(str(ids[0]))[:60]})"
        for what, ids in (("no prediction for", lacking), ("no reference for", unknown))
        if ids
    ]
    if said and policy is Mismatch.error:
        raise UserError(f"{where}: {'; '.join(said)}. mismatch=ignore scores the images that both files have")
    shared = [name for name in truth if name in there]
    if not shared:
        raise UserError(f"{where}: no image is in both files: {'; '.join(said)}")
    return shared, Given(labels, scores, given.digest), [f"left out: {line}" for line in said]


def _take(found: Given, where: str, item: Mapping[str, Any], option: str) -> None:
    key = next((key for key in ID_KEYS if key in item), None)
    if key is None:
        raise UserError(f"{where}: no id: none of {', '.join(ID_KEYS)} but {on_one_line(', '.join(item))[:80]}")
    name = image_id(item[key], where, key)
    again = item.get("again", False)
    label_key = next((each for each in LABEL_KEYS if each in item and each != key), None)
    score_key = next((each for each in SCORE_KEYS if isinstance(item.get(each), dict)), None)
    if label_key is None and score_key is None:
        raise UserError(f"{where}: no label: none of {', '.join((*LABEL_KEYS, *SCORE_KEYS))}; {KNOWN}")
    if (name in found.labels or name in found.scores) and not again:
        raise UserError(f"{where}: the image {on_one_line(str(name))[:60]} is there twice")
    if label_key is not None:
        own = found.labels.setdefault(name, [])
        own += [label for label in _labels(item[label_key], where) if label not in own]
    if score_key is not None:
        found.scores[name] = {str(label): _score(value, where, label) for label, value in item[score_key].items()}


def _labels(value: Any, where: str) -> list[str]:
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if any(isinstance(each, bool) or not isinstance(each, (str, int)) or each == "" for each in listed):
        raise UserError(f"{where}: a label must be text or a whole number, not {on_one_line(str(value))[:60]}")
    return [str(each).strip() for each in listed]


def _score(value: Any, where: str, label: str) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        shown = on_one_line(str(value))[:40]
        raise UserError(f"{where}: the score of {on_one_line(str(label))[:40]} is {shown}, no number")
    return number


def _refuse_gaps(found: Given, path: Path, option: str) -> None:
    """UserError where images have scores of different labels, or some have none."""
    names = list(next(iter(found.scores.values())))
    for name, scores in found.scores.items():
        if scores.keys() != set(names):
            other = next(iter(scores.keys() ^ set(names)))
            raise UserError(f"{option}={path}: the image {name} and others differ in having a score of {other!r}")
    if without := [name for name in found.labels if name not in found.scores]:
        raise UserError(f"{option}={path}: {len(without):,} images have no scores and others do (first {without[0]})")
    if not names:
        raise UserError(f"{option}={path}: its scores are of no labels")


# ------------------------------------------------------------------------------------- one file


def _rows(path: Path, data: bytes, option: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of each image."""
    named, name = f"{option}={path}", path.name.lower().removesuffix(".gz")
    if name.endswith((".csv", ".tsv")):
        yield from _table(path, option, "\t" if name.endswith(".tsv") else ",")
        return
    try:
        value = parse_json(data, named)
    except UserError:
        if data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"{" or b"\n" not in data.strip():
            raise
        refused: Refused = []
        yield from _objects((f"{path} line {number}", item) for number, item in json_lines(path, refused))
        if refused:
            raise UserError(f"{option}={refused[0][0]}: {refused[0][1]}") from None
        return
    if isinstance(value, dict) and isinstance(value.get("categories"), list):
        yield from _instances(value, named)
        return
    items = _listed(value, named)
    if twice := keys_again(data, value, len(items)):
        raise UserError(f"{named}: the image {on_one_line(twice[0])[:60]} is there twice")
    yield from _objects((f"{path} {number}", item) for number, item in items)


def _listed(value: Any, named: str) -> list[tuple[Any, Any]]:
    if isinstance(value, dict):
        wrapper = next((key for key in WRAPPERS if isinstance(value.get(key), (list, dict))), None)
        if wrapper is not None and len(value) <= 4:
            return _listed(value[wrapper], named)
        if any(key in value for key in ID_KEYS):  # JSON lines of one line
            return [(1, value)]
        return [
            (name, {"id": name, "scores": item} if isinstance(item, dict) else {"id": name, "labels": item})
            for name, item in value.items()
        ]
    if not isinstance(value, list):
        raise UserError(f"{named} is no list and no object; {KNOWN}")
    return list(enumerate(value, 1))


def _objects(items: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, item in items:
        if not isinstance(item, dict):
            raise UserError(f"{where}: not an object but {on_one_line(str(item))[:60]}")
        yield where, item


def _instances(value: dict[str, Any], named: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The categories in each image that has any."""
    try:
        names = {each["id"]: each["name"] for each in value["categories"]}
        there: dict[Any, dict[str, None]] = {}
        for each in value["annotations"]:
            there.setdefault(each["image_id"], {})[names[each["category_id"]]] = None
    except (KeyError, TypeError) as error:
        raise UserError(f"{named} is no COCO instances file: {on_one_line(repr(error))[:60]}") from None
    for image, labels in there.items():
        yield f"{named} image {image}", {"id": image, "labels": list(labels)}


def _table(path: Path, option: str, delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of `id` and `label`, or of `id` and a score for each of the other columns."""
    refused: Refused = []
    lines = list(text_lines(path, refused))
    if refused:
        raise UserError(f"{option}={refused[0][0]}: {refused[0][1]}")
    rows = csv.reader((line for _, line in lines), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(rows)]
        lower = [name.lower() for name in names]
        if len(set(names)) < len(names):
            raise UserError(f"{option}={path}: a column is there twice: {on_one_line(', '.join(names))[:80]}")
        at = next((lower.index(key) for key in ID_KEYS if key in lower), None)
        if at is None:
            raise UserError(f"{option}={path}: no column of ids among {on_one_line(', '.join(names))[:80]}; {KNOWN}")
        label = next((lower.index(key) for key in LABEL_KEYS if key in lower and lower.index(key) != at), None)
        for cells in rows:
            where = f"{path} line {lines[rows.line_num - 1][0]}"
            if len(cells) != len(names):
                raise UserError(f"{where}: {len(cells)} cells in {len(names)} columns: put quotes around the label")
            text = cells[at].strip()
            identity = int(text) if text.isdecimal() and len(text) < 19 and str(int(text)) == text else text
            if label is not None:
                yield where, {"id": identity, "labels": _cell(cells[label]), "again": True}
            else:
                scores = {name: cells[c] for c, name in enumerate(names) if c != at}
                yield where, {"id": identity, "scores": scores}
    except csv.Error as error:
        raise UserError(f"{option}={path}: {error}: is a quotation mark left open?") from None
    except StopIteration:
        raise UserError(f"{option}={path} is empty") from None


def _cell(text: str) -> Any:
    """A label, or a JSON list of them."""
    if text.strip()[:1] == "[":
        try:
            return parse_json(text.encode(), "cell")
        except UserError:
            return text
    return text
