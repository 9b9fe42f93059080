"""Two systems on the same images: one sign, the interval of the difference against brute force, the sentence."""

from __future__ import annotations

import random

import numpy as np
import pytest

from velm_cli.metrics.captions import score_captions
from velm_cli.metrics.comparison import Difference, as_json, comparison_table, differences, summands_of, verdict
from velm_cli.metrics.overlap import Corpus, bleu
from velm_cli.metrics.scores import read_images, read_summary, save
from velm_cli.metrics.significance import bootstrap_all, mean_of, paired_bootstrap
from velm_cli.metrics.tokenize import PtbTokenizer
from velm_cli.schema import MetricsConfig

WORDS = ["a", "the", "dog", "cat", "man", "runs", "sits", "on", "grass", "near", "red", "old", "house"]


def systems(images: int, seed: int) -> tuple[dict, dict, dict]:
    rng = random.Random(seed)
    references = {i: [" ".join(rng.choices(WORDS, k=7)) for _ in range(3)] for i in range(images)}
    ours = {i: " ".join(group[0].split()[: rng.randint(3, 7)]) for i, group in references.items()}
    theirs = {i: " ".join(rng.choices(WORDS, k=6)) for i in references}
    return references, ours, theirs


def test_the_interval_of_the_difference_is_that_of_brute_force():
    """Each resample scores both systems on the same drawn images, BLEU by counting them all again."""
    images, resamples = 25, 60
    references, ours, theirs = systems(images, 3)
    config = MetricsConfig(names=["bleu", "cider"], resamples=resamples)
    one, other = (score_captions(references, each, config, progress=False) for each in (ours, theirs))
    found = differences(one.summands, other.summands, resamples)

    tokenize = PtbTokenizer(None)
    rng = np.random.default_rng(0)
    drawn = rng.integers(images, size=(resamples, images), dtype=np.int32)
    of_bleu, of_cider = [], []
    for places in drawn.tolist():
        scores = []
        for captions in (ours, theirs):
            again = {n: tokenize(references[place]) for n, place in enumerate(places)}
            answers = dict(enumerate(tokenize([captions[place] for place in places])))
            scores.append(float(bleu(Corpus(again, answers))[0][3]))
        of_bleu.append(scores[0] - scores[1])
        each = [[run.per_image[place]["CIDEr"] for place in places] for run in (one, other)]
        of_cider.append(np.mean(each[0]) - np.mean(each[1]))
    for name, brute in (("Bleu_4", of_bleu), ("CIDEr", of_cider)):
        assert found[name].interval == pytest.approx(tuple(np.percentile(brute, [2.5, 97.5])), abs=1e-9)
        assert found[name].value == pytest.approx(one.corpus[name] - other.corpus[name], abs=1e-12)
    # The systems' own intervals come from the same resamples.
    assert bootstrap_all(one.summands, resamples=resamples) == {n: one.intervals[n] for n in one.summands}


def test_pairing_makes_the_interval_narrow():
    """A system that is better by the same on each image: its difference is sure, however the images vary."""
    rng = np.random.default_rng(5)
    values = rng.normal(1.0, 0.5, 400)
    low, high = paired_bootstrap({"x": mean_of(list(values + 0.01))}, {"x": mean_of(list(values))})["x"]
    assert low == pytest.approx(0.01) == high
    noisy = paired_bootstrap({"x": mean_of(list(values))}, {"x": mean_of(list(rng.permutation(values)))})["x"]
    assert noisy[0] < -0.03 < 0.03 < noisy[1]
    assert paired_bootstrap({"x": mean_of([1.0])}, {"x": mean_of([2.0])})["x"] is None
    assert paired_bootstrap({"x": mean_of([1.0, 2.0])}, {"x": mean_of([2.0, 1.0])}, resamples=0)["x"] is None


def test_a_folder_keeps_what_its_scores_are_made_of(tmp_path):
    references, ours, _ = systems(12, 4)
    scores = score_captions(references, ours, MetricsConfig(names=["bleu", "rouge_l"]), progress=False)
    save(scores, tmp_path, comparison={"verdict": "so"})
    images = read_images(tmp_path)
    for name, summands in scores.summands.items():
        assert np.array_equal(summands_of(images, name).rows_IS, summands.rows_IS)
        assert summands_of(images, name).total() == scores.corpus[name]
    assert summands_of(images, "METEOR") is None and summands_of(images, "CIDEr") is None
    assert read_summary(tmp_path)["comparison"] == {"verdict": "so"}
    older = [{key: value for key, value in image.items() if key != "counts"} for image in images]
    assert summands_of(older, "Bleu_4") is None and summands_of(older, "ROUGE_L") is not None


def test_the_counts_of_a_stranger_are_checked(tmp_path):
    references, ours, _ = systems(3, 4)
    save(score_captions(references, ours, MetricsConfig(names=["bleu"]), progress=False), tmp_path)
    text = (tmp_path / "per_image.jsonl").read_text()
    for evil in ('"bleu": 7', '"bleu": ["x"]', '"bleu": [null]', '"bleu": [1e999]'):
        broken = text.replace('"bleu": [', f'{evil}, "other": [', 1)
        (tmp_path / "per_image.jsonl").write_text(broken)
        with pytest.raises(ValueError, match=r"line 1 of per_image\.jsonl is damaged"):
            read_images(tmp_path)


def test_the_sentence_says_who_is_better_by_how_much_and_how_sure_that_is():
    worse = {"Bleu_4": Difference(0.3, 0.2, None, 0.2), "CIDEr": Difference(0.9, 1.033, (-0.201, -0.069), 0.0001)}
    assert verdict("B", "A", worse) == (
        "B is worse than A: CIDEr 13.3 lower, 95 % interval of the difference -20.1 to -6.9, p = 0.0001"
    )
    better = {"METEOR": Difference(0.31, 0.3, (0.001, 0.02), 0.03)}
    assert verdict("B", "A", better).startswith("B is better than A: METEOR 1.0 higher, 95 % interval")
    alike = {"Bleu_4": worse["Bleu_4"]}
    assert (
        verdict("B", "A", alike) == "B and A do not differ by more than chance explains: BLEU-4 10.0 higher, p = 0.2000"
    )
    assert verdict("B", "A", {}) == "B and A have no score in common"
    rows = [line.split() for line in comparison_table(worse).splitlines()]
    assert rows[2] == ["CIDEr", "90.0", "103.3", "-13.3", "0.0001", "-20.1", "to", "-6.9"]
    kept = as_json("B", "A", worse)
    assert kept["differences"]["CIDEr"]["difference"] == pytest.approx(-0.133)
    assert kept["differences"]["Bleu_4"]["interval"] is None and kept["this"] == "B"
