"""Retrieval scores: they are `figures`, exact chance, folds, intervals over images, and files in both forms."""

import json
from functools import partial

import numpy as np
import pytest

from velm_cli.errors import UserError
from velm_cli.metrics.comparison import summands_of
from velm_cli.metrics.embeddings import unit
from velm_cli.metrics.result_files import References
from velm_cli.metrics.retrieval import Ranks, figures, rank_both_ways
from velm_cli.metrics.retrieval_files import ranked_embeddings, read_rankings
from velm_cli.metrics.retrieval_scores import chance, score_retrieval
from velm_cli.metrics.scores import read_images, save
from velm_cli.schema import MetricsConfig

METRICS = MetricsConfig(resamples=200)


def embedded(images: int, noise: float = 1.0):
    """(images, captions, image of each caption) with 1 to 5 captions an image."""
    rng = np.random.default_rng()
    image_of_C = np.repeat(np.arange(images), rng.integers(1, 6, images))
    image_ID = rng.normal(size=(images, 8)).astype(np.float32)
    text_CD = (image_ID[image_of_C] + noise * rng.normal(size=(len(image_of_C), 8))).astype(np.float32)
    return image_ID, text_CD, image_of_C


def ranked(image_ID, text_CD, image_of_C) -> Ranks:
    return rank_both_ways(unit(image_ID), unit(text_CD), image_of_C)


def test_scores_are_the_figures_and_files_keep_what_they_are_made_of(tmp_path):
    vectors = embedded(40)
    ranks = ranked(*vectors)
    scores = score_retrieval(ranks, vectors[2], METRICS, images=list(range(40)))
    assert scores.corpus == pytest.approx(figures(ranks)) and scores.headline == scores.corpus["rsum"]
    for key, summands in scores.summands.items():
        assert summands.total() == pytest.approx(scores.corpus[key]), key
        low, high = scores.intervals[key]
        assert low <= scores.corpus[key] <= high
    save(scores, tmp_path)
    lines = read_images(tmp_path)
    for key in scores.summands:
        assert summands_of(lines, key).total() == pytest.approx(scores.corpus[key]), key
    assert [line["about"]["i2t_rank"] for line in lines] == ranks.image_I.tolist()
    assert [rank for line in lines for rank in line["about"]["t2i_ranks"]] == ranks.text_C.tolist()


def test_the_interval_is_that_of_resampled_images_with_their_captions():
    vectors = embedded(30)
    ranks = ranked(*vectors)
    scores = score_retrieval(ranks, vectors[2], MetricsConfig(resamples=2000), images=list(range(30)))
    rng = np.random.default_rng()
    own = [ranks.text_C[vectors[2] == image] for image in range(30)]
    found = [(np.concatenate([own[i] for i in rng.integers(30, size=30)]) <= 1).mean() for _ in range(4000)]
    low, high = np.percentile(found, [2.5, 97.5])
    assert scores.intervals["t2i_R@1"] == pytest.approx((low, high), abs=0.02)


def test_chance_is_what_random_orders_score():
    rng = np.random.default_rng()
    captions_I = rng.integers(1, 6, 12)
    image_of_C = np.repeat(np.arange(12), captions_I)
    expected = chance(captions_I)
    found = []
    for _ in range(3000):
        place_IC = rng.random((12, len(image_of_C))).argsort(axis=1).argsort(axis=1) + 1
        best_I = np.array([place_IC[image][image_of_C == image].min() for image in range(12)])
        found.append(figures(Ranks(rng.integers(1, 13, len(image_of_C)).astype(float), best_I.astype(float))))
    for key, value in expected.items():
        if "median" not in key:
            mean = np.mean([each[key] for each in found])
            assert value == pytest.approx(mean, rel=0.08), key
    assert expected["t2i_median_rank"] == 6.5
    assert chance(np.full(1000, 5))["t2i_R@1"] == 0.001
    assert chance(np.full(1000, 5))["i2t_R@10"] == pytest.approx(1 - (1 - 5 / 5000) ** 10, rel=0.01)
    folded = chance(np.full(20, 5), fold=10)
    assert folded == pytest.approx(chance(np.full(10, 5)))


