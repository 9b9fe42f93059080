"""Questions about drawn scenes, with answers that only the image gives.

Each kind is balanced: what is asked is drawn as it would be for the other answers, so that the question alone, its
words or its order, says nothing of the answer beyond the share that the kind's answers have. What is asked for and
absent comes from another scene of the same part, for in `test` every scene has a kind of object that training never
shows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from velm_cli.data.shapes_grammar import INVERSE, NOUNS, RELATIONS, Group, Scene, make_scene, plural


@dataclass(frozen=True, slots=True)
class ShapesQuestion:
    """`kind` is one of QUESTION_KINDS; lowercase, without punctuation, as captions are."""

    kind: str
    question: str
    answer: str


def write_questions(scene: Scene, part: str, rng: random.Random) -> list[ShapesQuestion]:
    """Up to eleven questions that the scene has an answer to, all different, balanced over scenes."""
    return [
        ShapesQuestion(kind, question, answer)
        for kind, ask in _KINDS.items()
        for question, answer in ask(scene, part, rng)
    ]


Asked = list[tuple[str, str]]  # questions and answers; none where this scene has none of the kind


def _exist(scene: Scene, part: str, rng: random.Random) -> Asked:
    """One of something that is there, one of something that is not."""
    groups = ((rng.choice(scene.groups), "yes"), (_absent(scene, part, rng), "no"))
    return [(f"is there a {_name(group, rng, 1)}".replace(" a o", " an o"), answer) for group, answer in groups]


def _count(scene: Scene, part: str, rng: random.Random) -> Asked:
    """Counts are drawn uniformly from 1 to 3, so one question in four about something absent makes 0 to 3 alike."""
    counts = [(group, group.count) for group in scene.groups]
    if rng.random() < len(scene.groups) / 3:
        counts.append((_absent(scene, part, rng), 0))
    return [(f"how many {_name(group, rng, 2)} are there", str(count)) for group, count in counts]


def _colour(scene: Scene, part: str, rng: random.Random) -> Asked:
    """Of every group: they differ in shape."""
    return [(f"what colour {_is(group)} the {_noun(group, rng, group.count)}", group.colour) for group in scene.groups]


def _more(scene: Scene, part: str, rng: random.Random) -> Asked:
    """Either order is asked equally often, and so is `fewer`."""
    if len(scene.groups) < 2 or scene.groups[0].count == scene.groups[1].count:
        return []
    first, second = _shuffled(scene.groups, rng)
    word = rng.choice(("more", "fewer"))
    true = (first.count > second.count) == (word == "more")
    return [(f"are there {word} {_name(first, rng, 2)} than {_name(second, rng, 2)}", _yes(true))]


def _relation(scene: Scene, part: str, rng: random.Random) -> Asked:
    """Asked of the axis that the scene is laid out along; once what is true, once the other way round."""
    if scene.relation is None:
        return []
    asked = []
    for true in (True, False):
        first, second = scene.groups
        relation = scene.relation
        if rng.random() < 0.5:  # the same fact said from the other side
            first, second, relation = second, first, INVERSE[relation]
        said = rng.choice(RELATIONS[relation if true else INVERSE[relation]])
        names = _name(first, rng, first.count), _name(second, rng, second.count)
        asked.append((f"{_is(first)} the {names[0]} {said} the {names[1]}", _yes(true)))
    return asked


def _same(scene: Scene, part: str, rng: random.Random) -> Asked:
    """As many of one as of the other, which one scene in three has: of the others every second is left out."""
    if len(scene.groups) < 2:
        return []
    equal = scene.groups[0].count == scene.groups[1].count
    if not equal and rng.random() < 0.5:
        return []
    first, second = _shuffled(scene.groups, rng)
    return [(f"are there as many {_name(first, rng, 2)} as {_name(second, rng, 2)}", _yes(equal))]


_KINDS: dict[str, Callable[[Scene, str, random.Random], Asked]] = {
    "exist": _exist,
    "count": _count,
    "colour": _colour,
    "more": _more,
    "relation": _relation,
    "same": _same,
}
QUESTION_KINDS = tuple(_KINDS)


def _absent(scene: Scene, part: str, rng: random.Random) -> Group:
    """A group of another scene of this part whose colour and shape, together, this one does not have."""
    here = {(group.colour, group.shape) for group in scene.groups}
    while True:
        group = rng.choice(make_scene(part, rng).groups)
        if (group.colour, group.shape) not in here:
            return group


def _name(group: Group, rng: random.Random, count: int) -> str:
    return f"{group.colour} {_noun(group, rng, count)}"


def _noun(group: Group, rng: random.Random, count: int) -> str:
    noun = rng.choice(NOUNS[group.shape])
    return noun if count == 1 else plural(noun)


def _is(group: Group) -> str:
    return "is" if group.count == 1 else "are"


def _shuffled(groups: Sequence[Group], rng: random.Random) -> tuple[Group, Group]:
    first, second = rng.sample(list(groups), 2)
    return first, second


def _yes(true: bool) -> str:
    return "yes" if true else "no"
