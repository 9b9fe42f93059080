"""Ranks in blocks against sorting all pairs in float64, with ties by brute force over their orders."""

import itertools

import numpy as np
import pytest

from velm_cli.metrics import retrieval
from velm_cli.metrics.retrieval import (
    Best,
    Ranks,
    best_both_ways,
    figures,
    rank_both_ways,
    recall,
    rerank_both_ways,
)
from velm_cli.metrics.retrieval_scores import chance


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def drawn(images: int, captions: int, width: int = 16, bare: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The last `bare` images have no caption, the others different numbers of them."""
    draw = np.random.default_rng()
    shown = images - bare
    owner = np.concatenate([np.arange(shown), draw.integers(shown, size=captions - shown)])
    draw.shuffle(owner)
    return unit(draw.normal(size=(images, width))), unit(draw.normal(size=(captions, width))), owner


def rank_in(scores: np.ndarray, right: np.ndarray) -> float:
    """By sorting, where nothing ties."""
    return 1 + np.flatnonzero(right[np.argsort(-scores)]).min() if right.any() else np.nan


def mean_rank(scores: np.ndarray, right: np.ndarray) -> float:
    """Over all orders of equal candidates."""
    found = []
    for shuffled in itertools.permutations(range(len(scores))):
        order = sorted(shuffled, key=lambda number: -scores[number])  # stable: ties stay as they were shuffled
        found.append(1 + np.flatnonzero(right[order]).min())
    return float(np.mean(found))


@pytest.mark.parametrize("block", [1, 70, 1 << 22])
def test_ranks_are_those_of_a_sort(block, monkeypatch):
    monkeypatch.setattr(retrieval, "AT_ONCE", block)
    image, text, owner = drawn(23, 80, bare=3)
    ranks = rank_both_ways(image, text, owner)
    cosines = image.astype(np.float64) @ text.astype(np.float64).T
    assert ranks.text_C.tolist() == [rank_in(cosines[:, c], np.arange(23) == owner[c]) for c in range(80)]
    np.testing.assert_array_equal(ranks.image_I, [rank_in(cosines[i], owner == i) for i in range(23)])
    assert np.isnan(ranks.image_I[20:]).all(), "an image without captions is a candidate and no query"


def test_ties_have_the_mean_rank_of_all_their_orders():
    image = np.eye(3, dtype=np.float32)[[0, 0, 1]]
    text = np.eye(3, dtype=np.float32)[[0, 0, 0, 1, 2]]
    owner = np.array([0, 0, 1, 2, 2])
    ranks = rank_both_ways(image, text, owner)
    cosines = image @ text.T
    assert ranks.text_C == pytest.approx([mean_rank(cosines[:, c], np.arange(3) == owner[c]) for c in range(5)])
    assert ranks.image_I == pytest.approx([mean_rank(cosines[i], owner == i) for i in range(3)])


def test_a_collapsed_model_is_at_chance():
    """Which other rules put at 0 or at 100 %."""
    image, text = np.full((100, 4), 0.5, np.float32), np.full((500, 4), 0.5, np.float32)
    owner = np.arange(500) // 5
    ranks = rank_both_ways(image, text, owner)
    assert set(ranks.text_C) == {50.5}
    assert ranks.image_I == pytest.approx(1 + 495 / 6)
    assert figures(ranks)["rsum"] == 0
    best = best_both_ways(image, text, owner, 10)
    scores = tuple(np.zeros(each.numbers_Qk.shape) for each in best)
    again = rerank_both_ways(image, text, owner, best, scores)
    assert figures(again)["rsum"] <= chance(np.bincount(owner))["rsum"]
    assert again.text_C.mean() == pytest.approx(50.5), "what is judged alike stays where it was, on average"


def test_what_is_no_number_is_refused():
    """NaN is better than nothing, so all ranks would be 1."""
    image, text, owner = drawn(5, 9)
    text[4, 3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        rank_both_ways(image, text, owner)


@pytest.mark.parametrize("owner", [np.array([0, 1, 3]), np.array([0, 1, -1]), np.array([0, 1])])
def test_a_caption_without_image_is_refused(owner):
    image, text, _ = drawn(3, 3)
    with pytest.raises(ValueError, match="every caption needs an image"):
        rank_both_ways(image, text, owner)


def test_folds_are_ranked_alone_and_the_mean_of_their_figures_counts():
    image, text, owner = drawn(17, 60, width=3, bare=1)
    ranks = rank_both_ways(image, text, owner, fold=5)
    parts = []
    for start in (0, 5, 10):
        texts = np.flatnonzero((owner >= start) & (owner < start + 5))
        alone = rank_both_ways(image[start : start + 5], text[texts], owner[texts] - start)
        np.testing.assert_array_equal(ranks.text_C[texts], alone.text_C)
        np.testing.assert_array_equal(ranks.image_I[start : start + 5], alone.image_I)
        parts.append(figures(alone))
    assert np.isnan(ranks.image_I[15:]).all() and np.isnan(ranks.text_C[owner >= 15]).all(), "of no whole fold"
    assert figures(ranks) == {name: pytest.approx(np.mean([part[name] for part in parts])) for name in parts[0]}
    with pytest.raises(ValueError, match="fold of 18 images cannot be made of 17"):
        rank_both_ways(image, text, owner, fold=18)


def test_figures():
    ranks = Ranks(text_C=np.array([1, 2, 6, 11]), image_I=np.array([1.0, 1.5, np.nan]))
    found = figures(ranks)
    assert [found[f"t2i_R@{k}"] for k in (1, 5, 10)] == [0.25, 0.5, 0.75]
    assert [found[f"i2t_R@{k}"] for k in (1, 5, 10)] == [0.5, 1, 1]
    assert found["t2i_median_rank"] == 4 and found["i2t_median_rank"] == 1.25
    assert found["rsum"] == pytest.approx(400)
    assert np.isnan(recall(np.array([np.nan]), 1))


@pytest.mark.parametrize("fold", [0, 6])
def test_chance_is_what_random_orders_reach(fold):
    draw = np.random.default_rng()
    owner = np.sort(draw.integers(11, size=40))
    drawn: dict[str, list[float]] = {}
    for _ in range(2000):
        image, text = unit(draw.normal(size=(12, 30))), unit(draw.normal(size=(40, 30)))
        for name, value in figures(rank_both_ways(image, text, owner, fold=fold)).items():
            drawn.setdefault(name, []).append(value)
    expected = chance(np.bincount(owner, minlength=12), fold)
    for name in expected.keys() - {"i2t_median_rank", "t2i_median_rank"}:
        error = np.std(drawn[name]) / 2000**0.5
        assert abs(np.mean(drawn[name]) - expected[name]) <= 6 * error + 1e-9, name
        assert error < 0.04 * expected[name], f"too few draws to tell anything of {name}"


# ---------------------------------------------------------------------------------------- judging again


@pytest.mark.parametrize(("k", "block"), [(1, 1 << 22), (4, 50), (60, 1 << 22)])
def test_the_best_candidates_come_first_in_the_order_of_their_scores(k, block, monkeypatch):
    monkeypatch.setattr(retrieval, "AT_ONCE", block)
    image, text, owner = drawn(13, 50, bare=2)
    score = np.random.default_rng().normal(size=(13, 50))
    best = best_both_ways(image, text, owner, k)
    ranks = rerank_both_ways(image, text, owner, best, pairs(best, score))
    cosines = image.astype(np.float64) @ text.astype(np.float64).T

    def rank(cosines: np.ndarray, scores: np.ndarray, right: np.ndarray) -> float:
        order = np.argsort(-cosines)
        judged, others = order[:k], order[k:]
        judged = judged[np.argsort(-scores[judged])]
        return 1 + np.flatnonzero(right[[*judged, *others]]).min() if right.any() else np.nan

    wanted = [rank(cosines[:, c], score[:, c], np.arange(13) == owner[c]) for c in range(50)]
    assert ranks.text_C.tolist() == wanted
    np.testing.assert_array_equal(ranks.image_I, [rank(cosines[i], score[i], owner == i) for i in range(13)])


def pairs(best: tuple[Best, Best], score_IC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scores of these pairs."""
    images_Ck, texts_Ik = best[0].numbers_Qk, best[1].numbers_Qk
    return (
        score_IC[images_Ck, np.arange(len(images_Ck))[:, None]],
        score_IC[np.arange(len(texts_Ik))[:, None], texts_Ik],
    )


def test_equal_scores_have_the_mean_rank_of_all_orders_before_and_behind_the_last_candidate():
    """Cosines are 1 or 0, and so are scores, so nearly everything ties."""
    draw = np.random.default_rng()
    eye = np.eye(2, dtype=np.float32)
    for _ in range(20):
        image, text = eye[draw.integers(2, size=3)], eye[draw.integers(2, size=5)]
        owner, score = draw.integers(3, size=5), draw.integers(2, size=(3, 5)).astype(float)
        best = best_both_ways(image, text, owner, 2)
        ranks = rerank_both_ways(image, text, owner, best, pairs(best, score))
        for c in range(5):
            scores = np.where(np.isin(np.arange(3), best[0].numbers_Qk[c]), 100 + score[:, c], image @ text[c])
            assert ranks.text_C[c] == pytest.approx(mean_rank(scores, np.arange(3) == owner[c]))
        for i in set(owner):
            scores = np.where(np.isin(np.arange(5), best[1].numbers_Qk[i]), 100 + score[i], text @ image[i])
            assert ranks.image_I[i] == pytest.approx(mean_rank(scores, owner == i))


def test_candidates_are_of_the_same_fold_and_fewer_where_it_has_no_more():
    image, text, owner = drawn(11, 30)
    of_texts, of_images = best_both_ways(image, text, owner, 7, fold=5)
    inside = owner < 10
    assert (of_texts.numbers_Qk[inside, :5] // 5 == owner[inside, None] // 5).all()
    assert (of_texts.numbers_Qk[:, 5:] == -1).all() and (of_texts.cosines_Qk[:, 5:] == -np.inf).all()
    assert (of_texts.numbers_Qk[~inside] == -1).all() and (of_images.numbers_Qk[10] == -1).all()
    for number in range(10):
        texts = of_images.numbers_Qk[number]
        assert (owner[texts[texts >= 0]] // 5 == number // 5).all() and (texts >= 0).sum() == min(
            7, (owner // 5 == number // 5).sum()
        )
    best = of_texts, of_images
    cosines = of_texts.cosines_Qk, of_images.cosines_Qk
    ranks = rerank_both_ways(image, text, owner, best, cosines, fold=5)
    plain = rank_both_ways(image, text, owner, fold=5)
    np.testing.assert_array_equal(ranks.text_C, plain.text_C)
    np.testing.assert_array_equal(ranks.image_I, plain.image_I)


def test_a_score_that_is_no_number_is_refused():
    image, text, owner = drawn(4, 9)
    best = best_both_ways(image, text, owner, 2)
    scores = tuple(np.full(each.numbers_Qk.shape, np.nan) for each in best)
    with pytest.raises(ValueError, match="score of a candidate is not a finite number"):
        rerank_both_ways(image, text, owner, best, scores)
