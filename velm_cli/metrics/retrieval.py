"""Retrieval in both directions: the rank of what belongs together, among all images or all captions.

Text to image: the rank of a caption's own image. Image to text: the rank of the best of an image's own captions (Hodosh
et al. 2013; Karpathy & Fei-Fei 2015). R@K is the share of queries with a rank of at most K, rsum the sum of the six R@K
in percent. Published code disagrees on ties, and a collapsed model scores 100 or 0 by the rule alone; here equal
candidates stand in random order, and the rank is its expectation, which for a single right candidate is
1 + better + (equal - 1) / 2.

Shapes: I images, C captions, E width of the shared space; Q queries in one direction, N their candidates, k those that
are judged again; B of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

TIE = 1e-6  # cosines that differ by less are equal: rounding in float32 is several times smaller
TIE_JUDGED = 1e-4  # the same of what candidates are judged by, where a cosine counts up to a hundredfold
AT_ONCE = 1 << 22  # similarities of a block: 16 MB
KS = (1, 5, 10)


@dataclass(frozen=True, slots=True)
class Ranks:
    """The rank of each query's right answer, from 1 on; fractions where candidates tie, NaN where there is no query.

    An image without captions is a candidate, but no query.
    """

    text_C: np.ndarray  # of a caption's image among the images
    image_I: np.ndarray  # of an image's best caption among the captions
    fold_C: np.ndarray | None = None  # the fold of each, -1: of none, where there is no query; None: all together
    fold_I: np.ndarray | None = None


class Best(NamedTuple):
    """The k best candidates of each query by cosine, best first."""

    numbers_Qk: np.ndarray  # int64; -1 where there are fewer
    cosines_Qk: np.ndarray  # float32; -inf there


class _Found(NamedTuple):
    """Of each query: candidates that are better than its best right one, equal to it, and right ones among these."""

    better_Q: np.ndarray
    equal_Q: np.ndarray
    right_Q: np.ndarray  # 0: no right one at all, so no query
    cosine_Q: np.ndarray  # of the best right one

    def ranks(self) -> np.ndarray:
        return np.where(self.right_Q > 0, _expected(self.better_Q, self.equal_Q, self.right_Q), np.nan)


def rank_both_ways(image_IE: np.ndarray, text_CE: np.ndarray, image_of_C: np.ndarray, *, fold: int = 0) -> Ranks:
    """Ranks by the dot products of unit vectors, in blocks of fixed memory; `image_of_C`: each caption's image.

    `fold`: images of a fold, in the order of images (COCO 1k: 1000), with their captions; those after the last whole
    fold are in none. 0: all together. ValueError where numbers are not finite, a caption has no image, or there are
    fewer images than a fold has.
    """
    ranks = _no_ranks(image_IE, text_CE, image_of_C, fold)
    for images, texts in _folds(len(image_IE), image_of_C, fold):
        of_texts, of_images = _compare(image_IE[images], text_CE[texts], image_of_C[texts] - images.start)
        ranks.text_C[texts], ranks.image_I[images] = of_texts.ranks(), of_images.ranks()
    return ranks


def best_both_ways(
    image_IE: np.ndarray, text_CE: np.ndarray, image_of_C: np.ndarray, k: int, *, fold: int = 0
) -> tuple[Best, Best]:
    """The k best images of each caption, and the k best captions of each image, of its fold.

    Of equal ones at the end of the list those with lower numbers are taken. ValueError as above.
    """
    _check(image_IE, text_CE, image_of_C, fold)
    of_texts, of_images = _none_best(len(text_CE), k), _none_best(len(image_IE), k)
    for images, texts in _folds(len(image_IE), image_of_C, fold):
        numbers = np.arange(len(text_CE))[texts], np.arange(len(image_IE))[images]
        _find_best(text_CE[texts], image_IE[images], numbers, of_texts)
        _find_best(image_IE[images], text_CE[texts], numbers[::-1], of_images)
    return of_texts, of_images


def rerank_both_ways(
    image_IE: np.ndarray,
    text_CE: np.ndarray,
    image_of_C: np.ndarray,
    best: tuple[Best, Best],
    scores: tuple[np.ndarray, np.ndarray],
    *,
    fold: int = 0,
) -> Ranks:
    """Ranks with each query's best candidates in the order of other scores, the largest first.

    `best`: what `best_both_ways` has found with this `fold`; `scores`: of these pairs, [C, k] and [I, k]. The other
    candidates stay behind them in the order of their cosines.
    """
    ranks = _no_ranks(image_IE, text_CE, image_of_C, fold)
    (of_texts, of_images), (text_scores_Ck, image_scores_Ik) = best, scores
    right_Ck = of_texts.numbers_Qk == image_of_C[:, None]
    of_images_Ik = np.where(of_images.numbers_Qk < 0, -1, image_of_C[of_images.numbers_Qk])
    right_Ik = of_images_Ik == np.arange(len(image_IE))[:, None]
    for images, texts in _folds(len(image_IE), image_of_C, fold):
        found_C, found_I = _compare(image_IE[images], text_CE[texts], image_of_C[texts] - images.start)
        cosines_Ck, cosines_Ik = of_texts.cosines_Qk[texts], of_images.cosines_Qk[images]
        ranks.text_C[texts] = _judged(found_C, cosines_Ck, text_scores_Ck[texts], right_Ck[texts])
        ranks.image_I[images] = _judged(found_I, cosines_Ik, image_scores_Ik[images], right_Ik[images])
    return ranks


def recall(ranks: np.ndarray, k: int) -> float:
    """Share of queries with a rank of at most `k`; NaN without any."""
    ranks = ranks[~np.isnan(ranks)]
    return float((ranks <= k).mean()) if len(ranks) else float("nan")


def figures(ranks: Ranks) -> dict[str, float]:
    """`i2t_R@1` ... `t2i_R@10` as fractions, the median ranks, and `rsum`, the sum of the six in percent.

    In folds the mean of those of each fold.
    """
    found: dict[str, float] = {}
    for way, ranks_Q, fold_Q in (("i2t", ranks.image_I, ranks.fold_I), ("t2i", ranks.text_C, ranks.fold_C)):
        fold_Q = np.zeros(len(ranks_Q), np.int64) if fold_Q is None else fold_Q
        parts = [
            part[~np.isnan(part)] for part in (ranks_Q[fold_Q == fold] for fold in range(fold_Q.max(initial=-1) + 1))
        ]
        parts = [part for part in parts if len(part)]  # a fold of images without captions has no query
        found |= {f"{way}_R@{k}": _mean([recall(part, k) for part in parts]) for k in KS}
        found[f"{way}_median_rank"] = _mean([float(np.median(part)) for part in parts])
    found["rsum"] = 100 * sum(value for name, value in found.items() if "R@" in name)
    return found


# ---------------------------------------------------------------------------------------- comparing


def _compare(image_IE: np.ndarray, text_CE: np.ndarray, image_of_C: np.ndarray) -> tuple[_Found, _Found]:
    """Of the captions among the images, and of the images among the captions."""
    images, texts = len(image_IE), len(text_CE)
    own_C = np.empty(texts, np.float32)
    for part in _blocks(texts, image_IE.shape[1]):  # gathered rows are copied
        own_C[part] = np.einsum("ce,ce->c", image_IE[image_of_C[part]], text_CE[part])
    best_I = np.full(images, -np.inf, np.float32)
    np.maximum.at(best_I, image_of_C, own_C)
    right_I = np.bincount(image_of_C, own_C >= best_I[image_of_C] - TIE, minlength=images).astype(np.int64)
    better_C, equal_C = np.zeros((2, texts), np.int64)
    better_I, equal_I = np.zeros((2, images), np.int64)
    for part in _blocks(texts, images):
        cosines_IB = image_IE @ text_CE[part].T
        better_C[part] = (cosines_IB > own_C[part] + np.float32(TIE)).sum(axis=0)
        equal_C[part] = (cosines_IB >= own_C[part] - np.float32(TIE)).sum(axis=0) - better_C[part]
        better_B = np.count_nonzero(cosines_IB > (best_I + np.float32(TIE))[:, None], axis=1)
        equal_I += np.count_nonzero(cosines_IB >= (best_I - np.float32(TIE))[:, None], axis=1) - better_B
        better_I += better_B
    return _Found(better_C, equal_C, np.ones_like(equal_C), own_C), _Found(better_I, equal_I, right_I, best_I)


def _expected(better: np.ndarray, equal: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Rank of the first of the `right` ones among `equal` candidates in random order, after the `better` ones."""
    return 1 + better + (equal - right) / (right + 1)


