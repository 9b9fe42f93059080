"""Intervals and tests equal their definitions: resampling written out, and all exchanges enumerated."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from velm_cli.metrics.significance import Summands, bootstrap, mean_of, paired_permutation


def ratio(sums_RS: np.ndarray) -> np.ndarray:
    """A score that is no mean over images, such as BLEU: a ratio of sums."""
    return sums_RS[:, 0] / sums_RS[:, 1]


def random_ratio(random: np.random.Generator, images: int, quality: float = 0.5) -> Summands:
    words = random.integers(5, 15, size=images)
    return Summands(np.stack([random.binomial(words, quality), words], axis=1).astype(float), ratio)


def test_a_mean_leaves_out_what_has_no_score():
    assert mean_of([0.5, None, 1.0]).total() == 0.75
    assert np.isnan(mean_of([None, None]).total())


def test_the_interval_is_that_of_resampled_images():
    random = np.random.default_rng()
    summands = random_ratio(random, 300)
    again = [ratio(summands.rows_IS[random.integers(300, size=300)].sum(0, keepdims=True))[0] for _ in range(20_000)]
    low, high = bootstrap(summands, resamples=20_000)
    wanted_low, wanted_high = np.percentile(again, [2.5, 97.5])
    width = wanted_high - wanted_low
    assert low < summands.total() < high
    assert low == pytest.approx(wanted_low, abs=0.05 * width)
    assert high == pytest.approx(wanted_high, abs=0.05 * width)


def test_ninety_five_of_a_hundred_intervals_hold_the_truth():
    random = np.random.default_rng()
    held = 0
    for _ in range(300):
        low, high = bootstrap(mean_of(random.normal(0.3, 0.1, size=100).tolist()), resamples=400)
        held += low <= 0.3 <= high
    assert 0.90 <= held / 300 <= 0.985  # 0.95 expected; five standard deviations of it are 0.063


def test_no_interval_where_there_is_nothing_to_resample():
    assert bootstrap(mean_of([0.4])) is None
    assert bootstrap(mean_of([None, 0.4])) is None  # some resamples hold no score
    assert bootstrap(mean_of([0.4, 0.4])) == (0.4, 0.4)


def test_p_is_the_share_of_all_exchanges():
    random = np.random.default_rng()
    ours, theirs = random_ratio(random, 10, 0.6), random_ratio(random, 10, 0.4)
    observed = abs(ours.total() - theirs.total())
    as_large = 0
    for exchanged in itertools.product([False, True], repeat=10):
        swap = np.array(exchanged)[:, None]
        first = Summands(np.where(swap, theirs.rows_IS, ours.rows_IS), ratio).total()
        second = Summands(np.where(swap, ours.rows_IS, theirs.rows_IS), ratio).total()
        as_large += abs(first - second) >= observed - 1e-12
    assert paired_permutation(ours, theirs, permutations=40_000) == pytest.approx(as_large / 1024, abs=0.015)


def test_equal_systems_give_one_and_very_different_ones_the_smallest_p():
    random = np.random.default_rng()
    ours, theirs = random_ratio(random, 200, 0.9), random_ratio(random, 200, 0.1)
    assert paired_permutation(ours, ours) == 1.0
    assert paired_permutation(ours, theirs, permutations=999) == 1 / 1000


def test_p_is_uniform_when_there_is_no_difference():
    random = np.random.default_rng()
    pairs = (mean_of(random.normal(size=40).tolist()) for _ in range(400))
    p = np.array([paired_permutation(a, b, permutations=199) for a, b in zip(pairs, pairs, strict=False)])
    assert len(p) == 200
    assert abs((p <= 0.25).mean() - 0.25) < 0.16  # five standard deviations
    assert abs(p.mean() - 0.5) < 0.11


def test_the_same_seed_gives_the_same_numbers():
    summands = random_ratio(np.random.default_rng(), 50)
    assert bootstrap(summands, seed=3) == bootstrap(summands, seed=3)
    assert bootstrap(summands, seed=3) != bootstrap(summands, seed=4)
