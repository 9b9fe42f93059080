"""Labels of images, scored: top-1 and top-5, or mAP, CF1 and OF1 where an image may have several; over their floors.

Shapes: I images, C labels.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from velm_cli import __version__
from velm_cli.errors import UserError
from velm_cli.metrics.classification import (
    average_precisions,
    f1_by_class,
    f1_of_images,
    f1_overall,
    mean_average_precision,
    top_k,
)
from velm_cli.metrics.floors import warn_of_floors
from velm_cli.metrics.scores import ExampleId, Scores
from velm_cli.metrics.significance import Summands, bootstrap_all, mean_of
from velm_cli.schema import MetricsConfig
from velm_cli.schema.metric_names import Column

SINGLE = (
    Column("top1", "Top-1", meaning="share of the images whose likeliest label is right; ties count by their share"),
    Column("top5", "Top-5", meaning="share of the images whose label is among the five likeliest"),
    Column("mAP", "mAP", is_mean=False, meaning="mean over labels of the average precision, not interpolated"),
)
SEVERAL = (
    Column("mAP", "mAP", is_mean=False, meaning="mean over labels of the average precision, not interpolated"),
    Column("CF1", "CF1", is_mean=False, meaning="F1 of the labels' mean precision and mean recall"),
    Column("OF1", "OF1", is_mean=False, meaning="F1 of all labels of all images together"),
    Column("F1", "F1 per image", in_tables=False, meaning="mean over images of the F1 of their labels"),
)
AT_LEAST = 0.5  # of the probability of one of several labels
WORTH_RESAMPLING = 4 * 10**9  # images x labels x resamples from which on mAP gets no interval: minutes
LARGEST_TABLE = 1000  # labels of a confusion table in a file


@dataclass(slots=True)
class Found:
    """What a system says of images: the labels that it chose, and its scores [C] of `labels` where it tells them.

    `decided`: whether `chosen` are its own decisions, label by label; False where there is only an order.
    """

    labels: Sequence[str]
    chosen: Mapping[ExampleId, Sequence[str]]
    scores: Mapping[ExampleId, np.ndarray] | None = None
    decided: bool = True
    told: Mapping[str, Any] = field(default_factory=dict)  # for the signature


def columns_of(single: bool) -> tuple[Column, ...]:
    return SINGLE if single else SEVERAL


def primary_of(single: bool) -> str:
    return columns_of(single)[0].key


def score_labels(
    truth: Mapping[ExampleId, Sequence[str]],
    found: Found,
    config: MetricsConfig,
    *,
    single: bool,
    training: Collection[Sequence[str]] | None = None,
    images: Mapping[ExampleId, ExampleId] | None = None,
) -> Scores:
    """The scores of one prediction for each image, by its id; `single`: an image has exactly one label.

    Floors are learned from the labels of `training` images, or, without them, from the scored ones themselves.
    UserError when the ids differ, or a truth does not fit `single`.
    """
    _check(truth, found, single)
    seen = _Seen.of(truth, found)
    names = seen.names
    summands, reasons = seen.summands(single)
    columns = columns_of(single)
    corpus = {c.key: summands[c.key].total() if c.key in summands else None for c in columns}
    quick = len(truth) * len(names) * max(1, config.resamples) <= WORTH_RESAMPLING
    resampled = {key: one for key, one in summands.items() if key != "mAP" or quick}
    intervals = dict.fromkeys(corpus) | bootstrap_all(resampled, resamples=config.resamples)
    if not quick:
        reasons["mAP interval"] = "too many images and labels to be resampled"
    own = ("top1", "top5") if single else ("F1",)
    each = {key: summands[key].rows_IS[:, 0].tolist() for key in own if key in summands}
    scores = Scores(
        corpus=corpus,
        intervals=intervals,
        reasons=reasons,
        per_image={name: {key: values[row] for key, values in each.items()} for row, name in enumerate(truth)},
        signature=_signature(truth, found, names, training, single),
        warnings=_unknown(truth, found),
        references={name: list(labels) for name, labels in truth.items()},
        hypotheses={name: ", ".join(found.chosen[name]) for name in truth},
        summands={key: one for key, one in summands.items() if key != "mAP"},
        task="classify",
        columns=columns,
        primary=primary_of(single),
        groups={"label": seen.groups(single)},
        about=_about(truth, found, images),
        files={"confusion.csv": seen.table(single)} if len(names) <= LARGEST_TABLE else {},
    )
    for name, floor in _floors(seen, training or list(truth.values()), single).items():
        scores.floors[name] = {key: floor[key].total() if key in floor else None for key in corpus}
        scores.floor_summands[name] = {key: one for key, one in floor.items() if key != "mAP"}
    warn_of_floors(scores, config.resamples)
    return scores


def quick_figures(truth: Mapping[ExampleId, Sequence[str]], found: Found, *, single: bool) -> dict[str, float]:
    """Those of a validation, by the primary score's name in small letters first."""
    summands, _ = _Seen.of(truth, found).summands(single)
    wanted = ("top1", "top5") if single else ("mAP", "CF1", "OF1")
    return {key.lower(): summands[key].total() for key in wanted if key in summands}


