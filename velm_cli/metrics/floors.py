"""Floors: what a rule that looks at nothing scores, and the sentence where a model is no better than it.

A score that the majority answer reaches too says nothing about the model, and tables without floors hide it.
"""

from __future__ import annotations

from velm_cli.metrics.comparison import interval_text
from velm_cli.metrics.scores import Scores
from velm_cli.metrics.significance import RESAMPLES, Interval, paired_bootstrap
from velm_cli.schema.metric_names import Column


def warn_of_floors(scores: Scores, resamples: int = RESAMPLES) -> None:
    """Adds a sentence to the warnings when the primary score is not surely better than its best floor.

    By the paired bootstrap where the floor's score of each example is known, by the score's own interval where only
    the floor's value is, and by the values alone where there is no interval.
    """
    column = next(column for column in scores.columns if column.key == scores.primary)
    value = scores.corpus.get(column.key)
    floors = {name: floor for name, values in scores.floors.items() if (floor := values.get(column.key)) is not None}
    if value is None or not floors:
        return
    best = max if column.higher_is_better else min
    name = best(floors, key=lambda each: floors[each])
    interval = _difference(scores, name, floors[name], column, resamples)
    sign = 1 if column.higher_is_better else -1
    least = sign * (value - floors[name]) if interval is None else min(sign * end for end in interval)
    if least > 0:
        return
    ends = "" if interval is None else f", 95 % interval of the difference {interval_text(interval, column)}"
    most = sign * (value - floors[name]) if interval is None else max(sign * end for end in interval)
    worse = most < 0
    scores.warnings.append(
        f"{column.label} {column.shown(value)} is {'worse' if worse else 'no better'} than the floor {name!r} "
        f"{column.shown(floors[name])}{ends}: a rule that looks at nothing does as well"
    )


def _difference(scores: Scores, name: str, floor: float, column: Column, resamples: int) -> Interval | None:
    """The 95 % interval of the score minus the floor; None where it is not known."""
    of_floor = scores.floor_summands.get(name, {}).get(column.key)
    ours = scores.summands.get(column.key)
    if of_floor is not None and ours is not None and resamples:
        return paired_bootstrap({column.key: ours}, {column.key: of_floor}, resamples=resamples)[column.key]
    interval = scores.intervals.get(column.key)
    return None if interval is None else (interval[0] - floor, interval[1] - floor)