def test_a_random_model_is_no_better_than_chance_and_a_good_one_is():
    image_ID, text_CD, image_of_C = embedded(60, noise=0.1)
    rng = np.random.default_rng()
    for vectors, warned in ((image_ID, False), (rng.normal(size=image_ID.shape).astype(np.float32)[::-1].copy(), True)):
        ranks = ranked(vectors, text_CD, image_of_C)
        scores = score_retrieval(ranks, image_of_C, METRICS, images=list(range(60)))
        low = scores.intervals["rsum"][0]
        assert any("'chance'" in line for line in scores.warnings) == (low <= scores.floors["chance"]["rsum"])
        assert warned or not scores.warnings


def test_figures_of_folds_are_the_means_of_the_folds(tmp_path):
    image_ID, text_CD, image_of_C = embedded(30)
    file = tmp_path / "e.npz"
    np.savez(file, image_ids=np.arange(30), image=image_ID, text_image_ids=image_of_C, text=text_CD)
    found = ranked_embeddings(file, "predictions", None, fold=10)
    scores = score_retrieval(found.ranks, found.image_of_C, METRICS, images=found.images, fold=10)
    by_fold = []
    for fold in range(3):
        part = slice(10 * fold, 10 * fold + 10)
        own = np.flatnonzero(image_of_C // 10 == fold)
        by_fold.append(figures(ranked(image_ID[part], text_CD[own], image_of_C[own] - 10 * fold)))
    for key, value in scores.corpus.items():
        assert value == pytest.approx(np.mean([each[key] for each in by_fold])), key
        assert key not in scores.summands or scores.summands[key].total() == pytest.approx(value)
    assert scores.signature["protocol"] == "mean of 3 folds of 10 images"
    with pytest.raises(UserError, match="fold=7: 30 images are not a whole number of folds of 7"):
        ranked_embeddings(file, "predictions", None, fold=7)


@pytest.mark.parametrize("empty", [0, 1, 2])
def test_a_fold_whose_images_have_no_captions_is_in_no_mean(empty):
    image_ID, text_CD, image_of_C = embedded(20)
    kept = image_of_C + np.where(image_of_C // 10 >= empty, 10, 0)
    more = np.insert(image_ID, 10 * empty, image_ID[:10], axis=0)
    score = partial(score_retrieval, config=METRICS, fold=10)
    with np.errstate(all="raise"):
        found = score(rank_both_ways(more, text_CD, kept, fold=10), kept, images=list(range(30)))
    wanted = score(rank_both_ways(image_ID, text_CD, image_of_C, fold=10), image_of_C, images=list(range(20)))
    assert found.corpus == pytest.approx(wanted.corpus)
    assert found.floors["chance"] == pytest.approx(wanted.floors["chance"])
    for key, summands in found.summands.items():
        assert summands.total() == pytest.approx(wanted.corpus[key]), key


def test_ranked_lists_and_embeddings_give_the_same(tmp_path):
    image_ID, text_CD, image_of_C = embedded(20)
    names = [f"{number}.jpg" for number in range(20)]
    captions = {name: [f"caption {c}" for c in np.flatnonzero(image_of_C == i)] for i, name in enumerate(names)}
    references = References(captions)
    file = tmp_path / "e.npz"
    np.savez(file, image_ids=np.array(names), image=image_ID, text_image_ids=np.array(names)[image_of_C], text=text_CD)
    one = ranked_embeddings(file, "predictions", references)
    norm = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (image_ID, text_CD)]
    similarity_IC = norm[0] @ norm[1].T
    ids_C = [f"{name}#{n}" for name in names for n in range(len(captions[name]))]
    lines = [
        {"kind": "image", "query": names[i], "ranked": [ids_C[c] for c in np.argsort(-similarity_IC[i])]}
        for i in range(20)
    ]
    lines += [
        {"kind": "text", "query": ids_C[c], "ranked": [names[i] for i in np.argsort(-similarity_IC[:, c])]}
        for c in range(len(ids_C))
    ]
    path = tmp_path / "r.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    other = read_rankings(path, "predictions", references, "none")
    assert one.ranks.image_I.tolist() == other.ranks.image_I.tolist()
    assert one.ranks.text_C.tolist() == other.ranks.text_C.tolist()
    assert one.captions == other.captions and one.about == other.about and not other.notes
    short = [line | {"ranked": line["ranked"][:10]} for line in lines]
    path.write_text("\n".join(map(json.dumps, short)))
    cut = read_rankings(path, "predictions", references, "none")
    assert np.array_equal(cut.ranks.text_C <= 10, other.ranks.text_C <= 10)
    missed = (other.ranks.text_C > 10).sum() + (other.ranks.image_I > 10).sum()
    assert cut.notes == [] if not missed else f"on {missed:,} of " in cut.notes[0]


def test_an_image_without_captions_is_a_candidate_and_no_query(tmp_path):
    image_ID, text_CD, image_of_C = embedded(20)
    more = np.concatenate([image_ID, np.random.default_rng().normal(size=(4, 8)).astype(np.float32)])
    ranks = ranked(more, text_CD, image_of_C)
    scores = score_retrieval(ranks, image_of_C, METRICS, images=list(range(24)))
    assert np.isnan(ranks.image_I[20:]).all() and np.isfinite(ranks.image_I[:20]).all()
    assert scores.corpus["i2t_R@1"] == pytest.approx((ranks.image_I[:20] <= 1).mean())
    for key, summands in scores.summands.items():
        assert summands.total() == pytest.approx(scores.corpus[key]), key
    assert scores.floors["chance"]["i2t_R@1"] == pytest.approx(np.bincount(image_of_C).mean() / len(image_of_C))
    save(scores, tmp_path)
    assert [line["about"]["i2t_rank"] for line in read_images(tmp_path)][20:] == [None] * 4


@pytest.mark.parametrize("asked", [True, False])
def test_a_list_of_an_image_without_captions_counts_for_nothing(tmp_path, asked):
    references = References({"a": ["x"], "b": [], "c": ["y"]})
    lists = {"a": ["a#0", "c#0"], "c": ["c#0", "a#0"]} | ({"b": ["a#0", "c#0"]} if asked else {})
    lines = [{"kind": "image", "query": image, "ranked": captions} for image, captions in lists.items()]
    lines += [{"kind": "text", "query": f"{image}#0", "ranked": [image, "b"]} for image in "ac"]
    for line in lines[-2:]:
        line["ranked"].append("c" if "a" in line["ranked"] else "a")
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = read_rankings(tmp_path / "r.jsonl", "predictions", references, "none")
    np.testing.assert_array_equal(found.ranks.image_I, [1, np.nan, 1])
    assert found.notes == [] and figures(found.ranks)["rsum"] == 600


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"image": np.ones((3, 4))}, "its arrays do not fit together"),
        ({"image": np.ones((2, 5))}, "its arrays do not fit together"),
        ({"image": np.ones((2, 4), int)}, "image must be floats, not of the type int64"),
        ({"image": np.full((2, 4), np.nan)}, "it holds numbers that are not finite"),
        ({"image_ids": np.array([1, 1])}, "an image is there twice"),
        ({"text_image_ids": np.array([1, 2, 9])}, r"1 captions of no image that is there \(9, ...\)"),
        ({"image_ids": np.array([object(), 1])}, "it holds pickled objects, which velm never reads"),
        ({"text": None}, "it lacks text and has"),
    ],
)
def test_files_that_are_no_embeddings_are_one_line(tmp_path, change, line):
    arrays = {"image_ids": np.array([1, 2]), "image": np.ones((2, 4)), "text_image_ids": np.array([1, 2, 2])}
    arrays = {name: array for name, array in (arrays | {"text": np.ones((3, 4))} | change).items() if array is not None}
    np.savez(tmp_path / "e.npz", **arrays)
    with pytest.raises(UserError, match=line) as error:
        ranked_embeddings(tmp_path / "e.npz", "predictions", None)
    assert "\n" not in str(error.value)


LINE = {"kind": "text", "query": "a#0", "ranked": ["a", "b"]}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ([1], "it must be"),
        (LINE | {"kind": "word"}, "it must be"),
        (LINE | {"kind": ["text"]}, "it must be"),
        (LINE | {"query": "c#0"}, "no text c#0 in the references"),
        (LINE | {"ranked": ["a", "c"]}, "the candidate c is not in the references"),
        (LINE | {"ranked": ["a", "a"]}, "a candidate is on the list twice"),
        (LINE | {"ranked": ["a"]}, "1 candidates: R@10 needs the first 10 of a list"),
        (LINE, "no list for 2 images of the references"),
    ],
)
def test_lists_that_do_not_fit_are_one_line(tmp_path, line, expected):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(line))
    with pytest.raises(UserError, match=expected):
        read_rankings(path, "predictions", References({"a": ["x"], "b": ["y"]}), "none")