def _judged(found: _Found, cosines_Qk: np.ndarray, scores_Qk: np.ndarray, right_Qk: np.ndarray) -> np.ndarray:
    """Ranks where the k candidates are in the order of `scores`, and in front of all others."""
    there_Qk = np.isfinite(cosines_Qk)
    if not np.isfinite(scores_Qk[there_Qk]).all():
        raise ValueError("the score of a candidate is not a finite number")
    scores_Qk = np.where(there_Qk, scores_Qk, -np.inf)
    best_Q1 = np.where(right_Qk, scores_Qk, -np.inf).max(axis=1, keepdims=True)
    better_Qk, near_Qk = scores_Qk > best_Q1 + TIE_JUDGED, scores_Qk >= best_Q1 - TIE_JUDGED
    right_Q = (near_Qk & right_Qk).sum(axis=1)
    inside_Q = _expected(better_Qk.sum(axis=1), (near_Qk & ~better_Qk).sum(axis=1), right_Q)
    # Behind the k: those of them that were equal are now in front.
    passed_Q = (there_Qk & (cosines_Qk <= found.cosine_Q[:, None] + TIE)).sum(axis=1)
    outside_Q = _expected(found.better_Q + passed_Q, found.equal_Q - passed_Q, found.right_Q)
    ranks_Q = np.where(right_Qk.any(axis=1), inside_Q, outside_Q)
    return np.where(found.right_Q > 0, ranks_Q, np.nan)


