"""Statements about the towers of `shapes_boxes.py`, as those of `shapes_box_words.py` are about scattered items."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

from velm_cli.data.shapes_box_words import (
    NUMBERS,
    SIMPLE,
    WITH,
    OfBox,
    Test,
    amount,
    box_exists,
    how_many,
    numeral,
    of_colour,
    there,
    touching,
)
from velm_cli.data.shapes_boxes import COLOURS, HIGHEST, Box, World

BASE, TOP = ("at the base", "at the bottom"), ("at the top", "on the top", "at the top")
ABOVE, BELOW = ("above", "over", "on"), ("below", "under", "bellow")


def tower_statement(rng: random.Random) -> tuple[str, Test]:
    return _simple_tower(rng) if rng.random() < SIMPLE else rng.choice(TOWER_FORMS)(rng)


def _simple_tower(rng: random.Random) -> tuple[str, Test]:
    """One fact of one tower, always in the same words."""
    colour, count, kind = rng.choice(COLOURS), rng.randint(1, HIGHEST), rng.randrange(4)
    sentence, has = {
        0: (f"there is a tower with a {colour} block at the base", lambda tower: tower[0].colour == colour),
        1: (f"there is a tower with a {colour} block at the top", lambda tower: tower[-1].colour == colour),
        2: (f"there is a tower with {NUMBERS[count]} block{'s' * (count > 1)}", lambda tower: len(tower) == count),
        3: (f"there is a {colour} tower", lambda tower: all(block.colour == colour for block in tower)),
    }[kind]
    return sentence, lambda world: any(map(has, world))


def _relation(rng: random.Random) -> tuple[str, str, str, Callable[[Box], int]]:
    """Colour, words and colour of two blocks that stand on each other, and how often a tower has that."""
    first, second = rng.choice(COLOURS), rng.choice(COLOURS)
    above = rng.random() < 0.65
    upper, lower = (first, second) if above else (second, first)

    def found(tower: Box) -> int:
        return sum(low.colour == lower and high.colour == upper for low, high in pairwise(tower))

    return first, rng.choice(ABOVE if above else BELOW), second, found


def _blocks(rng: random.Random) -> tuple[str, OfBox]:
    """`exactly three blocks`"""
    said, count, allowed = amount(rng, HIGHEST)
    said = said.replace("a", "one", 1) if said == "a" else said
    if rng.random() < 0.1 and count < HIGHEST:
        said, allowed = f"more than {numeral(rng, count)}", lambda found: found > count
    elif not said.startswith(("at", "exactly", "only", "more")):
        allowed = lambda found: found == count  # noqa: E731 - "with four blocks" has four
    return f"{said} block{'s' * (count > 1)}", lambda tower: allowed(len(tower))


def _tower_has(rng: random.Random) -> tuple[str, OfBox]:
    """What follows `a tower with`."""
    colour = rng.choice(COLOURS)
    match rng.randrange(11):
        case 0 | 1:
            return f"a {colour} block {rng.choice(BASE)}", lambda tower: tower[0].colour == colour
        case 2 | 3:
            return f"a {colour} block {rng.choice(TOP)}", lambda tower: tower[-1].colour == colour
        case 4:
            return _blocks(rng)
        case 5:
            said, count, allowed = amount(rng, 3)
            return (
                f"{said} {colour} block{'s' * (count > 1)}",
                lambda tower: allowed(how_many(tower, of_colour(colour))),
            )
        case 6:
            first, between, second, found = _relation(rng)
            return f"a {first} block {between} a {second} block", lambda tower: found(tower) > 0
        case 7:
            words = rng.choice((f"only {colour} blocks", f"blocks of {colour} color only", f"only {colour} block"))
            return words, lambda tower: all(block.colour == colour for block in tower)
        case 8:
            return "blocks of all three colors", lambda tower: len({block.colour for block in tower}) == 3
        case 9:
            count = rng.randint(2, 3)
            words = f"{numeral(rng, count)} {colour} blocks stacked together"

            def stacked(tower: Box) -> bool:
                starts = range(len(tower) - count + 1)
                return any(all(block.colour == colour for block in tower[at : at + count]) for at in starts)

            return words, stacked
        case _:
            number, word = rng.choice(((1, "second"), (2, "third")))
            from_top = rng.random() < 0.3
            place = -1 - number if from_top else number
            words = f"a {colour} block as {word} block" if not from_top else f"a {colour} {word} block from the top"
            return words, lambda tower: len(tower) > number and tower[place].colour == colour


def _tower_exists(rng: random.Random) -> tuple[str, Test]:
    said, count, allowed = amount(rng, 2)
    words, has = _tower_has(rng)
    more = rng.random()
    if more < 0.35:  # of towers of a given height
        height, high = _blocks(rng)
        joined, other = f"{height} {rng.choice(('having', 'with', 'and it has', 'and'))} {words}", has
        words, has = joined, lambda tower: high(tower) and other(tower)
    begin = there(said, count, "tower", "towers")
    if rng.random() < 0.15:
        begin = f"{said if said != 'a' else 'at least one'} tower{'s' * (count > 1)}"
        sentence = f"{begin} {'has' if count == 1 else 'have'} {words}"
    else:
        sentence = f"{begin} {rng.choice(WITH) if count == 1 else rng.choice(('with', 'that has', 'with'))} {words}"
    return sentence, lambda world: allowed(sum(map(has, world)))


def _no_or_each_tower(rng: random.Random) -> tuple[str, Test]:
    words, has = _tower_has(rng)
    if rng.random() < 0.5:
        return f"there is no tower with {words}", lambda world: not any(map(has, world))
    return f"each tower has {words}", lambda world: all(map(has, world))


def _block_place(rng: random.Random) -> tuple[str, Test]:
    """`there is exactly one black block as the base of a tower with two blocks`"""
    colour, base = rng.choice(COLOURS), rng.random() < 0.5
    place = 0 if base else -1
    words, high = _blocks(rng)
    tail = f" with {words}" if (tall := rng.random() < 0.45) else ""

    def found(world: World) -> int:
        return sum(tower[place].colour == colour and (not tall or high(tower)) for tower in world)

    kind = rng.randrange(4)
    said, allowed = {
        0: ("a", lambda count: count >= 1),
        1: ("at least one", lambda count: count >= 1),
        2: (rng.choice(("exactly one", "only one")), lambda count: count == 1),
        3: ("no", lambda count: count == 0),
    }[kind]
    sentence = f"there is {said} {colour} block as the {'base' if base else 'top'} of a tower{tail}"
    return sentence, lambda world: allowed(found(world))


def _block_relation(rng: random.Random) -> tuple[str, Test]:
    first, between, second, found = _relation(rng)
    kind = rng.randrange(5)
    tail = f"{first} block {between} a {second} block"
    if kind == 0:
        return f"there is no {tail}", lambda world: not any(map(found, world))
    if kind == 1:
        return (
            f"there are {rng.choice(('two', '2'))} towers with a {tail}",
            lambda world: sum(found(tower) > 0 for tower in world) >= 2,
        )
    return f"there is {rng.choice(('a', 'a', 'at least one'))} {tail}", lambda world: any(map(found, world))


def _block_count(rng: random.Random) -> tuple[str, Test]:
    colour = rng.choice(COLOURS)
    said, count, allowed = amount(rng, 5)
    sentence = there(said, count, f"{colour} block", f"{colour} blocks")
    return sentence, lambda world: allowed(sum(how_many(tower, of_colour(colour)) for tower in world))


def _the_tower(rng: random.Random) -> tuple[str, Test]:
    height = rng.randint(1, HIGHEST)
    words, has = _tower_has(rng)
    high = f"{NUMBERS[height]} block{'s' * (height > 1)}"
    begin = rng.choice((f"the tower with {high} has", f"there is a {high} tower with"))
    return f"{begin} {words}", lambda world: any(len(tower) == height and has(tower) for tower in world)


def _tower_colour(rng: random.Random) -> tuple[str, Test]:
    """`there is a blue tower with only two blocks`"""
    colour = rng.choice(COLOURS)
    words, high = _blocks(rng)
    tail = f" with {words}" if (tall := rng.random() < 0.4) else ""

    def fits(tower: Box) -> bool:
        return all(block.colour == colour for block in tower) and (not tall or high(tower))

    return f"there is a {colour} tower{tail}", lambda world: any(map(fits, world))


def _two_towers(rng: random.Random) -> tuple[str, Test]:
    kind, colour = rng.randrange(5), rng.choice(COLOURS)
    if kind == 0:
        sentence, key = rng.choice(("there are two towers that are the same in height",)), len
        return sentence, lambda world: len(set(map(key, world))) < len(world)
    if kind in (1, 2):
        base = kind == 1
        place, word = (0, "base") if base else (-1, "top")
        unlike = rng.random() < 0.5
        tail = f" that is not {colour}" if unlike else ""

        def alike(world: World) -> bool:
            counts = Counter(tower[place].colour for tower in world)
            return any(count >= 2 for each, count in counts.items() if not (unlike and each == colour))

        return f"there are two towers that has the same {word} color{tail}", alike
    place, word = rng.choice(((0, "base"), (-1, "top")))
    if kind == 3:
        said = f"there are two towers that the {word} are {colour}"
        return said, lambda world: sum(tower[place].colour == colour for tower in world) >= 2
    said = f"the {word} of a tower is {colour}"
    return said, lambda world: any(tower[place].colour == colour for tower in world)


def _between(rng: random.Random) -> tuple[str, Test]:
    middle, around = rng.choice(COLOURS), rng.choice(COLOURS)

    def fits(tower: Box) -> bool:
        return any(
            tower[at].colour == middle and tower[at - 1].colour == tower[at + 1].colour == around
            for at in range(1, len(tower) - 1)
        )

    return f"there is a {middle} block between two {around} blocks", lambda world: any(map(fits, world))


def _tower_box(rng: random.Random) -> tuple[str, Test]:
    return box_exists(rng, ())


def _tower_touching(rng: random.Random) -> tuple[str, Test]:
    return touching(rng, (), 3)


TOWER_FORMS = (
    *(_tower_exists,) * 8, _no_or_each_tower, *(_block_place,) * 4, *(_block_relation,) * 3, *(_block_count,) * 2,
    *(_the_tower,) * 2, _tower_colour, *(_two_towers,) * 2, _between, *(_tower_box,) * 5, _tower_touching,
)  # fmt: skip
