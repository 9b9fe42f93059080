"""What a caption of moving scenes asserts, checked against what moves: of each object, its motion and its speed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from velm_cli.data.shapes_grammar import COLOURS, NOUNS
from velm_cli.data.shapes_motion import SAYS, STEPS, Moving
from velm_cli.errors import UserError

SHAPES = {noun: shape for shape, nouns in NOUNS.items() for noun in nouns}
MOTIONS = {phrase: motion for motion, phrases in SAYS.items() for phrase in phrases}
SPLIT = re.compile(r"\b(?:and|while)\b")


def load_clips(path: Path) -> dict[str, list[Moving]]:
    """By the clip's id what its objects do; UserError where the file is damaged."""
    try:
        clips = json.loads(path.read_text(encoding="utf-8"))
        return {name: [Moving(*each) for each in objects] for name, objects in clips.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({error}): delete its folder, and preprocess draws the clips again"
        ) from None


def asserted(caption: str) -> list[Moving]:
    """What a caption says of each object that it names by colour and shape; "" of what it leaves open."""
    found = []
    for phrase in SPLIT.split(caption.lower()):
        words = phrase.split()
        colour = next((word for word in words if word in COLOURS), "")
        shape = next((SHAPES[word] for word in words if word in SHAPES), "")
        motion = next((name for said, name in MOTIONS.items() if f" {said} " in f" {' '.join(words)} "), "")
        if colour and shape:
            found.append(Moving(colour, shape, motion, next((word for word in words if word in STEPS), "")))
    return found


def score_motion(captions: Mapping[str, str], clips: Mapping[str, Sequence[Moving]]) -> dict[str, float | None]:
    """Shares of all objects of the captioned clips: `named` by colour and shape; of which the right `motion` is said,
    and, of those that go somewhere, the right `speed`. An object is known by its colour, which no other of its clip
    has; what is not said is wrong. `objects`: their number."""
    named, motion, speed, movers, number = 0, 0, 0, 0, 0
    for name, caption in captions.items():
        said = {each.colour: each for each in asserted(caption)}
        for true in clips[str(name)]:
            claim = said.get(true.colour)
            number += 1
            movers += bool(true.speed)
            if claim is not None:
                named += claim.shape == true.shape
                motion += claim.motion == true.motion
                speed += bool(true.speed) and claim.speed == true.speed
    return {
        "objects": float(number),
        "named": named / number if number else None,
        "motion": motion / number if number else None,
        "speed": speed / movers if movers else None,
    }
