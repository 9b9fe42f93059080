"""Retrieval in both directions, scored: recall at 1, 5 and 10 with intervals, median ranks, rsum, and chance.

One example is an image with its captions: the image is a query for its captions, each caption one for its image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from velm_cli import __version__
from velm_cli.errors import UserError
from velm_cli.metrics.floors import warn_of_floors
from velm_cli.metrics.recall import KS, RECALLS, RSUM, recall_of_sums, rows_of
from velm_cli.metrics.retrieval import Ranks, figures
from velm_cli.metrics.scores import ExampleId, Scores
from velm_cli.metrics.significance import Summands, bootstrap_all
from velm_cli.schema import MetricsConfig
from velm_cli.schema.metric_names import Column

__all__ = ["RETRIEVAL_COLUMNS", "RETRIEVAL_PRIMARY", "chance", "folds_of", "score_retrieval"]

RETRIEVAL_PRIMARY = RSUM


def _columns_of(way: str) -> list[Column]:
    meaning = {"i2t": "images with one of their captions", "t2i": "captions with their image"}[way]
    recalls = [
        Column(f"{way}_R@{k}", f"{way} R@{k}", is_mean=False, meaning=f"share of {meaning} among the first {k}")
        for k in KS
    ]
    median = Column(
        f"{way}_median_rank",
        f"{way} median rank",
        f"{way} median",
        scale=1.0,
        higher_is_better=False,
        in_tables=False,
        is_mean=False,
        meaning=f"half of the {meaning.split()[0]} have what belongs to them at this rank or before",
    )
    return [*recalls, median]


RETRIEVAL_COLUMNS = (
    *_columns_of("i2t"),
    *_columns_of("t2i"),
    Column(RSUM, "rsum", scale=1.0, is_mean=False, meaning="sum of the six R@K in percent, at most 600"),
)


def score_retrieval(
    ranks: Ranks,
    image_of_C: np.ndarray,
    config: MetricsConfig,
    *,
    images: Sequence[ExampleId],
    captions: Sequence[str] | None = None,
    fold: int = 0,
    signature: dict[str, Any] | None = None,
    about: Sequence[dict[str, Any]] | None = None,
) -> Scores:
    """The scores of `ranks`, those of I images and of C captions, by image id.

    `images` are the ids of the I, `image_of_C` the number of each caption's image, `captions` the C texts. With `fold`
    images a fold, consecutive ones, ranks are those within the own fold, and every figure is the mean of the folds'.
    `signature` and `about` (per image) add what the caller knows, such as the best candidates for the page.
    """
    fold_of_I = folds_of(len(images), fold)
    rows_IS = rows_of(ranks.image_I, ranks.text_C, image_of_C, fold_of_I)
    summands = {name: Summands(rows_IS, partial(recall_of_sums, name=name)) for name in (*RECALLS, RSUM)}
    found = figures(ranks)
    corpus: dict[str, float | None] = {column.key: found[column.key] for column in RETRIEVAL_COLUMNS}
    intervals: dict[str, tuple[float, float] | None] = dict.fromkeys(corpus)
    intervals |= bootstrap_all(summands, resamples=config.resamples)
    captions_of_I = [np.flatnonzero(image_of_C == number) for number in range(len(images))]
    texts = [[captions[int(c)] for c in own] if captions is not None else [] for own in captions_of_I]
    scores = Scores(
        corpus=corpus,
        intervals=intervals,
        reasons={},
        per_image={
            image: _own_scores(ranks, own, i) for i, (image, own) in enumerate(zip(images, captions_of_I, strict=True))
        },
        signature={
            "velm": __version__,
            "metric": "recall at K; image to text by the best of the image's own captions",
            "ties": "mean",
            "protocol": "all together" if not fold else f"mean of {fold_of_I[-1] + 1} folds of {fold:,} images",
            "images": len(images),
            "captions": len(image_of_C),
            **(signature or {}),
        },
        warnings=[],
        references=dict(zip(images, texts, strict=True)),
        hypotheses=dict.fromkeys(images, ""),
        summands=summands,
        task="retrieve",
        columns=RETRIEVAL_COLUMNS,
        primary=RETRIEVAL_PRIMARY,
        floors={"chance": chance(np.bincount(image_of_C, minlength=len(images)), fold)},
        about={
            image: {
                "i2t_rank": None if np.isnan(ranks.image_I[i]) else float(ranks.image_I[i]),
                "t2i_ranks": ranks.text_C[own].tolist(),
                **(about[i] if about is not None else {}),
            }
            for i, (image, own) in enumerate(zip(images, captions_of_I, strict=True))
        },
    )
    warn_of_floors(scores, config.resamples)
    return scores


def folds_of(images: int, fold: int) -> np.ndarray:
    """The fold of each image, `fold` consecutive ones; UserError where the images are no whole number of folds."""
    if fold and images % fold:
        raise UserError(
            f"fold={fold}: {images:,} images are not a whole number of folds of {fold:,}; 0 takes all together"
        )
    return np.arange(images) // (fold or images)


def _own_scores(ranks: Ranks, own: np.ndarray, image: int) -> dict[str, float | None]:
    """Of the image as a query, and the mean of its captions'; nothing where it has none."""
    if not len(own):
        return dict.fromkeys((*RECALLS, RSUM))
    found: dict[str, float | None] = {f"i2t_R@{k}": float(ranks.image_I[image] <= k) for k in KS}
    found |= {f"t2i_R@{k}": float((ranks.text_C[own] <= k).mean()) for k in KS}
    found[RSUM] = 100 * sum(value or 0.0 for value in found.values())
    return found


def chance(captions_I: np.ndarray, fold: int = 0) -> dict[str, float | None]:
    """What a random order scores in expectation, exactly, for images with so many captions each.

    The median ranks are those of the distribution of all queries' ranks.
    """
    folds = folds_of(len(captions_I), fold)
    in_folds = [captions_I[folds == number] for number in range(int(folds.max()) + 1)]
    by_fold = [_chance(captions_F) for captions_F in in_folds if captions_F.any()]  # without captions: no query
    return {key: float(np.mean([found[key] for found in by_fold])) for key in by_fold[0]}


def _chance(captions_I: np.ndarray) -> dict[str, float]:
    images, captions = len(captions_I), int(captions_I.sum())
    queries_I = captions_I[captions_I > 0]  # an image without captions is a candidate, and no query
    kinds = [(int(own), int(count)) for own, count in zip(*np.unique(queries_I, return_counts=True), strict=True)]

    def found_by(k: int) -> float:
        """Chance that an image's best caption has rank k or better: one minus that of drawing k others."""
        missed = [math.comb(captions - own, k) / math.comb(captions, k) for own, _ in kinds if k <= captions]
        return (
            1.0 - sum(each * count for each, (_, count) in zip(missed, kinds, strict=True)) / len(queries_I)
            if missed
            else 1.0
        )

    scores = {f"i2t_R@{k}": found_by(k) for k in KS}
    low, high = 1, captions  # the first rank that half of the images reach
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if found_by(middle) >= 0.5 else (middle + 1, high)
    scores["i2t_median_rank"] = float(low)
    scores |= {f"t2i_R@{k}": min(1.0, k / images) for k in KS}
    scores["t2i_median_rank"] = (images + 1) / 2
    scores[RSUM] = 100 * sum(scores[name] for name in RECALLS)
    return scores
