"""Translations and summaries: equal to sacrebleu and rouge-score on random texts, floors by hand, intervals."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
import sacrebleu

from velm_cli.errors import UserError
from velm_cli.metrics.nearest import nearest
from velm_cli.metrics.sacre import streams
from velm_cli.metrics.summary_scores import BETWEEN, medoid, pieces_of, rouge_scorer, score_summaries
from velm_cli.metrics.targets import Target
from velm_cli.metrics.translation_scores import moses, score_translations
from velm_cli.schema import MetricsConfig

WORDS = ["A", "a", "dog", "Hund,", "läuft", "running", "runs", "«ja»", "it's", "U.S.", "3.5", "-", "the", "on", "."]


def texts(rng: random.Random, count: int, *, least: int = 0) -> list[str]:
    return [" ".join(rng.choices(WORDS, k=rng.randint(least, 9))) for _ in range(count)]


def near(rng: random.Random, text: str) -> str:
    return " ".join(word if rng.random() < 0.8 else rng.choice(WORDS) for word in text.split())


@pytest.mark.parametrize("seed", range(8))
def test_equal_to_sacrebleu(seed):
    rng = random.Random(f"texts {seed}")
    references = [texts(rng, rng.choice((1, 1, 3)) if seed % 2 else 1, least=1) for _ in range(rng.choice((1, 7, 40)))]
    close = seed != 5
    hypotheses = [near(rng, given[0]) if close else "zzz" for given in references]
    truth = {number: Target(tuple(given), "A b") for number, given in enumerate(references)}
    scores = score_translations(truth, dict(enumerate(hypotheses)), MetricsConfig(resamples=20), language="de")
    listed = streams(references)
    bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()
    assert 100 * scores["BLEU"] == pytest.approx(bleu.corpus_score(hypotheses, listed).score, abs=1e-9)
    assert 100 * scores["chrF"] == pytest.approx(chrf.corpus_score(hypotheses, listed).score, abs=1e-9)
    assert scores.signature["BLEU"] == str(bleu.get_signature())
    assert scores.signature["chrF"] == str(chrf.get_signature())
    plain = sacrebleu.BLEU(tokenize="none", smooth_method="none", force=True)
    lower = [[None if text is None else moses(text, "de") for text in stream] for stream in listed]
    expected = plain.corpus_score([moses(text, "de") for text in hypotheses], lower).score
    assert 100 * scores["BLEU_lc"] == pytest.approx(expected, abs=1e-9)
    for number, (given, text) in enumerate(zip(references, hypotheses, strict=True)):
        alone = sacrebleu.CHRF().corpus_score([text], [[each] for each in given]).score
        assert 100 * scores.per_image[number]["chrF"] == pytest.approx(alone, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_the_nearest_sentence_is_that_of_scikit_learn(seed):
    from sklearn.feature_extraction.text import TfidfVectorizer

    rng = random.Random(f"nearest {seed}")
    known, sentences = texts(rng, rng.choice((1, 5, 60))), texts(rng, 30)
    vectorizer = TfidfVectorizer(token_pattern=r"\w+", ngram_range=(1, 4), use_idf=False)
    known[0] = "Hund"  # scikit-learn wants a word
    cosine = (vectorizer.fit_transform(known) @ vectorizer.transform(sentences).T).toarray().T
    for chosen, row in zip(nearest(sentences, known), cosine, strict=True):
        best = max(row)
        first = next(number for number, value in enumerate(row) if value > best - 1e-12)
        assert row[chosen] == pytest.approx(best, abs=1e-12) and chosen >= first


def test_the_floor_of_who_only_looks_up():
    training = [Target(("ein roter Ball",), "a red ball"), Target(("zwei Hunde", "Hunde"), "two dogs")]
    truth = {1: Target(("zwei Hunde",), "two dogs"), 2: Target(("zwei Katzen und ein Ball",), "a cat")}
    scores = score_translations(truth, {1: "ja", 2: "nein"}, MetricsConfig(resamples=20), training=training)
    assert (
        scores.floors["translation of the nearest training sentence"]["chrF"] > scores.floors["copy the source"]["chrF"]
    )
    assert len(score_translations(truth, {1: "ja", 2: "nein"}, MetricsConfig(resamples=20)).floors) == 1


def test_moses_as_the_papers_prepare_sentences():
    assert moses("Ein Mann, der „Ja“ sagt.", "de") == "ein mann , der &quot; ja &quot; sagt ."
    assert moses("L’homme qu’il a vu", "fr") == "l&apos; homme qu&apos; il a vu"


def test_intervals_floors_and_warnings_of_translations():
    truth = {
        n: Target((f"ein Hund läuft über Gras Nummer {n}",), f"a dog runs on grass number {n}", n) for n in range(9)
    }
    copied = score_translations(truth, {n: target.source for n, target in truth.items()}, MetricsConfig())
    assert copied.floors == {"copy the source": copied.corpus}
    assert any("no better than the floor 'copy the source'" in line for line in copied.warnings)
    right = score_translations(truth, {n: target.references[0] for n, target in truth.items()}, MetricsConfig())
    assert right["BLEU"] == pytest.approx(1) and right.intervals["BLEU"] == pytest.approx((1, 1))
    assert not right.warnings and right.about[3] == {"source": truth[3].source, "image": 3}
    empty = score_translations(truth, dict.fromkeys(truth, ""), MetricsConfig(resamples=0))
    assert empty["BLEU"] == empty["chrF"] == 0 and "9 of 9 translations are empty" in empty.warnings
    with pytest.raises(UserError, match="no prediction for 8 sentences"):
        score_translations(truth, {0: "x"}, MetricsConfig())
    with pytest.raises(UserError, match="no reference for 1 sentence "):
        score_translations({0: Target(())}, {0: "x"}, MetricsConfig())
    with pytest.raises(UserError, match="there are no sentences"):
        score_translations({}, {}, MetricsConfig())


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_rouge_score(seed):
    rng = random.Random(f"summaries {seed}")
    references = [["\n".join(f"{text} ." for text in texts(rng, 2, least=1)) for _ in range(2)] for _ in range(20)]
    hypotheses = [f"{near(rng, given[0])}\nand so on" for given in references]
    truth = {number: Target(tuple(given)) for number, given in enumerate(references)}
    scores = score_summaries(truth, dict(enumerate(hypotheses)), MetricsConfig(resamples=10))
    scorer = rouge_scorer()
    told = [scorer.score_multi(given, text) for given, text in zip(references, hypotheses, strict=True)]
    for key, kind in (("ROUGE-1", "rouge1"), ("ROUGE-2", "rouge2"), ("ROUGE-Lsum", "rougeLsum")):
        assert scores[key] == pytest.approx(sum(each[kind].fmeasure for each in told) / len(told), abs=1e-12)
    assert not scores.floors, "there are no sources to copy from"


def test_sentences_that_change_places_and_floors_of_summaries():
    target = Target(("The cat sat. A dog ran.",), BETWEEN.join(["a cat", "the cat sat", "the cat sat down", "tree"]), 4)
    scores = score_summaries({1: target}, {1: "A dog ran. The cat sat."}, MetricsConfig(resamples=0))
    assert scores["ROUGE-Lsum"] == 1
    assert scores.floors.keys() == {"first sentence", "medoid sentence"}
    assert medoid(pieces_of(target.source)) == "the cat sat"
    document = Target(("x",), " ".join(f"Sentence {n} ends." for n in range(9)))
    assert "lead 3 sentences" in score_summaries({1: document}, {1: "x"}, MetricsConfig(resamples=0)).floors
    assert pieces_of("One. Two! “Three?” four") == ["One.", "Two!", "“Three?”", "four"]
    warned = score_summaries({1: Target(("Männer über Öl",))}, {1: "x"}, MetricsConfig(resamples=0)).warnings
    assert any("takes for blanks" in line for line in warned)


def test_a_log_of_the_console_outlives_rouge_score(tmp_path):
    script = (
        "import logging.config, sys\n"
        "from velm_cli.metrics.summary_scores import rouge_scorer\n"
        "sys.stderr = open('log.txt', 'w')\n"
        "rouge_scorer()\n"
        "logging.config.dictConfig({'version': 1})\n"
        "print('still there', file=sys.__stdout__ if sys.stderr.closed else sys.stderr)\n"
        "log, sys.stderr = sys.stderr, sys.__stderr__\n"
        "logging.config.dictConfig({'version': 1})\n"
        "print(log.closed)\n"
    )
    found = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout == "False\n" and (tmp_path / "log.txt").read_text() == "still there\n"