@dataclass(frozen=True, slots=True)
class _Seen:
    """Truth and predictions as arrays over all labels that either names."""

    names: Sequence[str]
    right_IC: np.ndarray
    chosen_IC: np.ndarray
    scores_IC: np.ndarray | None
    decided: bool = True

    @staticmethod
    def of(truth: Mapping[ExampleId, Sequence[str]], found: Found) -> _Seen:
        names = list(dict.fromkeys([*found.labels, *(label for each in truth.values() for label in each)]))
        right_IC, chosen_IC = _marked(names, truth.values()), _marked(names, (found.chosen[name] for name in truth))
        if found.scores is None:
            return _Seen(names, right_IC, chosen_IC, None, found.decided)
        scores_IC = np.stack([np.asarray(found.scores[name], np.float64) for name in truth])
        unknown = len(names) - scores_IC.shape[1]  # labels of the truth alone come last, below all others
        scores_IC = np.pad(scores_IC, ((0, 0), (0, unknown)), constant_values=-np.inf)
        return _Seen(names, right_IC, chosen_IC, scores_IC, found.decided)

    def summands(self, single: bool) -> tuple[dict[str, Summands], dict[str, str]]:
        """What each score is made of, and why others are missing."""
        found: dict[str, Summands] = {}
        reasons: dict[str, str] = {}
        if single:
            label_I = self.right_IC.argmax(axis=1)
            scores_IC = self.chosen_IC.astype(float) if self.scores_IC is None else self.scores_IC
            found["top1"] = mean_of(top_k(scores_IC, label_I, 1).tolist())
            if self.scores_IC is None:
                reasons["top5"] = reasons["mAP"] = "the predictions are labels without scores"
            elif len(self.names) <= 5:
                reasons["top5"] = f"there are {len(self.names)} labels"
            else:
                found["top5"] = mean_of(top_k(scores_IC, label_I, 5).tolist())
        if self.scores_IC is not None:
            found["mAP"] = mean_average_precision(self.scores_IC, self.right_IC)
        elif not single:
            reasons["mAP"] = "the predictions are labels without scores"
        if not single and self.decided:
            found["CF1"] = f1_by_class(self.chosen_IC, self.right_IC)
            found["OF1"] = f1_overall(self.chosen_IC, self.right_IC)
            found["F1"] = mean_of(f1_of_images(self.chosen_IC, self.right_IC).tolist())
        elif not single:
            why = "the scores order labels, and say of none by itself whether it is there"
            reasons |= dict.fromkeys(("CF1", "OF1", "F1"), why)
        return found, reasons

    def groups(self, single: bool) -> dict[str, dict[str, float | None]]:
        """Count and figures of each label that an image has, the frequent ones first."""
        counts_C = self.right_IC.sum(axis=0)
        both_C, chosen_C = (self.right_IC & self.chosen_IC).sum(axis=0), self.chosen_IC.sum(axis=0)
        ap_C = None if self.scores_IC is None else average_precisions(self.scores_IC, self.right_IC)
        found: dict[str, dict[str, float | None]] = {}
        for c in sorted(np.flatnonzero(counts_C).tolist(), key=lambda c: (-counts_C[c], self.names[c])):
            figures: dict[str, float | None] = {"count": int(counts_C[c])}
            if self.decided:
                figures["recall"] = float(both_C[c] / counts_C[c])
                figures["precision"] = float(both_C[c] / chosen_C[c]) if chosen_C[c] else None
            if ap_C is not None:
                figures["AP"] = float(ap_C[c])
            found[self.names[c]] = figures
        return found

    def table(self, single: bool) -> bytes:
        """CSV. single: a row for each right label, a column for each predicted one; else how often each was found."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        if single:
            rows.writerow(["right", *self.names])
            counts_CC = self.right_IC.T.astype(np.int64) @ self.chosen_IC.astype(np.int64)
            rows.writerows([name, *row] for name, row in zip(self.names, counts_CC.tolist(), strict=True))
        else:
            rows.writerow(["label", "found", "missed", "wrongly predicted", "rightly left out"])
            both_C = (self.right_IC & self.chosen_IC).sum(axis=0)
            missed_C, wrong_C = self.right_IC.sum(axis=0) - both_C, self.chosen_IC.sum(axis=0) - both_C
            left_C = len(self.right_IC) - both_C - missed_C - wrong_C
            counted = zip(self.names, *(c.tolist() for c in (both_C, missed_C, wrong_C, left_C)), strict=True)
            rows.writerows(counted)
        return text.getvalue().encode(errors="backslashreplace")


def _marked(names: Sequence[str], labels: Iterable[Sequence[str]]) -> np.ndarray:
    """bool [I, C]"""
    place = {name: number for number, name in enumerate(names)}
    rows = [[place[label] for label in each] for each in labels]
    marked_IC = np.zeros((len(rows), len(names)), bool)
    for row, places in enumerate(rows):
        marked_IC[row, places] = True
    return marked_IC


def _floors(seen: _Seen, training: Collection[Sequence[str]], single: bool) -> dict[str, dict[str, Summands]]:
    """What rules score that say the same of every image: the commonest label (of the training images, and of those that
    are scored); of several labels those that most images have, or all of them."""
    counts = Counter(label for labels in training for label in labels)
    shares_C = np.array([counts[name] / max(1, len(training)) for name in seen.names])
    scores_IC = np.repeat(shares_C[None], len(seen.right_IC), axis=0)
    if single:
        rules = {}
        most, best = int(shares_C.argmax()), int(seen.right_IC.sum(axis=0).argmax())  # of equal ones the first
        for name, place in {"majority": most, "the commonest of those scored": best}.items():
            if name == "majority" or best != most:
                first_C = np.arange(len(seen.names)) == place
                rules[f"{name}: {seen.names[place]}"] = first_C, scores_IC + first_C
    else:
        rules = {"label frequencies": (shares_C >= AT_LEAST, scores_IC), "every label": (shares_C >= 0, scores_IC)}
    return {
        name: _Seen(seen.names, seen.right_IC, np.broadcast_to(chosen_C, scores_IC.shape), scores_IC).summands(single)[
            0
        ]
        for name, (chosen_C, scores_IC) in rules.items()
    }


def _check(truth: Mapping[ExampleId, Sequence[str]], found: Found, single: bool) -> None:
    if not truth:
        raise UserError("there are no labels to score against")
    for problem, ids in (
        ("no prediction for", [name for name in truth if name not in found.chosen]),
        ("no label in the references of", [name for name in found.chosen if name not in truth]),
        ("several labels in the references of", [n for n, each in truth.items() if single and len(set(each)) != 1]),
    ):
        if ids:
            raise UserError(f"{problem} {len(ids):,} images (first {ids[0]})")


def _signature(
    truth: Mapping[ExampleId, Sequence[str]],
    found: Found,
    names: Sequence[str],
    training: Collection[Sequence[str]] | None,
    single: bool,
) -> dict[str, Any]:
    source = f"{len(training):,} training images" if training else "the scored images themselves, no training's"
    told = {"velm": __version__, "images": len(truth), "labels": len(names)}
    if single:
        told["top_k"] = "labels with one score count by the share of their orders: two at the first place half each"
    else:
        told["F1"] = "CF1 = 2 CP CR / (CP + CR) of means over labels; a label that is never predicted has precision 0"
    told["mAP"] = "mean over labels with images, not interpolated, as scikit-learn's average_precision_score"
    return {**told, "floors": f"learned from {source}", **found.told}


def _unknown(truth: Mapping[ExampleId, Sequence[str]], found: Found) -> list[str]:
    known = set(found.labels)
    strange = Counter(label for labels in truth.values() for label in labels if label not in known)
    if not strange:
        return []
    first = ", ".join(label for label, _ in strange.most_common(3))
    return [f"{len(strange):,} labels of {strange.total():,} images are none that can be predicted ({first})"]


def _about(
    truth: Mapping[ExampleId, Sequence[str]], found: Found, images: Mapping[ExampleId, ExampleId] | None
) -> dict[ExampleId, dict[str, Any]]:
    """What the page shows of an image beside its labels: the likeliest ones with their scores, if these are shares."""
    about: dict[ExampleId, dict[str, Any]] = {name: {} for name in truth}
    for name in truth:
        if images is not None and name in images:
            about[name]["image"] = images[name]
        if found.scores is not None:
            scores_C = found.scores[name]
            best = np.argsort(-scores_C, kind="stable")[:5].tolist()
            about[name]["alternatives"] = [[found.labels[c], float(scores_C[c])] for c in best]
    return about
