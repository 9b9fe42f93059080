"""Recall at K of retrieval as a function of sums over the images, so that it has intervals and paired tests.

A resample draws images; an image brings its captions with it. Of several folds each recall is the mean of the folds':
weights give every fold the same say, whatever the numbers of its images and captions.
"""

from __future__ import annotations

import numpy as np

KS = (1, 5, 10)
RECALLS = tuple(f"{way}_R@{k}" for way in ("i2t", "t2i") for k in KS)
RSUM = "rsum"
WIDTH = 8  # numbers that an image adds: hits of the image and its weight, hits of its captions and their weight


def rows_of(
    image_I: np.ndarray, text_C: np.ndarray, image_of_C: np.ndarray, fold_of_I: np.ndarray | None = None
) -> np.ndarray:
    """[I, WIDTH] of the ranks of each image's best caption and of each caption's image."""
    images = len(image_I)
    folds_I = np.zeros(images, int) if fold_of_I is None else fold_of_I
    is_query_I = ~np.isnan(image_I)  # an image without captions is none
    images_F = np.bincount(folds_I, is_query_I)
    captions_F = np.bincount(folds_I[image_of_C], minlength=len(images_F))  # the last fold may have none
    weight_I = np.where(is_query_I, is_query_I.sum() / (len(images_F) * np.maximum(1, images_F[folds_I])), 0.0)
    weight_C = len(text_C) / (len(images_F) * captions_F[folds_I[image_of_C]])
    of_images = [weight_I * (image_I <= k) for k in KS] + [weight_I]
    of_captions = [np.bincount(image_of_C, weight_C * (text_C <= k), minlength=images) for k in KS]
    of_captions.append(np.bincount(image_of_C, weight_C, minlength=images))
    return np.stack([*of_images, *of_captions], axis=1).astype(float)


def recall_of_sums(sums_RS: np.ndarray, name: str) -> np.ndarray:
    """`i2t_R@1` ... `t2i_R@10` as fractions, or `rsum`, the sum of the six in percent, of each row of sums."""
    with np.errstate(invalid="ignore"):
        if name == RSUM:
            found: np.ndarray = 100 * np.sum([recall_of_sums(sums_RS, each) for each in RECALLS], axis=0)
            return found
        place = RECALLS.index(name)
        way, k = divmod(place, len(KS))
        start = way * (len(KS) + 1)
        ratio: np.ndarray = sums_RS[:, start + k] / sums_RS[:, start + len(KS)]
        return ratio
