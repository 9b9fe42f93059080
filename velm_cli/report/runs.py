"""Runs side by side: what differs between them, their scores with error bars, their size and speed.

Runs that differ in nothing but the seed are one row. The intervals of a single run are those of its scores.json, as
its page shows them. Those of several seeds are a bootstrap over the seeds and over the images (Efron & Tibshirani
1993), of the mean of the per-image scores; metrics that are no such mean (BLEU, METEOR) get none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from velm_cli import configs
from velm_cli.errors import UserError, on_one_line
from velm_cli.metrics.scores import read_images, read_summary
from velm_cli.report.logs import read_figures
from velm_cli.schema.metric_names import COLUMNS, LABELS, NAMES

SHOWN = ("Bleu_4", "METEOR", "ROUGE_L", "CIDEr", "SPICE", "CLIPScore", "RefCLIPScore")  # and the metric asked for
NO_AVERAGES = COLUMNS["bleu"] + COLUMNS["meteor"]  # counted over the corpus; the others are means over images
RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class ScoredRun:
    """A finished run folder of train, finetune or evaluate."""

    folder: Path
    options: dict[str, Any]  # every option of the experiment, flat; of the training run if it is an evaluation
    scores: dict[str, float | None]
    per_image: dict[Any, dict[str, float | None]]
    trained: int | None  # parameters that learn
    captions_per_s: float | None  # in training, median over the log lines
    intervals: dict[str, tuple[float, float] | None] = field(default_factory=dict)  # 95 %, of the scores


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: the runs that differ in the seed alone."""

    label: tuple[str, ...]  # values of the options that differ between the rows
    runs: int
    scores: dict[str, float | None]  # means over the runs
    intervals: dict[str, tuple[float, float] | None]  # 95 %
    trained: int | None
    captions_per_s: float | None


def read_run(folder: Path) -> ScoredRun:
    """Raises UserError when `folder` is not a run folder with scores."""
    try:
        scores = read_summary(folder)
        per_image = {image["image_id"]: image["scores"] for image in read_images(folder)}
    except FileNotFoundError as error:
        hint = "" if (folder / "config.yaml").is_file() else "it is not a run folder"
        raise UserError(f"{folder}: {hint or 'it has no scores (yet)'}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: its scores are damaged ({error}); evaluate again with fresh=true") from error
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: it is no run folder but scores of velm score, whose page compares two: vs=OTHER")
    config = _config(folder)
    home = folder
    if config.get("stage") == "evaluate":
        if not (
            isinstance(config.get("checkpoint"), str) and isinstance(config.get("decode"), dict) and "split" in config
        ):
            raise UserError(f"{folder / 'config.yaml'} is not a config of this version of velm")
        home = configs.run_folder_of(config["checkpoint"])
        options = configs.experiment_of(_config(home)) | {
            f"decode.{key}": value for key, value in config["decode"].items() if key != "batch_size"
        }
        options["split"] = config["split"]
    else:
        options = configs.experiment_of(config)
    options.pop("checkpoint", None)
    start: dict[str, Any] = {}
    speeds: list[float] = []
    if (home / "metrics.jsonl").is_file():
        lines = read_figures(home)
        start = next((line for line in reversed(lines) if line["kind"] == "start"), {})
        speeds = [line["captions_per_s"] for line in lines if math.isfinite(line.get("captions_per_s") or math.nan)]
    return ScoredRun(
        folder=folder,
        options=options,
        scores={name: scores.get(name) for name in NAMES},
        per_image=per_image,
        trained=start.get("trained"),
        captions_per_s=float(np.median(speeds)) if speeds else None,
        intervals={name: (ends[0], ends[1]) for name, ends in scores.get("intervals", {}).items() if ends},
    )


def _config(folder: Path) -> dict[str, Any]:
    config = OmegaConf.to_container(configs.read_config(folder / "config.yaml"))
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise UserError(f"{folder / 'config.yaml'} is not a config of this version of velm")
    return {str(key): value for key, value in config.items()}


