"""Scores of replies are those of the packages that define them, over floors of rules that see nothing."""

from __future__ import annotations

import random

import pytest

from velm_cli.errors import UserError
from velm_cli.metrics.chat_scores import last_words, quick_rouge_l, score_replies
from velm_cli.metrics.targets import Target
from velm_cli.schema import MetricsConfig

WORDS = ["the", "a", "cat", "dogs", "ran", "on", "mat,", "is.", "No", "yes", "2", "two", "Running", "blue", "é"]


def texts(rng: random.Random, count: int) -> list[str]:
    return [" ".join(rng.choices(WORDS, k=rng.randint(0, 12))) for _ in range(count)]


def test_equal_to_the_packages_on_random_texts():
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_bleu, corpus_chrf

    rng = random.Random()
    count = 40
    references, hypotheses = texts(rng, count), texts(rng, count)
    hypotheses[:5], references[5] = references[:5], "The two."
    hypotheses[5] = "2"
    truth = {number: Target((text,)) for number, text in enumerate(references)}
    scores = score_replies(truth, dict(enumerate(hypotheses)), MetricsConfig(resamples=100))
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    rouge = [scorer.score(r, h)["rougeL"].fmeasure for r, h in zip(references, hypotheses, strict=True)]
    assert scores["ROUGE-L"] == pytest.approx(sum(rouge) / count, abs=1e-9)
    assert [scores.per_image[n]["ROUGE-L"] for n in range(count)] == pytest.approx(rouge)
    assert scores["BLEU"] == pytest.approx(corpus_bleu(hypotheses, [references]).score / 100, abs=1e-6)
    assert scores["chrF"] == pytest.approx(corpus_chrf(hypotheses, [references]).score / 100, abs=1e-6)
    assert scores["exact"] >= 6 / count and scores.per_image[5]["exact"] == 1
    assert quick_rouge_l([[text] for text in references], hypotheses) == pytest.approx(sum(rouge) / count)
    assert all(low <= scores[key] <= high for key, (low, high) in scores.intervals.items() if low < high)


def test_floors_see_no_image():
    def asked(words: str, reply: str, kind: str) -> Target:
        return Target((reply,), f"user: <image> hello\nassistant: hi\nuser: <image> {words}", kinds={"turns": kind})

    training = [asked("is it red", "no", "2")] * 3 + [asked("how many", "2", "2")] * 2
    truth = {1: asked("is it red", "no", "2"), 2: asked("how many", "2", "2"), 3: asked("what is it", "no", "3")}
    scores = score_replies(truth, {1: "no", 2: "no", 3: ""}, MetricsConfig(resamples=100), training=training)
    assert scores.floors["always 'no'"]["exact"] == pytest.approx(2 / 3)
    assert scores.floors["most frequent reply to the same words"]["exact"] == 1
    assert scores.groups["turns"]["2"] == {"count": 2, "ROUGE-L": 0.5, "exact": 0.5}
    assert any("1 of 3 replies are empty" in line for line in scores.warnings)
    assert any("than the floor" in line for line in scores.warnings)
    assert scores.signature["floors"] == "of the training part"
    with pytest.raises(UserError, match="no prediction for 1 conversation"):
        score_replies(truth, {1: "no", 2: "no"}, MetricsConfig())


def test_what_the_user_said_last():
    assert last_words("system: be brief\nuser: <image> what\nis this?") == "what is this?"
    assert last_words("user: a\nassistant: user: b\nuser: c") == "c"
    assert last_words("") == ""
