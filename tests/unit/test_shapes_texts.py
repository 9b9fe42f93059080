"""The toy language and the summaries of drawn scenes: what they say is true, and cannot be had by copying."""

from __future__ import annotations

import random

from velm_cli.data.shapes_grammar import INVERSE, Group, Scene, make_scene
from velm_cli.data.shapes_summaries import described
from velm_cli.data.shapes_translations import TOY_RELATIONS, translated

SCENE = Scene((Group(2, "large", "red", "circle"), Group(1, "small", "blue", "ring")), "left of", "dotted")


def test_toy_sentences_agree_and_put_the_verb_last():
    found = {translated(SCENE, random.Random(seed))["toy"] for seed in range(200)}
    assert "kurloj rugoj du ringa cerula unu sinistre estaj" in found
    assert "ringa cerula malgranda unu kurloj rugoj grandoj du destre fono punta sur esta" in found
    assert len(found) == 2**4, "two orders, sizes said or not, background said or not"
    for sentence in found:
        assert sentence.split()[-1] == ("estaj" if sentence.startswith("kurloj") else "esta")


def test_both_languages_say_the_same_and_share_no_word():
    rng = random.Random("toy")
    for _ in range(300):
        scene = make_scene("train", rng)
        pair = translated(scene, rng)
        words = set(pair["en"].split())
        assert not words & set(pair["toy"].split())
        for group in scene.groups:
            assert group.colour in words
        if scene.relation is None:
            assert not set(TOY_RELATIONS.values()) & set(pair["toy"].split())
        else:
            said = {TOY_RELATIONS[scene.relation], TOY_RELATIONS[INVERSE[scene.relation]]}
            assert len(said & set(pair["toy"].split())) == 1


def test_a_summary_joins_what_no_sentence_says_alone():
    rng = random.Random("summaries")
    for _ in range(200):
        row = described(make_scene("train", rng), rng)
        assert row["highlights"] not in row["article"]
        assert row["article"].count(".") >= 6
    row = described(SCENE, random.Random(0))
    assert row["highlights"] == "two red circles left of a blue ring"
    assert "The number of shapes that are a circle is two." in row["article"]
    assert described(SCENE, random.Random(0)) == row
