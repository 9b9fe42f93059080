"""Sentences about drawn scenes with their translation into a toy language, as JSON lines that the reader of Multi30k
reads.

The toy language says the same in another order: the noun first, its adjectives and number behind it, the relation and
the verb last. Adjectives agree with the noun's class (its last vowel) and number (-j), so no word can be translated
without the others. English has several words where it has one.
"""

from __future__ import annotations

import random
from pathlib import Path

from velm_cli.data.shapes_grammar import (
    BACKGROUNDS,
    COUNTS,
    INVERSE,
    NOUNS,
    RELATIONS,
    SIZE_SAID,
    SIZES,
    Group,
    Scene,
    noun_phrase,
)
from velm_cli.data.shapes_text_files import write_pairs

FOLDER = "translations"
VERSION = 1
ENGLISH, TOY = "en", "toy"
# fmt: off
TOY_NOUNS = {
    "circle": "kurlo", "square": "kvada", "triangle": "trile", "star": "stelo", "cross": "kruca", "heart": "kore",
    "ring": "ringa", "diamond": "diamo",
}
TOY_COLOURS = {
    "red": "rug", "orange": "oranz", "yellow": "flav", "green": "verd", "blue": "cerul", "purple": "purpur",
    "pink": "roz", "black": "nigr",
}
# fmt: on
TOY_SIZES = {"small": "malgrand", "large": "grand"}
TOY_COUNTS = {1: "unu", 2: "du", 3: "tri"}
TOY_RELATIONS = {"left of": "sinistre", "right of": "destre", "above": "supre", "below": "sube"}
TOY_BACKGROUNDS = {"plain": "plata", "striped": "stria", "dotted": "punta", "checkered": "skaka"}
FRAMES = ("{a} {relation} {b}", "there {is} {a} {relation} {b}", "{relation} {b} there {is} {a}")
ALONE = ("there {is} {a}", "we see {a}")
GROUND_SAID = 0.5


def write_shapes_translations(root: Path, draw_seed: int) -> Path:
    """The folder with the pairs of the scenes of `root`, written where they are not there. A sentence a scene."""
    return write_pairs(root, FOLDER, translated, version=VERSION, draw_seed=draw_seed)


def translated(scene: Scene, rng: random.Random) -> dict[str, str]:
    """A sentence that is true of the scene, in both languages."""
    groups = list(scene.groups)
    relation = scene.relation
    if relation is not None and rng.random() < 0.5:
        groups.reverse()
        relation = INVERSE[relation]
    sizes = [rng.random() < SIZE_SAID for _ in groups]
    phrases = [_english(group, said, rng) for group, said in zip(groups, sizes, strict=True)]
    toy = [_toy(group, said) for group, said in zip(groups, sizes, strict=True)]
    is_said = "is" if groups[0].count == 1 else "are"
    if relation is None:
        english, ending = rng.choice(ALONE).format(a=phrases[0], **{"is": is_said}), ""
    else:
        words = rng.choice(RELATIONS[relation])
        english = rng.choice(FRAMES).format(a=phrases[0], b=phrases[1], relation=words, **{"is": is_said})
        ending = f" {TOY_RELATIONS[relation]}"
    if rng.random() < GROUND_SAID:
        english += f" on a {rng.choice(BACKGROUNDS[scene.background])} background"
        ending = f"{ending} fono {TOY_BACKGROUNDS[scene.background]} sur"
    verb = "esta" if groups[0].count == 1 else "estaj"
    return {ENGLISH: english, TOY: f"{' '.join(toy)}{ending} {verb}"}


def _english(group: Group, says_size: bool, rng: random.Random) -> str:
    size = rng.choice(SIZES[group.size]) if says_size else None
    return noun_phrase(group, rng.choice(NOUNS[group.shape]), size, rng.choice(COUNTS[group.count]))


def _toy(group: Group, says_size: bool) -> str:
    """Noun, colour, size, number: `kurloj rugoj grandoj du` are two large red circles."""
    noun = TOY_NOUNS[group.shape]
    ending = noun[-1] + ("j" if group.count > 1 else "")
    words = [noun[:-1], TOY_COLOURS[group.colour]] + ([TOY_SIZES[group.size]] if says_size else [])
    return " ".join([*(word + ending for word in words), TOY_COUNTS[group.count]])
