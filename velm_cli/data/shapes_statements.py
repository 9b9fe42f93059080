"""Statements about drawn scenes, each with the rule that tells whether it is true: of one scene, and of two together.

What a statement names is drawn from the scenes that it is about, so that in `test` it is of kinds of objects that
training never shows; `balanced` (shapes_reasoning.py) then keeps what half of the pictures of a set make true.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from velm_cli.data.shapes_grammar import NOUNS, Group, Scene, plural

Pair = tuple[Scene, ...]  # one scene, or the left and the right one
Rule = Callable[[Pair], bool]
Form = Callable[[Sequence[Pair], random.Random], tuple[str, Rule]]

NUMBERS = ("no", "one", "two", "three", "four", "five")
SIDES = ("left", "right")


# ------------------------------------------------------------------------------------------ words


def _group(scenes: Sequence[Pair], rng: random.Random) -> Group:
    return rng.choice(rng.choice(rng.choice(scenes)).groups)


def _named(group: Group, rng: random.Random, count: int, *, colour: bool, shape: bool = True) -> str:
    noun = rng.choice(NOUNS[group.shape]) if shape else "shape"
    noun = noun if count == 1 else plural(noun)
    return f"{group.colour} {noun}" if colour else noun


def _a(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _count(scene: Scene, like: Group, *, colour: bool, shape: bool = True) -> int:
    return sum(
        group.count
        for group in scene.groups
        if (not colour or group.colour == like.colour) and (not shape or group.shape == like.shape)
    )


def _what(rng: random.Random) -> dict[str, bool]:
    """Which of colour and shape a statement names."""
    return rng.choice(({"colour": True}, {"colour": True}, {"colour": False}, {"colour": True, "shape": False}))


# ------------------------------------------------------------------------------------------ one scene


def _there_is(scenes: Sequence[Pair], rng: random.Random) -> tuple[str, Rule]:
    like, what = _group(scenes, rng), _what(rng)
    sentence = f"there is {_a(_named(like, rng, 1, **what))}"
    return sentence, lambda pair: _count(pair[0], like, **what) > 0


def _there_are(scenes: Sequence[Pair], rng: random.Random) -> tuple[str, Rule]:
    like, what = _group(scenes, rng), _what(rng)
    count = rng.randint(1, 3)
    said = f"exactly {NUMBERS[count]} {_named(like, rng, count, **what)}"
    return f"there {'is' if count == 1 else 'are'} {said}", lambda pair: _count(pair[0], like, **what) == count


def _more_here(scenes: Sequence[Pair], rng: random.Random) -> tuple[str, Rule]:
    first, second = _two_groups(scenes, rng)
    words = _named(first, rng, 2, colour=True), _named(second, rng, 2, colour=True)
    return (
        f"there are more {words[0]} than {words[1]}",
        lambda pair: _count(pair[0], first, colour=True) > _count(pair[0], second, colour=True),
    )


def _two_groups(scenes: Sequence[Pair], rng: random.Random) -> tuple[Group, Group]:
    """Of one scene where one has two; in either order."""
    rich = [scene for pair in scenes for scene in pair if len(scene.groups) == 2]
    groups = rng.choice(rich).groups if rich else (_group(scenes, rng), _group(scenes, rng))
    first, second = rng.sample(list(groups), 2)
    return first, second


# ------------------------------------------------------------------------------------------ two scenes


def _both(scenes: Sequence[Pair], rng: random.Random) -> tuple[str, Rule]:
    like, what = _group(scenes, rng), rng.choice(({"colour": False}, {"colour": True, "shape": False}))
    said = _named(like, rng, 1, **what)
    return f"both pictures show {_a(said)}", lambda pair: all(_count(scene, like, **what) for scene in pair)


def _one_of(scenes: Sequence[Pair], rng: random.Random) -> tuple[str, Rule]:
    like, what = _group(scenes, rng), _what(rng)
    said = _named(like, rng, 1, **what)
    return (
        f"only one of the pictures shows {_a(said)}",
        lambda pair: sum(_count(scene, like, **what) > 0 for scene in pair) == 1,
    )


def _on_a_side(scenes: Sequence[Pair], rng: random.Random) -> tuple[str, Rule]:
    like, what, side = _group(scenes, rng), _what(rng), rng.randrange(2)
    said = f"there is {_a(_named(like, rng, 1, **what))} in the {SIDES[side]} picture"
    return said, lambda pair: _count(pair[side], like, **what) > 0


def _more_there(scenes: Sequence[Pair], rng: random.Random) -> tuple[str, Rule]:
    like, what, side = _group(scenes, rng), _what(rng), rng.randrange(2)
    word = rng.choice(("more", "fewer"))
    more = side if word == "more" else 1 - side
    said = f"there are {word} {_named(like, rng, 2, **what)} in the {SIDES[side]} picture"
    return said, lambda pair: _count(pair[more], like, **what) > _count(pair[1 - more], like, **what)


def _as_many(scenes: Sequence[Pair], rng: random.Random) -> tuple[str, Rule]:
    return (
        "both pictures show the same number of shapes",
        lambda pair: len({sum(group.count for group in scene.groups) for scene in pair}) == 1,
    )


def _together(scenes: Sequence[Pair], rng: random.Random) -> tuple[str, Rule]:
    like, what = _group(scenes, rng), rng.choice(({"colour": False}, {"colour": True, "shape": False}))
    count = rng.randint(2, 5)
    said = f"there are exactly {NUMBERS[count]} {_named(like, rng, 2, **what)} in both pictures together"
    return said, lambda pair: sum(_count(scene, like, **what) for scene in pair) == count


ONE_SCENE: dict[str, Form] = {"exist": _there_is, "count": _there_are, "more": _more_here}
TWO_SCENES: dict[str, Form] = {
    "both": _both,
    "only one": _one_of,
    "side": _on_a_side,
    "more on a side": _more_there,
    "same number": _as_many,
    "together": _together,
}
