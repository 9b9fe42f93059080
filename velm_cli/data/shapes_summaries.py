"""Long descriptions of drawn scenes with a short summary, as JSON lines in the form of CNN/DailyMail.

A description says all that is true of a scene in sentences of changing order, with some that say nothing; the summary
names the groups and how they stand, which no sentence of the description says alone.
"""

from __future__ import annotations

import random
from pathlib import Path

from velm_cli.data.shapes_grammar import BACKGROUNDS, COUNTS, INVERSE, RELATIONS, SIZES, Group, Scene, noun_phrase
from velm_cli.data.shapes_text_files import write_pairs

FOLDER = "summaries"
VERSION = 1
NUMBERS = {1: "one", 2: "two", 3: "three"}
IDLE = (
    "Somebody has drawn this with care.",
    "Nothing here moves.",
    "It takes a moment to see it all.",
    "The edges are sharp.",
    "No words are written in it.",
)
IDLE_SENTENCES = 2


def write_shapes_summaries(root: Path, draw_seed: int) -> Path:
    """The folder with a description and a summary of each scene of `root`, written where they are not there."""
    return write_pairs(root, FOLDER, described, version=VERSION, draw_seed=draw_seed)


def described(scene: Scene, rng: random.Random) -> dict[str, str]:
    """Description and summary of a scene."""
    sentences = [sentence for group in scene.groups for sentence in _of_group(group)]
    sentences.append(f"The background is {rng.choice(BACKGROUNDS[scene.background])}.")
    if scene.relation is not None:
        first, second = (group.shape for group in scene.groups)
        said = scene.relation
        if rng.random() < 0.5:
            first, second, said = second, first, INVERSE[said]
        sentences.append(f"Each {first} is {rng.choice(RELATIONS[said])} the {second}.")
    sentences += rng.sample(IDLE, IDLE_SENTENCES)
    rng.shuffle(sentences)
    phrases = [noun_phrase(group, group.shape, None, COUNTS[group.count][0]) for group in scene.groups]
    summary = phrases[0] if scene.relation is None else f"{phrases[0]} {scene.relation} {phrases[1]}"
    return {"article": " ".join(sentences), "highlights": summary}


def _of_group(group: Group) -> list[str]:
    """What there is of a group, a fact a sentence."""
    return [
        f"The number of shapes that are a {group.shape} is {NUMBERS[group.count]}.",
        f"Each {group.shape} is {group.colour}.",
        f"Each {group.shape} is {SIZES[group.size][0]}.",
    ]
