"""Two systems on the same images: which is better, by how much, and how sure that is.

One sign everywhere, ours minus theirs: for the table on the terminal, the sentence above it, `scores.json` and the
page. Differences of scores have their own interval: two intervals that overlap do not say that the systems are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from velm_cli.metrics import meteor, recall
from velm_cli.metrics.overlap import bleu_of_order
from velm_cli.metrics.significance import RESAMPLES, Interval, Summands, mean_of, paired_bootstrap, paired_permutation
from velm_cli.schema.metric_names import CAPTION_COLUMNS, CAPTION_PRIMARY, COLUMNS, Column

# Of captions without the score that runs are compared by, the sentence is about the first of these.
FIRST = ("SPICE", "METEOR", "ROUGE_L", "Bleu_4", "CLIPScore", "Bleu_3", "Bleu_2", "Bleu_1", "RefCLIPScore")
SURE = 0.05  # p below it: the difference is called one
COUNTS = {**dict.fromkeys(COLUMNS["bleu"], "bleu"), "METEOR": "meteor"}  # scores that are no means: what they are of
COUNTS |= dict.fromkeys((*recall.RECALLS, recall.RSUM), "recall")
WIDTHS = {"bleu": 10, "meteor": 23, "recall": recall.WIDTH}  # numbers that an image adds to each


@dataclass(frozen=True, slots=True)
class Difference:
    """A score of two systems, as fractions. `interval` (95 %) is of ours minus theirs; None where it is not known."""

    ours: float
    theirs: float
    interval: Interval | None
    p: float  # of the paired permutation test

    @property
    def value(self) -> float:
        return self.ours - self.theirs


def differences(
    ours: Mapping[str, Summands],
    theirs: Mapping[str, Summands],
    resamples: int = RESAMPLES,
    *,
    columns: Sequence[Column] = CAPTION_COLUMNS,
) -> dict[str, Difference]:
    """By the key of each score that both systems have; their rows are of the same examples in the same order."""
    shared = [column.key for column in columns if column.key in ours and column.key in theirs]
    totals = {name: (ours[name].total(), theirs[name].total()) for name in shared}
    totals = {name: both for name, both in totals.items() if np.isfinite(both).all()}
    intervals = paired_bootstrap(
        {name: ours[name] for name in totals}, {name: theirs[name] for name in totals}, resamples=resamples
    )
    return {
        name: Difference(*both, intervals[name], paired_permutation(ours[name], theirs[name]))
        for name, both in totals.items()
    }


def verdict(
    ours: str,
    theirs: str,
    found: Mapping[str, Difference],
    *,
    columns: Sequence[Column] = CAPTION_COLUMNS,
    primary: str = CAPTION_PRIMARY,
) -> str:
    """`B is worse than A: CIDEr 13.3 lower, 95 % interval of the difference -20.1 to -6.9, p = 0.0001`."""
    by_key = {column.key: column for column in columns}
    name = next((name for name in (primary, *FIRST, *by_key) if name in found), None)
    if name is None:
        return f"{ours} and {theirs} have no score in common"
    one, column = found[name], by_key[name]
    if one.p < SURE:
        better = (one.value > 0) == column.higher_is_better
        begin = f"{ours} is {'better' if better else 'worse'} than {theirs}"
    else:
        begin = f"{ours} and {theirs} do not differ by more than chance explains"
    size = f"{column.label} {column.shown(abs(one.value))} {'higher' if one.value >= 0 else 'lower'}"
    between = "" if one.interval is None else f", 95 % interval of the difference {interval_text(one.interval, column)}"
    return f"{begin}: {size}{between}, p = {one.p:.4f}"


def interval_text(interval: Interval, column: Column) -> str:
    """Of a difference, as the column is shown: `-20.1 to -6.9`."""
    return " to ".join(f"{column.scale * end:+.{column.digits}f}" for end in interval)


def comparison_table(found: Mapping[str, Difference], columns: Sequence[Column] = CAPTION_COLUMNS) -> str:
    """The differences as aligned text, this minus that; p of the paired permutation test."""
    by_key = {column.key: column for column in columns}
    width = max([8, *(len(by_key[name].label) + 1 for name in found)])
    rows = [f"{'against':<{width}}{'this':>7}{'that':>7}{'diff':>7}{'p':>9}   95 % of the difference"]
    for name, one in found.items():
        column = by_key[name]
        interval = "" if one.interval is None else f"   {interval_text(one.interval, column)}"
        change = f"{column.scale * one.value:+.{column.digits}f}"
        figures = f"{column.shown(one.ours):>7}{column.shown(one.theirs):>7}{change:>7}{one.p:>9.4f}"
        rows.append(f"{column.label:<{width}}{figures}{interval}")
    return "\n".join(rows)


def as_json(
    ours: str,
    theirs: str,
    found: Mapping[str, Difference],
    *,
    columns: Sequence[Column] = CAPTION_COLUMNS,
    primary: str = CAPTION_PRIMARY,
) -> dict[str, Any]:
    """What `scores.json` keeps of a comparison: all as fractions, the difference is this minus that."""
    return {
        "this": ours,
        "that": theirs,
        "verdict": verdict(ours, theirs, found, columns=columns, primary=primary),
        "differences": {
            name: {
                "this": one.ours,
                "that": one.theirs,
                "difference": one.value,
                "interval": one.interval,
                "p": one.p,
            }
            for name, one in found.items()
        },
    }


# ------------------------------------------------------------------------------------- of finished folders


def counts_of(summands: Mapping[str, Summands], image: int) -> dict[str, list[float]]:
    """What the image adds to the scores that are no means of the images' own: lets folders be compared later."""
    found = {}
    for name, kind in COUNTS.items():
        if name in summands and kind not in found:
            row = summands[name].rows_IS[image].tolist()
            found[kind] = [int(count) if count == int(count) else count for count in row]
    return found


def _clusters(images: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
    """Which images are drawn together, where all say what they belong to."""
    named = [image.get("about", {}).get("cluster") for image in images]
    if not all(isinstance(name, str) for name in named):
        return None
    numbers: np.ndarray = np.unique(named, return_inverse=True)[1]
    return numbers


def summands_of(images: Sequence[Mapping[str, Any]], name: str) -> Summands | None:
    """What the score `name` is made of, from lines of `per_image.jsonl`; None where they do not hold it."""
    kind = COUNTS.get(name)
    if kind is None:
        values = [image["scores"].get(name) for image in images]
        return None if all(value is None for value in values) else mean_of(values, _clusters(images))
    rows = [image.get("counts", {}).get(kind) for image in images]
    if not rows or any(row is None or len(row) != WIDTHS[kind] for row in rows):  # an older velm's
        return None
    scores: dict[str, Callable[..., Callable[[np.ndarray], np.ndarray]]] = {
        "bleu": lambda: partial(bleu_of_order, order=COLUMNS["bleu"].index(name)),
        "meteor": lambda: meteor.score_of_sums,
        "recall": lambda: partial(recall.recall_of_sums, name=name),
    }
    return Summands(np.array(rows, dtype=float), scores[kind]())
