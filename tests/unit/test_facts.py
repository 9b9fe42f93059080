"""Facts of captions: right for every caption the grammar can say, sensible for whatever a model says."""

from __future__ import annotations

import random
import string

import pytest

from velm_cli.data.shapes_grammar import Group, Scene, make_scene, write_captions
from velm_cli.errors import UserError
from velm_cli.metrics.facts import Facts, extract_facts, facts_table, load_scenes, scene_facts, score_facts

KINDS = ("object", "colour", "count", "size", "relation")
STAR_ABOVE_DISCS = Scene((Group(1, "large", "red", "star"), Group(3, "small", "blue", "circle")), "above", "striped")


@pytest.fixture
def rng() -> random.Random:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")  # shown by pytest when a test fails
    return random.Random(seed)


@pytest.mark.parametrize("part", ["train", "test"])
def test_every_caption_states_the_facts_of_its_scene(part, rng):
    sizes_said = 0
    for _ in range(500):
        scene = make_scene(part, rng)
        truth = scene_facts(scene)
        for caption in write_captions(scene, rng):
            facts = extract_facts(caption)
            assert (facts.objects, facts.colours, facts.counts) == (
                truth.objects,
                truth.colours,
                truth.counts,
            )
            assert facts.relations == truth.relations, caption
            assert facts.sizes <= truth.sizes, caption
            sizes_said += bool(facts.sizes)
    assert 1500 < sizes_said < 2500 * 0.95


def test_scene_facts_by_hand():
    assert scene_facts(STAR_ABOVE_DISCS) == Facts(
        objects=frozenset({"star", "circle"}),
        colours=frozenset({("red", "star"), ("blue", "circle")}),
        counts=frozenset({(1, "star"), (3, "circle")}),
        sizes=frozenset({("large", "star"), ("small", "circle")}),
        relations=frozenset({("star", "above", "circle")}),
    )


@pytest.mark.parametrize(
    "caption",
    [
        "a big red star above three tiny blue discs",
        "three small blue circles are under one large red star",
        "There is a large red star over three small blue discs, on a striped background.",
        "below a big red star we see three small blue circles",
        "A PICTURE OF THREE TINY BLUE DISCS under a big shiny red star <eos>",
    ],
)
def test_paraphrases_state_the_same_facts(caption):
    assert extract_facts(caption) == scene_facts(STAR_ABOVE_DISCS)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("", Facts()),
        ("a man riding a wave on a surfboard", Facts()),
        ("a picture of stars", Facts(objects=frozenset({"star"}))),
        ("a red and a blue", Facts()),
        ("red on a star", Facts(objects=frozenset({"star"}), counts=frozenset({(1, "star")}))),
        ("left of left of above", Facts()),
        ("a ring left of", Facts(objects=frozenset({"ring"}), counts=frozenset({(1, "ring")}))),
        ("the left", Facts()),
        (
            "rings to the right of hearts",
            Facts(objects=frozenset({"ring", "heart"}), relations=frozenset({("heart", "left of", "ring")})),
        ),
        (
            "two two red blue crosses crosses",
            Facts(
                objects=frozenset({"cross"}),
                colours=frozenset({("blue", "cross")}),
                counts=frozenset({(2, "cross")}),
            ),
        ),
    ],
)
def test_odd_captions(caption, expected):
    assert extract_facts(caption) == expected


def test_any_text_is_accepted(rng):
    words = ["a", "two", "red", "star", "left", "of", "above", "the", "on", "boxes", "heart"]
    for _ in range(500):
        extract_facts(" ".join(rng.choices(words, k=rng.randrange(30))))
        extract_facts("".join(rng.choices(string.printable + "é星\u2028", k=rng.randrange(80))))


def test_score_facts_by_hand():
    scenes = {7: STAR_ABOVE_DISCS, 9: Scene((Group(2, "small", "pink", "ring"),), None, "plain")}
    hypotheses = {7: "two red stars left of three red discs", 9: "two pink rings above a black cross"}
    scores = score_facts(hypotheses, scenes)
    assert scores == pytest.approx(
        {
            "object_precision": 3 / 4,
            "object_recall": 3 / 3,
            "colour_precision": 2 / 4,
            "colour_recall": 2 / 3,
            "count_precision": 2 / 4,
            "count_recall": 2 / 3,
            "size_precision": None,
            "size_recall": 0.0,
            "relation_precision": 0.0,
            "relation_recall": 0.0,
        }
    )
    assert list(scores) == [f"{kind}_{score}" for kind in KINDS for score in ("precision", "recall")]
    table = facts_table(scores).splitlines()
    assert [line.split()[0] for line in table] == ["fact", *KINDS]
    assert table[2].split() == ["colour", "0.500", "0.667"]
    assert table[4].split() == ["size", "-", "0.000"]
    assert len({len(line) for line in table}) == 1


def test_own_captions_score_one_and_those_of_other_scenes_do_not(rng):
    scenes = {image_id: make_scene("train", rng) for image_id in range(200)}
    captions = {image_id: write_captions(scene, rng)[0] for image_id, scene in scenes.items()}
    own = score_facts(captions, scenes)
    assert all(own[f"{kind}_precision"] == 1.0 for kind in KINDS)
    assert all(own[f"{kind}_recall"] == 1.0 for kind in KINDS if kind != "size")
    permuted = score_facts({image_id: captions[(image_id + 1) % 200] for image_id in captions}, scenes)
    for kind in KINDS:
        assert permuted[f"{kind}_precision"] < 0.45
        assert permuted[f"{kind}_recall"] < 0.45


def test_nothing_said_has_no_precision_and_no_recall():
    scores = score_facts({1: ""}, {1: STAR_ABOVE_DISCS})
    assert {scores[f"{kind}_precision"] for kind in KINDS} == {None}
    assert {scores[f"{kind}_recall"] for kind in KINDS} == {0.0}
    assert set(score_facts({}, {}).values()) == {None}


def test_user_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="no image 5"):
        score_facts({5: "a star"}, {})
    with pytest.raises(UserError, match="cannot read"):
        load_scenes(tmp_path / "scenes.json")
    for text in (
        "{",
        "[1]",
        '{"x": {}}',
        '{"1": {"groups": [[1]], "relation": null, "background": "plain"}}',
    ):
        (tmp_path / "scenes.json").write_text(text)
        with pytest.raises(UserError, match="not a scenes"):
            load_scenes(tmp_path / "scenes.json")
