"""What a caption of `dataset=shapes` asserts, checked against what the scene holds.

The usual scores compare words with words; here the truth is known, so each assertion is right or wrong.
This tells a model that sees from one that has only learnt how captions sound.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from velm_cli.data.shapes_grammar import (
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    INVERSE,
    NOUNS,
    RELATIONS,
    SIZES,
    Scene,
    plural,
)
from velm_cli.errors import UserError

ADJECTIVES: dict[str, tuple[str, int | str]] = {
    "an": ("count", 1),
    **{word: ("count", count) for count, words in COUNTS.items() for word in words},
    **{word: ("size", size) for size, words in SIZES.items() for word in words},
    **{word: ("colour", word) for word in COLOURS},
}
SHAPES = {form: shape for shape, nouns in NOUNS.items() for noun in nouns for form in (noun, plural(noun))}
# "to the left of" -> "left of": the last one or two words of a phrase carry its meaning.
RELATION_WORDS = {
    tuple(phrase.split()[-len(name.split()) :]): name for name, phrases in RELATIONS.items() for phrase in phrases
}
# Words that end a noun phrase, so that "a picture of red stars" does not count one star. Other unknown
# words do not: "two shiny red stars".
BREAKS = {
    *("and", "of", "with", "in", "on", "at", "to", "the", "there", "is", "are", "we", "see"),
    *("shows", "background", "image", "picture"),
    *(word for words in BACKGROUNDS.values() for word in words),
}


@dataclass(frozen=True, slots=True)
class Facts:
    """The assertions of a caption, or the truth of a scene, in canonical names.

    A relation is stated as "left of" or "above" only: "a right of b" is "b left of a".
    """

    objects: frozenset[str] = frozenset()
    colours: frozenset[tuple[str, str]] = frozenset()  # (colour, shape)
    counts: frozenset[tuple[int, str]] = frozenset()  # (count, shape)
    sizes: frozenset[tuple[str, str]] = frozenset()  # (size, shape)
    relations: frozenset[tuple[str, str, str]] = frozenset()  # (shape, relation, shape)


def extract_facts(caption: str) -> Facts:
    """The facts that `caption` asserts; any text is accepted, and what is not understood asserts nothing."""
    words = re.findall(r"[a-z]+", caption.lower())
    mentions: list[str] = []  # shapes in the order of the text
    asserted: dict[str, set] = {"count": set(), "size": set(), "colour": set()}
    stated: list[tuple[int, str]] = []  # (number of mentions before it, relation)
    pending: dict[str, int | str] = {}  # adjectives that wait for their noun
    for position, word in enumerate(words):
        relation = RELATION_WORDS.get((word,)) or RELATION_WORDS.get(tuple(words[position : position + 2]))
        if relation:
            stated.append((len(mentions), relation))
        if word in ADJECTIVES:
            kind, value = ADJECTIVES[word]
            pending[kind] = value
        elif word in SHAPES:
            mentions.append(SHAPES[word])
            for kind, value in pending.items():
                asserted[kind].add((value, SHAPES[word]))
            pending = {}
        elif relation or word in BREAKS:
            pending = {}
    return Facts(
        objects=frozenset(mentions),
        colours=frozenset(asserted["colour"]),
        counts=frozenset(asserted["count"]),
        sizes=frozenset(asserted["size"]),
        relations=_relate(mentions, stated),
    )


def _relate(mentions: list[str], stated: list[tuple[int, str]]) -> frozenset[tuple[str, str, str]]:
    """Each stated relation holds between the shape before it and the one after it; if it opens the text
    ("above a star there is a ring"), between the second shape and the first."""
    relations = set()
    for before, relation in stated:
        subject, reference = (1, 0) if before == 0 else (before - 1, before)
        if max(subject, reference) < len(mentions):
            relations.add(_canonical(mentions[subject], relation, mentions[reference]))
    return frozenset(relations)


def _canonical(subject: str, relation: str, reference: str) -> tuple[str, str, str]:
    if relation in ("right of", "below"):
        return reference, INVERSE[relation], subject
    return subject, relation, reference


def scene_facts(scene: Scene) -> Facts:
    """Everything a caption of `scene` can rightly assert."""
    groups = scene.groups
    stated = [(groups[0].shape, scene.relation, groups[1].shape)] if scene.relation else []
    return Facts(
        objects=frozenset(group.shape for group in groups),
        colours=frozenset((group.colour, group.shape) for group in groups),
        counts=frozenset((group.count, group.shape) for group in groups),
        sizes=frozenset((group.size, group.shape) for group in groups),
        relations=frozenset(_canonical(*triple) for triple in stated),
    )


def load_scenes(path: Path) -> dict[int, Scene]:
    """The scenes of a `scenes.json` by image id; UserError if it is absent or not such a file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {int(image_id): Scene.from_json(scene) for image_id, scene in content.items()}
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): prepare dataset=shapes first") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise UserError(f"{path} is not a scenes.json of dataset=shapes: write it anew") from error


def score_facts(hypotheses: Mapping[Any, str], scenes: Mapping[int, Scene]) -> dict[str, float | None]:
    """Micro-averaged precision and recall (0 to 1) of each kind of fact over all hypotheses.

    Keys are "object_precision", "object_recall", then the same for colour, count, size and relation;
    None where nothing was asserted (precision) or nothing was there (recall). References leave out many
    sizes, so read size by its precision. Raises UserError when a hypothesis has no scene.
    """
    pairs = []
    for image_id, caption in hypotheses.items():
        if image_id not in scenes:
            raise UserError(f"scenes.json has no image {image_id}: it belongs to another data set")
        pairs.append((extract_facts(caption), scene_facts(scenes[image_id])))
    scores: dict[str, float | None] = {}
    for kind in (field.name for field in fields(Facts)):
        said = [(getattr(claim, kind), getattr(truth, kind)) for claim, truth in pairs]
        right = sum(len(claim & truth) for claim, truth in said)
        claimed, true = sum(len(claim) for claim, _ in said), sum(len(truth) for _, truth in said)
        name = kind.removesuffix("s")
        scores[f"{name}_precision"] = right / claimed if claimed else None
        scores[f"{name}_recall"] = right / true if true else None
    return scores


def facts_table(scores: Mapping[str, float | None]) -> str:
    """`scores` as aligned text, one kind of fact a line."""
    lines = [f"{'fact':<10}{'precision':>10}{'recall':>10}"]
    for kind in (field.name.removesuffix("s") for field in fields(Facts)):
        values = [scores[f"{kind}_{score}"] for score in ("precision", "recall")]
        lines.append(f"{kind:<10}" + "".join(f"{'-' if v is None else format(v, '.3f'):>10}" for v in values))
    return "\n".join(lines)