def _none_best(queries: int, k: int) -> Best:
    return Best(np.full((queries, k), -1, np.int64), np.full((queries, k), -np.inf, np.float32))


def _find_best(
    query_QE: np.ndarray, candidate_NE: np.ndarray, numbers: tuple[np.ndarray, np.ndarray], best: Best
) -> None:
    """Fill in the rows of these queries; `numbers`: of queries and candidates."""
    of_queries, of_candidates = numbers
    k = min(best.numbers_Qk.shape[1], len(candidate_NE))
    for part in _blocks(len(query_QE), len(candidate_NE)):
        cosines_BN = query_QE[part] @ candidate_NE.T
        # Among equal ones at the end of the list argpartition would choose as it likes.
        least_B = np.partition(cosines_BN, -k, axis=1)[:, -k] if k else np.zeros(len(cosines_BN))
        for row, cosines_N, least in zip(of_queries[part], cosines_BN, least_B, strict=True):
            near = np.flatnonzero(cosines_N >= least)
            near = near[np.argsort(-cosines_N[near], kind="stable")[:k]]
            best.numbers_Qk[row, :k], best.cosines_Qk[row, :k] = of_candidates[near], cosines_N[near]


# ---------------------------------------------------------------------------------------- folds and blocks


def _no_ranks(image_IE: np.ndarray, text_CE: np.ndarray, image_of_C: np.ndarray, fold: int) -> Ranks:
    """Room for ranks; ValueError where there can be none."""
    _check(image_IE, text_CE, image_of_C, fold)
    ranks = Ranks(np.full(len(text_CE), np.nan), np.full(len(image_IE), np.nan))
    if not fold:
        return ranks
    fold_I = np.arange(len(image_IE)) // fold
    fold_I[len(image_IE) // fold * fold :] = -1
    return Ranks(ranks.text_C, ranks.image_I, fold_I[image_of_C], fold_I)


def _check(image_IE: np.ndarray, text_CE: np.ndarray, image_of_C: np.ndarray, fold: int) -> None:
    if image_of_C.shape != (len(text_CE),) or ((image_of_C < 0) | (image_of_C >= len(image_IE))).any():
        raise ValueError("every caption needs an image")
    if not (np.isfinite(image_IE).all() and np.isfinite(text_CE).all()):
        raise ValueError("an embedding is not finite")
    if fold > len(image_IE):
        raise ValueError(f"a fold of {fold:,} images cannot be made of {len(image_IE):,}")


def _folds(images: int, image_of_C: np.ndarray, fold: int) -> Iterator[tuple[slice, slice | np.ndarray]]:
    """Images and captions of each fold."""
    if not fold:
        yield slice(0, images), slice(None)
        return
    for start in range(0, images - fold + 1, fold):
        yield slice(start, start + fold), np.flatnonzero((image_of_C >= start) & (image_of_C < start + fold))


def _blocks(rows: int, width: int) -> Iterator[slice]:
    """Of so many rows that `width` numbers each of them fit into a block's memory."""
    step = max(1, AT_ONCE // max(1, width))
    return (slice(start, start + step) for start in range(0, rows, step))


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
