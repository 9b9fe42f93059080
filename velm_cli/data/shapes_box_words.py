"""Statements about pictures of three boxes, in the words in which people made them for NLVR; each with its test.

A form draws a sentence and, from the same draws, the rule that tells whether it is true of a picture. `there is a` and
`there are two` mean at least so many, as people's judgements have it; `exactly` and `only` mean no more.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import combinations

from velm_cli.data.shapes_boxes import COLOURS, HIGHEST, SHAPES, Box, Item, World

Test = Callable[[World], bool]
Count = Callable[[int], bool]
OfItem = Callable[[Item], bool]
OfBox = Callable[[Box], bool]

SIMPLE = 0.5  # share of the drawn statements that are simple: what is learned first
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven")
WITH = ("with", "which has", "having", "that has")
WALLS = {"the wall": None, "the edge": None, "any edge": None, "the base": "base", "the bottom of a box": "base",
         "the right wall of a box": "right", "right wall of a box": "right", "the base edge": "base"}  # fmt: skip
CORNERS = ("a corner", "the corner", "a corner of a box")
TOUCHING = ("touching", "closely touching", "touching")


def scattered_statement(rng: random.Random) -> tuple[str, Test]:
    return _simple_scattered(rng) if rng.random() < SIMPLE else rng.choice(SCATTERED_FORMS)(rng)


def _simple_scattered(rng: random.Random) -> tuple[str, Test]:
    """One fact of one item or box, always in the same words."""
    colour, shape, count = rng.choice(COLOURS), rng.choice(SHAPES), rng.randint(1, 7)

    def fits(item: Item) -> bool:
        return item.colour == colour and item.shape == shape

    kind = rng.randrange(3)
    if kind == 0:
        sentence = f"there is a box with {numeral(rng, count)} item{'s' * (count > 1)}"
        return sentence, lambda world: any(len(box) == count for box in world)
    tail = " touching the base" if (base := kind == 2) else ""
    return f"there is a {colour} {shape}{tail}", lambda world: any(
        fits(item) and (not base or "base" in item.walls) for box in world for item in box
    )


# ------------------------------------------------------------------------------------------ words


def numeral(rng: random.Random, count: int) -> str:
    return rng.choice((str(count), NUMBERS[count]))


def amount(rng: random.Random, most: int) -> tuple[str, int, Count]:
    """`exactly two`, the number in it and what it allows."""
    count = rng.randint(1, most)
    how = rng.choice(("", "", "exactly", "at least", "only", "atleast"))
    said = f"{how} {numeral(rng, count)}".strip()
    if count == 1 and not how and rng.random() < 0.7:
        said = "a"
    if how in ("exactly", "only"):
        return said, count, lambda found: found == count
    return said, count, lambda found: found >= count


def there(said: str, count: int, noun: str, nouns: str) -> str:
    return f"there {'is' if count == 1 else 'are'} {said} {noun if count == 1 else nouns}"


def of_colour(colour: str) -> OfItem:
    return lambda item: item.colour == colour


def how_many(box: Box, fits: OfItem) -> int:
    return sum(map(fits, box))


# ------------------------------------------------------------------------------------------ boxes of either kind


def _box_has(rng: random.Random, shapes: Sequence[str]) -> tuple[str, OfBox]:
    """What follows `a box with`. `shapes`: that an item may be said to have; none: items only."""
    colour, other = rng.sample(COLOURS, 2)
    count = rng.randint(1, 6 if shapes else HIGHEST)
    items = f"{numeral(rng, count)} item{'s' * (count > 1)}"
    match rng.randrange(10 if shapes else 7):
        case 0:
            how = rng.choice(("", "only ", "exactly "))
            return f"{how}{items}", lambda box: len(box) == count
        case 1:
            said, few, allowed = amount(rng, 3)
            words = f"{said} {colour} item{'s' * (few > 1)}"
            return words, lambda box: allowed(how_many(box, of_colour(colour)))
        case 2:
            words = rng.choice((f"only {colour} items", f"items of only {colour} color"))
            return words, lambda box: all(item.colour == colour for item in box)
        case 3:
            words = f"only {colour} and {other} items"
            return words, lambda box: {item.colour for item in box} == {colour, other}
        case 4:
            kinds = rng.randint(1, 3)
            words = "all 3 different colors" if kinds == 3 else f"{numeral(rng, kinds)} different colors"
            if kinds == 1:
                words = "the same color"
            if rng.random() < 0.5:
                return f"items of {words}", lambda box: len({item.colour for item in box}) == kinds
            return (
                f"{items} of {words}",
                lambda box: len(box) == count and len({item.colour for item in box}) == kinds,
            )
        case 5:
            few = rng.randint(1, 3)
            words = f"{items} of which {numeral(rng, few)} {'is' if few == 1 else 'are'} {colour}"
            return words, lambda box: len(box) == count and how_many(box, of_colour(colour)) == few
        case 6:
            if not shapes:
                words = f"{items} and a {colour} item on top"
                return words, lambda box: len(box) == count and box[-1].colour == colour
            few, many = rng.randint(1, 2), rng.randint(1, 2)
            words = f"{numeral(rng, few)} {colour} and {numeral(rng, many)} {other} items"
            return (
                words,
                lambda box: how_many(box, of_colour(colour)) >= few and how_many(box, of_colour(other)) >= many,
            )
        case 7:
            one, two = rng.choice(shapes), rng.choice(shapes)
            words = f"a {colour} {one} and a {other} {two}"
            return (
                words,
                lambda box: (
                    any(item.colour == colour and item.shape == one for item in box)
                    and any(item.colour == other and item.shape == two for item in box)
                ),
            )
        case 8:
            said, few, allowed = amount(rng, 2)
            shape = rng.choice(shapes)
            return (
                f"{said} {colour} {shape}{'s' * (few > 1)}",
                lambda box: allowed(how_many(box, lambda item: item.colour == colour and item.shape == shape)),
            )
        case _:
            said, few, allowed = amount(rng, 3)
            shape = rng.choice(shapes)
            return f"{said} {shape}{'s' * (few > 1)}", lambda box: allowed(
                how_many(box, lambda item: item.shape == shape)
            )


def box_exists(rng: random.Random, shapes: Sequence[str]) -> tuple[str, Test]:
    said, count, allowed = amount(rng, 2)
    words, has = _box_has(rng, shapes)
    noun = rng.choice(("box", "box", "grey box"))
    if rng.random() < 0.08:
        return f"each box has {words}", lambda world: all(map(has, world))
    begin = there(said, count, noun, f"{noun}es")
    return f"{begin} {'with' if rng.random() < 0.8 else rng.choice(WITH)} {words}", lambda world: allowed(
        sum(map(has, world))
    )


def _scattered_box(rng: random.Random) -> tuple[str, Test]:
    return box_exists(rng, SHAPES)


def _things(rng: random.Random, shapes: Sequence[str]) -> tuple[str, str, OfItem]:
    """`black circle`, `black circles` and what is one."""
    colour = rng.choice((*COLOURS, "")) if shapes else rng.choice(COLOURS)
    shape = rng.choice((*shapes, *shapes, "item", "object")) if shapes else rng.choice(("item", "square", "block"))
    noun = f"{colour} {shape}".strip()
    small = bool(shapes) and rng.random() < 0.06
    noun = f"small {noun}" if small else noun

    def fits(item: Item) -> bool:
        return (
            (not colour or item.colour == colour)
            and (shape not in SHAPES or item.shape == shape)
            and (not small or item.side == 10)
        )

    return noun, f"{noun}s", fits


def _thing_count(rng: random.Random) -> tuple[str, Test]:
    noun, nouns, fits = _things(rng, SHAPES)
    said, count, allowed = amount(rng, 4)
    return there(said, count, noun, nouns), lambda world: allowed(sum(how_many(box, fits) for box in world))


def touching(rng: random.Random, shapes: Sequence[str], most: int) -> tuple[str, Test]:
    noun, nouns, fits = _things(rng, shapes)
    said, count, allowed = amount(rng, most)
    place = rng.choice([*WALLS, *CORNERS]) if shapes else rng.choice(("the wall", "the base", "the edge"))
    wall = WALLS.get(place)
    verb, negated = rng.choice(TOUCHING), bool(shapes) and rng.random() < 0.25

    def touches(item: Item) -> bool:
        if place in CORNERS:
            return len(item.walls) >= 2
        return wall in item.walls if wall else bool(item.walls)

    if negated and rng.random() < 0.4:
        sentence = f"none of the {nouns} are {verb} {place}"
        return sentence, lambda world: not any(fits(item) and touches(item) for box in world for item in box)
    word = f"not {verb}" if negated else verb
    begin = there(said, count, noun, nouns)
    return f"{begin} {word} {place}", lambda world: allowed(
        sum(fits(item) and touches(item) is not negated for box in world for item in box)
    )


def _scattered_touching(rng: random.Random) -> tuple[str, Test]:
    return touching(rng, SHAPES, 3)


def _same_number(rng: random.Random) -> tuple[str, Test]:
    return (
        "there are two boxes that has the same number of objects",
        lambda world: any(len(one) == len(other) for one, other in combinations(world, 2)),
    )


SCATTERED_FORMS = (*(_scattered_box,) * 5, *(_thing_count,) * 2, *(_scattered_touching,) * 5, _same_number)
