"""Runs side by side: what differs between them, their scores with error bars, their size and speed.

Runs that differ in nothing but the seed are one row. The intervals of a single run are those of its scores.json, as
its page shows them. Those of several seeds are a bootstrap over the seeds and over the examples (Efron & Tibshirani
1993), of the mean of the examples' scores; metrics that are no such mean (BLEU, METEOR) get none.

An evaluation that kept something from the model (eval.blind) is no row but a column of the row of the same weights
with everything: how far the score falls is what the image, or the source, is worth. The best floor, which is what a
trivial rule scores, stands next to them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from velm_cli.errors import on_one_line
from velm_cli.report.runs import ScoredRun
from velm_cli.schema.metric_names import Column

RESAMPLES = 2000
BLIND = {"image": "no image", "shuffled": "shuffled", "source": "no source"}  # eval.blind -> heading


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: the runs that differ in the seed alone."""

    label: tuple[str, ...]  # values of the options that differ between the rows
    runs: int
    scores: dict[str, float | None]  # means over the runs
    intervals: dict[str, tuple[float, float] | None]  # 95 %
    trained: int | None
    captions_per_s: float | None
    controls: dict[str, dict[str, float | None]] = field(default_factory=dict)  # eval.blind -> scores
    floor: tuple[str, float] | None = None  # name and score of the best trivial rule


@dataclass(frozen=True, slots=True)
class Table:
    """Runs of one task: the options that differ (but the seed), and a row for each of their combinations."""

    differing: list[str]
    rows: list[Row]
    columns: tuple[Column, ...]
    metric: Column  # that the rows are ordered by
    speed: str = "captions/s"  # what is counted in a second

    @property
    def shown(self) -> list[Column]:
        """The columns of the table: what some row has, and what was asked for."""
        return [
            column
            for column in self.columns
            if column == self.metric
            or (column.in_tables and any(row.scores.get(column.key) is not None for row in self.rows))
        ]

    @property
    def blind(self) -> list[str]:
        """The controls that some row has."""
        return [kind for kind in BLIND if any(kind in row.controls for row in self.rows)]

    def control(self, row: Row, kind: str) -> tuple[float, float] | None:
        """The score of `row` without what `kind` keeps from the model, and how much of the score it is without it."""
        value, full = row.controls.get(kind, {}).get(self.metric.key), row.scores.get(self.metric.key)
        return None if value is None or full is None else (value, value - full)


def compare(runs: Sequence[ScoredRun], metric: str | None = None) -> Table:
    """A row for each combination of the options in which the runs differ, the best by `metric` first.

    The runs are of one task, whose primary score is the default.
    """
    (columns,) = {run.columns for run in runs}
    by = next(column for column in columns if column.key == (metric or runs[0].primary))
    runs, controls = _controls(runs)
    common = set.intersection(*(set(run.options) for run in runs)) - {"seed"}
    differing = sorted(key for key in common if len({json.dumps(run.options[key], default=str) for run in runs}) > 1)
    if not differing:
        differing = [] if _differ_in_the_seed_alone(runs) else ["run"]
    groups = _groups(runs, differing)
    if not all(map(_differ_in_the_seed_alone, groups.values())):  # a run and its evaluations, say: no mean of these
        differing = [*differing, "run"]
        groups = _groups(runs, differing)
    rows = [_row(label, group, controls, by) for label, group in groups.items()]
    sign = 1 if by.higher_is_better else -1
    rows.sort(key=lambda row: sign * (row.scores[by.key] or 0.0), reverse=True)
    speed = "captions/s" if runs[0].task in ("caption", "retrieve") else "targets/s"
    return Table([key.removesuffix(".kind") for key in differing], rows, columns, by, speed)


Controls = dict[tuple[str, str], ScoredRun]  # (twin, eval.blind)


def _controls(runs: Sequence[ScoredRun]) -> tuple[list[ScoredRun], Controls]:
    """The runs that are rows, and the blind ones that have a twin among them."""
    full = [run.twin for run in runs if run.blind == "none"]
    # With two evaluations of the same there is no telling whose control it is.
    controls = {(run.twin, run.blind): run for run in runs if run.blind in BLIND and full.count(run.twin) == 1}
    attached = {id(run) for run in controls.values()}
    return [run for run in runs if id(run) not in attached], controls


def _groups(runs: Sequence[ScoredRun], differing: Sequence[str]) -> dict[tuple[str, ...], list[ScoredRun]]:
    names = [run.folder.name for run in runs]
    groups: dict[tuple[str, ...], list[ScoredRun]] = {}
    for run in runs:
        name = run.folder.name if names.count(run.folder.name) == 1 else str(run.folder)
        label = tuple(name if key == "run" else str(run.options[key]) for key in differing)
        groups.setdefault(label, []).append(run)
    return groups


