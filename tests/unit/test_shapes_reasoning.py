"""Drawn statements are as true as they say, the sentence alone says nothing, and the files are NLVR2's."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from functools import partial

import pytest
from PIL import Image

from velm_cli.data.readers import read
from velm_cli.data.shapes_box_words import scattered_statement
from velm_cli.data.shapes_boxes import COLOURS, SIDE, Item, draw_boxes, scattered, towers
from velm_cli.data.shapes_grammar import NOUNS, Group, Scene, plural
from velm_cli.data.shapes_statements import ONE_SCENE, TWO_SCENES
from velm_cli.data.shapes_tower_words import tower_statement
from velm_cli.errors import UserError
from velm_cli.metrics.reason_files import read_statements
from velm_cli.schema import Drawn, NlvrConfig, ShapesConfig


def tower(*colours: str) -> tuple[Item, ...]:
    return tuple(Item("square", colour, 20, 40, 80 - 21 * level) for level, colour in enumerate(colours))


TOWERS = (tower("black", "blue", "blue", "yellow"), tower("yellow"), tower("black", "yellow"))
SCATTERED = (
    (Item("circle", "blue", 10, 90, 40), Item("square", "black", 30, 20, 70)),
    (Item("triangle", "yellow", 20, 80, 80),),
    (Item("circle", "blue", 20, 10, 10), Item("circle", "yellow", 10, 50, 50), Item("square", "black", 20, 30, 60)),
)
TRUTH = {
    tower_statement: (
        TOWERS,
        {
            "there is a tower with a black block at the base": True,
            "there is a tower with a blue block at the top": False,
            "there is a yellow tower": True,
            "there is a blue tower": False,
            "there is a blue block on a blue block": True,
            "there is a blue block below a yellow block": True,
            "there is a yellow block below a blue block": False,
            "there are exactly two towers with a black block at the base": True,
            "there are 2 blue blocks": True,
            "there is no blue block as the base of a tower": True,
            "there is exactly one yellow block as the base of a tower": True,
            "there is no yellow block as the top of a tower": False,
            "there are two towers that has the same base color": True,
            "there are two towers that has the same base color that is not black": False,
            "there are two towers that are the same in height": False,
            "there is a blue block between two black blocks": False,
            "there is a box with 2 items": True,
            "there is a box with three items": False,
            "there is a tower with blocks of all three colors": True,
            "each tower has a yellow block at the top": True,
            "the tower with four blocks has a black block at the base": True,
            "there is a box with only black and blue items": False,
        },
    ),
    scattered_statement: (
        SCATTERED,
        {
            "there is a blue circle": True,
            "there is a blue triangle": False,
            "there are exactly two blue circles": True,
            "there is a box with 3 items": True,
            "there is a box with seven items": False,
            "there is a yellow triangle touching the base": True,
            "there is a yellow triangle touching a corner": True,
            "there is a black square touching a corner": False,
            "there is a blue circle touching the right wall of a box": True,
            "none of the yellow circles are touching any edge": True,
            "none of the black squares are touching any edge": False,
            "there is a box with only yellow items": True,
            "there are two boxes that has the same number of objects": False,
            "there is a box with two circles": True,
        },
    ),
}


@pytest.mark.parametrize("statement", TRUTH, ids=["towers", "scattered"])
def test_rules_say_what_the_words_say(statement):
    world, wanted = TRUTH[statement]
    rng, rules = random.Random(0), {}
    for _ in range(150_000):
        sentence, rule = statement(rng)
        rules.setdefault(sentence, rule)
    assert set(wanted) - set(rules) == set()
    assert {sentence: rules[sentence](world) for sentence in wanted} == wanted


def test_pictures_look_as_their_facts_say():
    picture = draw_boxes(SCATTERED)
    assert picture.size == (400, 100)
    assert picture.getpixel((95, 45)) == (0, 153, 255) and picture.getpixel((35, 85)) == (0, 0, 0)
    assert picture.getpixel((150 + 90, 95)) == (255, 255, 0) and picture.getpixel((300 + 40, 70)) == (0, 0, 0)
    assert picture.getpixel((125, 50)) == (128, 128, 128) and picture.getpixel((150, 5)) == (211, 211, 211)
    for seed in range(200):
        rng = random.Random(seed)
        assert all(1 <= len(each) <= 4 for each in towers(rng))
        for box in scattered(rng):
            assert 1 <= len(box) <= 7 and all(0 <= item.x <= SIDE - item.side for item in box)
            assert {item.colour for item in box} <= set(COLOURS)


SHAPES = {form: shape for shape, nouns in NOUNS.items() for noun in nouns for form in (noun, plural(noun))}
COUNTS = {"two": 2, "three": 3, "four": 4, "five": 5, "one": 1}


def counted(scene: Scene, words: list[str]) -> int:
    """Objects that the words mean: read from the words and the facts alone."""
    colour = next((word for word in words if word in {group.colour for group in ALL}), None)
    shape = next((SHAPES[word] for word in reversed(words) if word in SHAPES), None)
    return sum(g.count for g in scene.groups if colour in (None, g.colour) and shape in (None, g.shape))


def as_read(sentence: str, pair: tuple[Scene, ...]) -> bool:
    words = sentence.split()
    if "same number" in sentence:
        return sum(g.count for g in pair[0].groups) == sum(g.count for g in pair[1].groups)
    if " than " in sentence:
        first, second = sentence.split(" than ")
        return counted(pair[0], first.split()) > counted(pair[0], second.split())
    tail = ("in", "the", "left", "picture")
    own = words[:-4] if words[-1] == "picture" and len(words) > 4 else words
    own = own[:-4] if sentence.endswith("in both pictures together") else own
    counts = [counted(scene, own) for scene in pair]
    if "together" in words:
        return sum(counts) == COUNTS[words[3]]
    if words[:2] == ["both", "pictures"]:
        return all(counts)
    if words[0] == "only":
        return sorted(map(bool, counts)) == [False, True]
    if words[-1] == "picture":
        here, there = counts if words[-2] == tail[2] else counts[::-1]
        return here > there if words[2] == "more" else here < there if words[2] == "fewer" else here > 0
    return counts[0] == COUNTS[words[3]] if "exactly" in words else counts[0] > 0


ALL = [Group(1, "small", colour, shape) for colour in
       ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black") for shape in NOUNS]  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("said")
    sizes = {"num_train": 96, "num_val": 8, "num_test": 24}
    corpora = {
        kind: read(ShapesConfig(root=str(root), examples=kind, **sizes)) for kind in (Drawn.boxes, Drawn.statements)
    }
    return root, sizes, corpora


def test_statements_are_true_of_the_scenes_that_they_name(drawn):
    root, _, _ = drawn
    scenes = json.loads((root / "scenes.json").read_text())
    kinds = Counter()
    for split in ("train", "dev", "test"):
        for line in (root / "statements" / f"{split}.json").read_text().splitlines():
            record = json.loads(line)
            pair = tuple(Scene.from_json(scenes[str(int(name[-16:-4]))]) for name in record["images"])
            assert record["label"] == str(as_read(record["sentence"], pair)), record
            kinds[record["kind"]] += 1
    assert kinds.keys() == {*ONE_SCENE, *TWO_SCENES} and kinds.total() > 500


def test_each_sentence_is_true_of_half_of_its_pictures(drawn):
    for corpus in drawn[2].values():
        assert not corpus.refused
        truths = defaultdict(Counter)
        for example in corpus.examples:
            truths[example.about["group"], example.source][example.targets[0]] += 1
        assert truths and all(counts == {"true": 2, "false": 2} for counts in truths.values())


def test_files_are_read_and_scored_as_nlvr2s(drawn):
    root, sizes, corpora = drawn
    for kind, corpus in corpora.items():
        folder = root / kind.value
        files = {
            "train": str(folder / "train.json"),
            "val": str(folder / "dev.json"),
            "test": str(folder / "test.json"),
        }
        assert read(NlvrConfig(files=files)).examples == corpus.examples
        found, _ = read_statements(folder / "test.json")
        assert found.keys() == {example.id for example in corpus.examples if example.split == "test"}
        stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        assert read(ShapesConfig(root=str(root), examples=kind, **sizes)).examples == corpus.examples
        assert stamps == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}, "nothing is drawn again"
    images = {len(example.images) for example in corpora[Drawn.statements].examples}
    assert images == {1, 2}
    with Image.open(corpora[Drawn.boxes].examples[0].image) as picture:
        assert picture.size == (400, 100)
    captions = read(ShapesConfig(root=str(root), **sizes))
    assert captions.examples.captions_only, "boxes and statements lie beside the scenes"


def test_other_sizes_are_refused_in_a_line(drawn):
    root, sizes, _ = drawn
    with pytest.raises(UserError, match=r"boxes holds others \(num_train=96\): set dataset.root to a new folder"):
        read(ShapesConfig(root=str(root), examples=Drawn.boxes, **(sizes | {"num_train": 100})))
    (root / "boxes" / "records.stamp.json").write_text("{")
    with pytest.raises(UserError, match="is damaged: delete"):
        read(ShapesConfig(root=str(root), examples=Drawn.boxes, **sizes))


def test_the_statements_of_a_set_depend_on_its_scenes_alone():
    pairs = [(Scene((Group(n, "small", "red", "star"),), None, "plain"),) for n in (1, 2, 3, 1)]
    form = partial(ONE_SCENE["count"], pairs)
    assert [form(random.Random(7))[0] for _ in range(2)] == [form(random.Random(7))[0]] * 2
