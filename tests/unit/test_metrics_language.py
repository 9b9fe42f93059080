"""Figures about captions themselves, on cases counted by hand and against the definitions written out."""

from __future__ import annotations

import random

import pytest
from pycocoevalcap.bleu.bleu import Bleu

from velm_cli.metrics.language import describe, diversity_of_sets


def official_bleu_4(references, hypotheses):
    return Bleu(4).compute_score(references, {i: [h] for i, h in hypotheses.items()}, verbose=0)[1][3]


def test_counted_by_hand():
    captions = ["a man on a", "a man on a", "two dogs", ""]
    found = describe(captions, ["one two three", "one"], training=frozenset(["two dogs"]))
    assert found == {
        "words": 2.5,
        "words_p5": pytest.approx(0.3),
        "words_p95": 4.0,
        "reference_words": 2.0,
        "vocabulary": 5.0,
        "distinct_1": 5 / 10,
        "distinct_2": 4 / 7,
        "different": 3 / 4,
        "novel": 3 / 4,
        "bad_endings": 2 / 4,
        "empty": 1 / 4,
    }
    assert describe(captions, captions)["novel"] is None
    assert describe([""], [""])["distinct_2"] is None


def test_sets_of_captions_by_hand():
    sets = {1: ["a cat", "a dog"], 2: ["x y z", "x y z", "x y z"], 3: ["alone"]}
    found = diversity_of_sets(sets, official_bleu_4)
    assert found["sets"] == 2
    assert found["div_1"] == pytest.approx((3 / 4 + 3 / 9) / 2)
    assert found["div_2"] == pytest.approx((2 / 4 + 2 / 9) / 2)


def test_mbleu_is_the_mean_over_captions_and_then_images():
    rng = random.Random()
    sets = {
        image: [" ".join(rng.choices("abcde", k=rng.randint(4, 9))) for _ in range(rng.randint(2, 5))]
        for image in range(6)
    }
    means = []
    for captions in sets.values():
        scores = [
            official_bleu_4({0: captions[:i] + captions[i + 1 :]}, {0: caption})[0]
            for i, caption in enumerate(captions)
        ]
        means.append(sum(scores) / len(scores))
    assert diversity_of_sets(sets, official_bleu_4)["mbleu_4"] == pytest.approx(sum(means) / len(means), abs=1e-12)


def test_without_sets_there_is_nothing_to_say():
    found = diversity_of_sets({1: ["alone"]}, official_bleu_4)
    assert found == {"sets": 0, "div_1": None, "div_2": None, "mbleu_4": None}