def compare(runs: Sequence[ScoredRun], metric: str = "CIDEr") -> tuple[list[str], list[Row]]:
    """The options that differ (but the seed), and a row for each of their combinations, the best first."""
    common = set.intersection(*(set(run.options) for run in runs)) - {"seed"}
    differing = sorted(key for key in common if len({json.dumps(run.options[key], default=str) for run in runs}) > 1)
    if not differing:
        differing = [] if _differ_in_the_seed_alone(runs) else ["run"]
    groups = _groups(runs, differing)
    if not all(map(_differ_in_the_seed_alone, groups.values())):  # a run and its evaluations, say: no mean of these
        differing = [*differing, "run"]
        groups = _groups(runs, differing)
    rows = [_row(label, group) for label, group in groups.items()]
    rows.sort(key=lambda row: row.scores[metric] or 0.0, reverse=True)
    return [key.removesuffix(".kind") for key in differing], rows


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


def names_of(runs: Sequence[ScoredRun]) -> list[str]:
    """What each run is called in a page: `fusion=add seed=0`, as the table's columns; else by its folder."""
    if len(runs) == 1:
        return [runs[0].folder.resolve().name]
    common = set.intersection(*(set(run.options) for run in runs))
    keys = sorted(key for key in common if len({json.dumps(run.options[key], default=str) for run in runs}) > 1)
    keys.sort(key=lambda key: key == "seed")  # last
    names = [" ".join(f"{key.removesuffix('.kind')}={run.options[key]}" for key in keys) for run in runs]
    if len(set(names)) < len(runs):
        names = [run.folder.resolve().name for run in runs]
    return names if len(set(names)) == len(runs) else [str(run.folder) for run in runs]


def _row(label: tuple[str, ...], runs: list[ScoredRun]) -> Row:
    def mean(values: list) -> float | None:
        return None if any(value is None for value in values) else float(np.mean(values))

    return Row(
        label=label,
        runs=len(runs),
        scores={name: mean([run.scores.get(name) for run in runs]) for name in NAMES},
        intervals={name: _interval(runs, name) for name in NAMES},
        trained=runs[0].trained,
        captions_per_s=mean([run.captions_per_s for run in runs]),
    )


def _interval(runs: list[ScoredRun], name: str) -> tuple[float, float] | None:
    if len(runs) == 1 and runs[0].intervals.get(name):
        return runs[0].intervals[name]
    return None if name in NO_AVERAGES else bootstrap([run.per_image for run in runs], name)


def bootstrap(per_image: list[dict[Any, dict[str, float | None]]], metric: str) -> tuple[float, float] | None:
    """95 % interval of the mean per-image score, over seeds and images; None where an image has no score."""
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


def shown_scores(rows: list[Row], metric: str) -> list[str]:
    """The columns of a table: what some row has, and what was asked for."""
    return [
        name
        for name in NAMES
        if name == metric or (name in SHOWN and any(row.scores[name] is not None for row in rows))
    ]


def table(differing: list[str], rows: list[Row], metric: str = "CIDEr") -> str:
    """Aligned text; scores times 100, as the field prints them."""
    shown = shown_scores(rows, metric)
    header = [*differing, "runs", *(LABELS[name] for name in shown), f"{LABELS[metric]} 95 %", "trained", "captions/s"]
    body = []
    for row in rows:
        cells = [*row.label, str(row.runs)]
        cells += ["-" if row.scores[name] is None else f"{100 * row.scores[name]:.1f}" for name in shown]  # type: ignore[operator]
        interval = row.intervals[metric]
        cells.append("-" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}")
        cells.append("-" if row.trained is None else f"{row.trained / 1e6:.2f} M")
        cells.append("-" if row.captions_per_s is None else f"{row.captions_per_s:,.0f}")
        body.append(cells)
    header, *body = [list(map(on_one_line, line)) for line in (header, *body)]  # options of strangers' runs
    widths = [max(len(line[column]) for line in [header, *body]) for column in range(len(header))]
    words = len(differing)

    def aligned(cells: list[str]) -> str:
        parts = (
            cell.ljust(width) if column < words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(parts).rstrip()

    return "\n".join(aligned(line) for line in [header, *body])