def _differ_in_the_seed_alone(group: Sequence[ScoredRun]) -> bool:
    others = [{key: value for key, value in run.options.items() if key != "seed"} for run in group]
    return all(each == others[0] for each in others) and len({run.options.get("seed") for run in group}) == len(group)


def _row(label: tuple[str, ...], runs: list[ScoredRun], controls: Controls, by: Column) -> Row:
    def mean(values: list) -> float | None:
        return None if any(value is None for value in values) else float(np.mean(values))

    return Row(
        label=label,
        runs=len(runs),
        scores={column.key: mean([run.scores.get(column.key) for run in runs]) for column in runs[0].columns},
        intervals={column.key: _interval(runs, column) for column in runs[0].columns},
        trained=runs[0].trained,
        captions_per_s=mean([run.captions_per_s for run in runs]),
        controls={
            kind: {key: mean([twin.scores.get(key) for twin in twins]) for key in runs[0].scores}
            for kind in BLIND
            if runs[0].blind == "none"  # a control has none itself
            and len(twins := [controls[run.twin, kind] for run in runs if (run.twin, kind) in controls]) == len(runs)
        },
        floor=best_floor(runs[0].floors, by),
    )


def best_floor(floors: Mapping[str, Mapping[str, float | None]], column: Column) -> tuple[str, float] | None:
    """Name and score of the trivial rule that is hardest to beat; None where no floor has this column."""
    found = [(name, value) for name, values in floors.items() if (value := values.get(column.key)) is not None]
    pick = max if column.higher_is_better else min
    return pick(found, key=lambda item: item[1], default=None)


def _interval(runs: list[ScoredRun], column: Column) -> tuple[float, float] | None:
    if len(runs) == 1 and runs[0].intervals.get(column.key):
        return runs[0].intervals[column.key]
    return bootstrap([run.per_image for run in runs], column.key) if column.is_mean else None


def bootstrap(per_image: list[dict[Any, dict[str, float | None]]], metric: str) -> tuple[float, float] | None:
    """95 % interval of the mean score, over seeds and examples; None where one has no score."""
    shared = sorted(set.intersection(*(set(images) for images in per_image)), key=str)
    values = [[images[image].get(metric) for image in shared] for images in per_image]
    if not shared or any(value is None for row in values for value in row):
        return None
    scores_SI = np.array(values, dtype=float)
    rng = np.random.default_rng(0)
    seeds, images = scores_SI.shape
    means = [
        scores_SI[rng.integers(seeds, size=seeds)][:, rng.integers(images, size=images)].mean()
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def text(table: Table) -> str:
    """Aligned text; scores as the field prints them."""
    shown, metric = table.shown, table.metric
    header = [*table.differing, "runs", *(column.label for column in shown), f"{metric.label} 95 %"]
    header += [BLIND[kind] for kind in table.blind]
    floored = any(row.floor for row in table.rows)
    header += ["floor"] * floored + ["trained", table.speed]
    body = []
    for row in table.rows:
        cells = [*row.label, str(row.runs), *(column.shown(row.scores.get(column.key)) for column in shown)]
        interval = row.intervals.get(metric.key)
        cells.append("-" if interval is None else " to ".join(metric.ends(interval)))
        cells += [control_text(table, row, kind) for kind in table.blind]
        cells += [floor_text(table, row)] * floored
        cells.append("-" if row.trained is None else f"{row.trained / 1e6:.2f} M")
        cells.append("-" if row.captions_per_s is None else f"{row.captions_per_s:,.0f}")
        body.append(cells)
    header, *body = [list(map(on_one_line, line)) for line in (header, *body)]  # options of strangers' runs
    widths = [max(len(line[column]) for line in [header, *body]) for column in range(len(header))]
    words = len(table.differing)

    def aligned(cells: list[str]) -> str:
        parts = (
            cell.ljust(width) if column < words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(parts).rstrip()

    return "\n".join(aligned(line) for line in [header, *body])


def control_text(table: Table, row: Row, kind: str) -> str:
    """The score without what is kept from the model, and the drop: `29.9 (-8.1)`."""
    found = table.control(row, kind)
    if found is None:
        return "-"
    return f"{table.metric.shown(found[0])} ({table.metric.scale * found[1]:+.{table.metric.digits}f})"


def floor_text(table: Table, row: Row) -> str:
    """`29.9 prior by question type`."""
    return "-" if row.floor is None else f"{table.metric.shown(row.floor[1])} {row.floor[0]}"
