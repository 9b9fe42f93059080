"""CHAIR: how often captions name objects that are not in the image.

Scores against references hardly punish an invented object; CHAIR (Rohrbach et al. 2018, "Object Hallucination in
Image Captioning") counts just that, for COCO's 80 categories. An image holds what its instance annotations and its
reference captions name. The table of words (coco_words.py) is velm's own and not the paper's, so these numbers
compare systems scored by velm; they do not compare with published ones.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from velm_cli.errors import UserError
from velm_cli.lines import load_json
from velm_cli.metrics.coco_words import CATEGORIES, LONGEST, MEANINGS
from velm_cli.metrics.result_files import listing
from velm_cli.metrics.scores import ImageId
from velm_cli.metrics.significance import Summands, bootstrap

WORD = re.compile(r"[^\W_]+")
# The end of a text whose next words are not said to be there ("no people", "shaped like a dog").
DENIAL = re.compile(r"\b(no|without( an?| any)?|like an?)$")

Truth = dict[ImageId, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Mention:
    """An object named in a caption: its words, and the categories they may mean, the likeliest first."""

    words: str
    categories: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Counts:
    """What one caption mentions and what its image holds, in numbers."""

    mentions: int
    hallucinated: int  # of the mentions
    objects: int  # categories in the image
    recalled: int  # of these, by the caption


@dataclass(frozen=True, slots=True)
class Hallucination:
    """CHAIR of a set of captions, fractions all; None where it is not defined.

    `chair_i`: hallucinated mentions per mention (a second one of the same object counts again); `chair_s`: captions
    with at least one, per caption; `recall`: the share of the images' categories that their captions mention. `words`
    has the hallucinated words of those images that have any; `summands` are those of the three scores.
    """

    chair_i: float | None
    chair_s: float | None
    recall: float | None
    per_image: dict[ImageId, Counts]
    words: dict[ImageId, tuple[str, ...]]
    summands: dict[str, Summands]


def ground_truth(
    instances_path: Path, references: Mapping[ImageId, Sequence[str]], images: Collection[ImageId]
) -> Truth:
    """The categories in each of `images`: those of COCO's instances_*.json and those its references name.

    A word of several meanings ("bike") adds the likeliest, and only where none of them is known to be there.
    Raises UserError when the file is no such file or does not know one of the images.
    """
    annotated = _read_instances(instances_path)
    unknown = [image for image in images if image not in annotated]
    if unknown:
        raise UserError(
            f"{instances_path} does not know {listing(unknown)}: give the instances file of the split that is "
            "scored (all of Karpathy's val and test are in instances_val2014.json)"
        )
    return {image: _united(annotated[image], references[image]) for image in images}


def chair(hypotheses: Mapping[ImageId, str], truth: Mapping[ImageId, frozenset[str]]) -> Hallucination:
    """Scores one caption an image (tokens separated by spaces, or plain text) against what the images hold."""
    per_image: dict[ImageId, Counts] = {}
    words: dict[ImageId, tuple[str, ...]] = {}
    for image, caption in hypotheses.items():
        found, there = mentions(caption), truth[image]
        invented = tuple(mention.words for mention in found if there.isdisjoint(mention.categories))
        named = {category for mention in found for category in mention.categories}
        per_image[image] = Counts(len(found), len(invented), len(there), len(there & named))
        if invented:
            words[image] = invented
    counts = per_image.values()
    summands = {
        "CHAIR_i": _share((count.hallucinated, count.mentions) for count in counts),
        "CHAIR_s": _share((count.hallucinated > 0, 1) for count in counts),
        "recall": _share((count.recalled, count.objects) for count in counts),
    }
    chair_i, chair_s, recall = (_number(share.total()) for share in summands.values())
    return Hallucination(chair_i, chair_s, recall, per_image, words, summands)


def mentions(caption: str) -> list[Mention]:
    """The objects that a caption says are there, in the order of the text; hyphens part words.

    Neighbours of a common meaning are one mention ("baby elephant", "laptop computer"); what is denied is none.
    """
    words = WORD.findall(caption.lower())
    found: list[Mention] = []
    position = previous_end = 0
    while position < len(words):
        length = _phrase_length(words, position)
        end = position + max(length, 1)
        categories = MEANINGS[tuple(words[position:end])] if length else ()
        if categories and not DENIAL.search(" ".join(words[:position])):
            mention = Mention(" ".join(words[position:end]), categories)
            joined = _joined(found[-1], mention) if found and previous_end == position else None
            if joined:
                found[-1] = joined
            else:
                found.append(mention)
            previous_end = end
        position = end
    return found


def _phrase_length(words: Sequence[str], start: int) -> int:
    """The number of words from `start` on that are the longest phrase of the table; 0 for none."""
    lengths = range(min(LONGEST, len(words) - start), 0, -1)
    return next((length for length in lengths if tuple(words[start : start + length]) in MEANINGS), 0)


def _joined(first: Mention, second: Mention) -> Mention | None:
    """Both as one mention of what they have in common, if they have."""
    common = tuple(category for category in first.categories if category in second.categories)
    return Mention(f"{first.words} {second.words}", common) if common else None


def _united(annotated: set[str], captions: Iterable[str]) -> frozenset[str]:
    there = set(annotated)
    named = [mention.categories for caption in captions for mention in mentions(caption)]
    for categories in sorted(named, key=len):  # what is certain first
        if there.isdisjoint(categories):
            there.add(categories[0])
    return frozenset(there)


def _read_instances(path: Path) -> dict[ImageId, set[str]]:
    """The categories annotated in each image of the file; images without any are there as well."""
    content = load_json(path, _slim)
    try:
        names = {category["id"]: category["name"] for category in content["categories"]}
        objects: dict[ImageId, set[str]] = {image["id"]: set() for image in content["images"]}
        for image, category in content["annotations"]:
            objects[image].add(names[category])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            f"{path} is not an instances file of COCO (an object with images, categories, and annotations that have "
            "an image_id and a category_id): give instances_val2014.json or the like"
        ) from None
    if set(names.values()) != CATEGORIES:
        differing = ", ".join(sorted(map(str, CATEGORIES ^ set(names.values())))[:5])
        raise UserError(
            f"{path} does not have just COCO's 80 categories, which CHAIR needs (it differs in {differing})"
        )
    return objects


def _slim(item: dict[str, Any]) -> Any:
    """Of each object what CHAIR needs: outlines are nearly all of the file and would fill the memory."""
    if "image_id" in item:
        return item["image_id"], item.get("category_id")
    return {key: item[key] for key in ("images", "annotations", "categories", "id", "name") if key in item}


def _share(pairs: Iterable[tuple[float, float]]) -> Summands:
    return Summands(np.array(list(pairs), dtype=float).reshape(-1, 2), _ratio)


def _ratio(sums_RS: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return sums_RS[:, 0] / sums_RS[:, 1]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def hallucination_table(invented: Hallucination) -> str:
    """Objects that the captions name and the images do not hold, with 95 % intervals."""
    rows = ["objects named (velm's word table: not comparable with published CHAIR)"]
    for name, meaning in (
        ("CHAIR_i", "of all mentions: not in the image"),
        ("CHAIR_s", "of all captions: with such a mention"),
        ("recall", "of the images' categories: mentioned"),
    ):
        interval = bootstrap(invented.summands[name])
        error_bars = f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}" if interval else "-"
        value = invented.summands[name].total()
        rows.append(f"{name.replace('_', '-'):<8}{100 * value:>7.1f}   {error_bars:<14}  {meaning}")
    return "\n".join(rows)
