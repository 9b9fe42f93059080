"""The language of `dataset=shapes`: what a scene may hold, and the English that says so.

Drawing (`shapes.py`), captions (here) and the check of a caption's facts (`metrics/facts.py`) must agree
on every word, so all words are listed once, in this file.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

COUNTS = {1: ("a", "one"), 2: ("two",), 3: ("three",)}
SIZES = {"small": ("small", "tiny"), "large": ("large", "big")}
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
NOUNS = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross",),
    "heart": ("heart",),
    "ring": ("ring", "hoop"),
    "diamond": ("diamond",),
}
BACKGROUNDS = {
    "plain": ("plain",),
    "striped": ("striped",),
    "dotted": ("dotted", "spotted"),
    "checkered": ("checkered", "checked"),
}
RELATIONS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
# A scene states its relation in one of two directions; a caption may turn it round.
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

# Combinations of size, colour and shape that are never in train or val; every test scene has one. 16 of
# 128: each colour, shape and pair of the two is still seen, a held-out one only in the other size.
HELD_OUT = tuple(
    (size, colour, shape)
    for c, colour in enumerate(COLOURS)
    for s, shape in enumerate(NOUNS)
    for size, shift in (("small", 0), ("large", 4))
    if (s - c) % 8 == shift
)
ALL_KINDS = tuple((size, colour, shape) for size in SIZES for colour in COLOURS for shape in NOUNS)
SEEN_KINDS = tuple(kind for kind in ALL_KINDS if kind not in HELD_OUT)
TWO_GROUPS_SHARE = 0.8  # share of the scenes with two groups

PICTURES = (("a picture", "the picture"), ("an image", "the image"))
ONE_GROUP = (
    "{a} {ground}",
    "there {is} {a} {ground}",
    "we see {a} {ground}",
    "{picture} of {a}",
    "{picture} of {a} {ground}",
    "{the_picture} shows {a}",
    "{the_picture} shows {a} {ground}",
    "there {is} {a} in {the_picture}",
    "we see {a} in {the_picture}",
)
TWO_GROUPS = (
    "{a} {relation} {b}",
    "{a} {is} {relation} {b}",
    "there {is} {a} {relation} {b}",
    "{relation} {b} there {is} {a}",
    "we see {a} {relation} {b}",
    "{picture} of {a} {relation} {b}",
    "{the_picture} shows {a} {relation} {b}",
)
CAPTIONS_PER_IMAGE = 5
MAX_WORDS = 18
SIZE_SAID = 0.5  # share of the noun phrases that name the size
GROUND_SAID = 0.25  # share of the two-group captions that name the background


@dataclass(frozen=True, slots=True)
class Group:
    """`count` alike objects (1 to 3); the names are keys of the tables above."""

    count: int
    size: str
    colour: str
    shape: str


@dataclass(frozen=True, slots=True)
class Scene:
    """One or two groups; with two, groups[0] stands `relation` ("left of" or "above") groups[1]."""

    groups: tuple[Group, ...]
    relation: str | None
    background: str

    def to_json(self) -> dict[str, Any]:
        """The facts as `scenes.json` holds them; the relation is a (shape, relation, shape) triple."""
        triple = [self.groups[0].shape, self.relation, self.groups[1].shape] if self.relation else None
        groups = [[group.count, group.size, group.colour, group.shape] for group in self.groups]
        return {"groups": groups, "relation": triple, "background": self.background}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Scene:
        """The inverse of `to_json`."""
        relation = data["relation"][1] if data["relation"] else None
        return cls(tuple(Group(*group) for group in data["groups"]), relation, data["background"])


def make_scene(part: str, rng: random.Random) -> Scene:
    """A scene of `part` (train, val, test), uniform but for this: a held-out kind of object in every test
    scene and in no other. Two groups differ in colour and in shape."""
    kinds = ALL_KINDS if part == "test" else SEEN_KINDS
    chosen = [rng.choice(HELD_OUT if part == "test" else SEEN_KINDS)]
    if rng.random() < TWO_GROUPS_SHARE:
        _, colour, shape = chosen[0]
        chosen.append(rng.choice([kind for kind in kinds if kind[1] != colour and kind[2] != shape]))
        rng.shuffle(chosen)
    groups = tuple(Group(rng.randint(1, 3), *kind) for kind in chosen)
    relation = rng.choice(("left of", "above")) if len(groups) == 2 else None
    return Scene(groups, relation, rng.choice(tuple(BACKGROUNDS)))


def plural(noun: str) -> str:
    """`noun` for two or more: boxes, crosses, stars."""
    return noun + ("es" if noun.endswith(("s", "x")) else "s")


def write_captions(scene: Scene, rng: random.Random) -> list[str]:
    """Five different captions of `scene`, lowercase, without punctuation, 6 to 18 words each.

    Each names the count, the colour and the shape of every group, and how two groups stand.
    """
    captions: dict[str, None] = {}  # a set that keeps the order
    while len(captions) < CAPTIONS_PER_IMAGE:
        caption = _write_caption(scene, rng)
        if len(caption.split()) <= MAX_WORDS:
            captions[caption] = None
    return list(captions)


def _write_caption(scene: Scene, rng: random.Random) -> str:
    picture, the_picture = rng.choice(PICTURES)
    ground = f"on a {rng.choice(BACKGROUNDS[scene.background])} background"
    if scene.relation is None:
        first, relation, second = scene.groups[0], "", ""
        template = rng.choice(ONE_GROUP)
    else:
        turned = rng.random() < 0.5
        first, other = reversed(scene.groups) if turned else scene.groups
        relation = rng.choice(RELATIONS[INVERSE[scene.relation] if turned else scene.relation])
        second = _noun_phrase(other, rng)
        template = rng.choice(TWO_GROUPS) + (" {ground}" if rng.random() < GROUND_SAID else "")
    return template.format(
        a=_noun_phrase(first, rng),
        b=second,
        relation=relation,
        ground=ground,
        picture=picture,
        the_picture=the_picture,
        **{"is": "is" if first.count == 1 else "are"},
    )


def _noun_phrase(group: Group, rng: random.Random) -> str:
    """Such as "three tiny blue discs" or "an orange star"."""
    noun = rng.choice(NOUNS[group.shape])
    size = rng.choice(SIZES[group.size]) if rng.random() < SIZE_SAID else None
    return noun_phrase(group, noun, size, rng.choice(COUNTS[group.count]))


def noun_phrase(group: Group, noun: str, size: str | None, count: str) -> str:
    """The group in these words; the noun is in the singular, and `a` becomes `an` where it has to."""
    words = [group.colour, noun if group.count == 1 else plural(noun)]
    if size is not None:
        words.insert(0, size)
    if count == "a" and words[0][0] in "aeiou":
        count = "an"
    return " ".join([count, *words])
