"""Figures of classification from scores: top-k, average precision, F1 by class and overall.

Shapes: I images, C labels, R resamples, G groups of images with one score.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from velm_cli.metrics.significance import Summands


def top_k(scores_IC: np.ndarray, label_I: np.ndarray, k: int) -> np.ndarray:
    """float64 [I]: is the right label among the k highest scores? The share of the orders of ties in which it is.

    Two labels that share the first place count half each, and scores that are all equal count k / C, which is chance.
    A label below 0 is one that nothing is known of: never right.
    """
    own_I1 = np.take_along_axis(scores_IC, np.maximum(label_I, 0)[:, None], axis=1)
    above_I = (scores_IC > own_I1).sum(axis=1)
    equal_I = (scores_IC == own_I1).sum(axis=1)  # itself among them
    found_I = np.clip((k - above_I) / np.maximum(equal_I, 1), 0, 1)
    return np.where(label_I < 0, 0.0, found_I)


def average_precisions(scores_IC: np.ndarray, right_IC: np.ndarray) -> np.ndarray:
    """float64 [C]: of each label the sum over recall's steps of (R_n - R_n-1) P_n, NaN where no image has it.

    Not interpolated; images with one score are one step, as scikit-learn's `average_precision_score` has it.
    """
    once_1I = np.ones((1, len(scores_IC)))
    found = [_precision_R(*_sorted(*both), once_1I)[0] for both in zip(scores_IC.T, right_IC.T, strict=True)]
    return np.array(found, float)


def mean_average_precision(scores_IC: np.ndarray, right_IC: np.ndarray) -> Summands:
    """mAP: the mean of the labels that any image has. It is of the order of all images, so what is summed over them is
    how often each is there."""
    parts = [_sorted(*both) for both in zip(scores_IC.T, right_IC.T, strict=True)]

    def score(times_RI: np.ndarray) -> np.ndarray:
        total_R, labels_R = np.zeros(len(times_RI)), np.zeros(len(times_RI))
        for part in parts:
            found_R = _precision_R(*part, times_RI)
            there_R = ~np.isnan(found_R)
            total_R += np.where(there_R, found_R, 0)
            labels_R += there_R
        return total_R / np.where(labels_R > 0, labels_R, np.nan)

    return Summands(_EachImage(len(scores_IC)), score)  # type: ignore[arg-type]


def f1_by_class(chosen_IC: np.ndarray, right_IC: np.ndarray) -> Summands:
    """CF1: 2 CP CR / (CP + CR), of the mean precision and the mean recall of the labels that any image has.

    The precision of a label that is never predicted is 0. As in the literature (Wang et al. 2016, Chen et al. 2019).
    """
    return Summands(_counts(chosen_IC, right_IC), partial(_f1, labels=right_IC.shape[1]))


def f1_overall(chosen_IC: np.ndarray, right_IC: np.ndarray) -> Summands:
    """OF1: F1 of all labels of all images together."""
    counts_I3 = _counts(chosen_IC, right_IC).reshape(len(right_IC), 3, -1).sum(axis=2)
    return Summands(counts_I3, lambda sums_R3: _ratio(2 * sums_R3[:, 0], sums_R3[:, 1] + sums_R3[:, 2]))


def f1_of_images(chosen_IC: np.ndarray, right_IC: np.ndarray) -> np.ndarray:
    """float64 [I]: F1 of the labels of each image; 1 where it has none and gets none."""
    both_I = (chosen_IC & right_IC).sum(axis=1)
    all_I = chosen_IC.sum(axis=1) + right_IC.sum(axis=1)
    return np.where(all_I > 0, 2 * both_I / np.maximum(all_I, 1), 1.0)


def _counts(chosen_IC: np.ndarray, right_IC: np.ndarray) -> np.ndarray:
    """[I, 3 C]: predicted and right, predicted, right."""
    return np.concatenate([chosen_IC & right_IC, chosen_IC, right_IC], axis=1).astype(float)


def _f1(sums_RS: np.ndarray, labels: int) -> np.ndarray:
    both_RC, chosen_RC, right_RC = (sums_RS[:, part * labels : (part + 1) * labels] for part in range(3))
    there_RC = right_RC > 0
    count_R = there_RC.sum(axis=1)
    precision_R = _ratio((_ratio(both_RC, chosen_RC) * there_RC).sum(axis=1), count_R)
    recall_R = _ratio((_ratio(both_RC, right_RC) * there_RC).sum(axis=1), count_R)
    return _ratio(2 * precision_R * recall_R, precision_R + recall_R)


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """0 where there is nothing to divide by."""
    divided: np.ndarray = np.divide(top, bottom, out=np.zeros(np.shape(top)), where=bottom > 0)
    return divided


def _sorted(score_I: np.ndarray, right_I: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(the images from the highest score to the lowest, which of them have the label, the last of each G in it)."""
    order_I = np.argsort(-score_I, kind="stable")
    falling_I = score_I[order_I]
    last_G = np.flatnonzero(np.append(falling_I[1:] != falling_I[:-1], True))
    return order_I, right_I[order_I].astype(float), last_G


def _precision_R(order_I: np.ndarray, right_I: np.ndarray, last_G: np.ndarray, times_RI: np.ndarray) -> np.ndarray:
    """Average precision [R], where image i is there `times` [R, I]; NaN where none has the label."""
    times_RI = times_RI[:, order_I]
    found_RG = np.cumsum(times_RI * right_I, axis=1)[:, last_G]
    listed_RG = np.cumsum(times_RI, axis=1)[:, last_G]
    steps_RG = np.diff(found_RG, axis=1, prepend=0)
    total_R = found_RG[:, -1]
    summed_R = (steps_RG * _ratio(found_RG, listed_RG)).sum(axis=1)
    precision_R: np.ndarray = np.divide(summed_R, total_R, out=np.full(len(total_R), np.nan), where=total_R > 0)
    return precision_R


class _EachImage:
    """Rows of `Summands` whose sums say how often each image is there: the identity [I, I], which is not stored."""

    __array_ufunc__ = None  # numpy leaves `drawn @ rows` to it

    def __init__(self, images: int) -> None:
        self._images = images

    def __len__(self) -> int:
        return self._images

    def sum(self, axis: int, keepdims: bool) -> np.ndarray:
        assert axis == 0 and keepdims
        return np.ones((1, self._images))

    def __rmatmul__(self, drawn_RI: np.ndarray) -> np.ndarray:
        return drawn_RI
