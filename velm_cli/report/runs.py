"""Runs side by side: what differs between them, their scores with error bars, their size and speed.

Runs that differ in nothing but the seed are one row. The interval of a row is a bootstrap over its seeds
and over the images (Efron & Tibshirani 1993), of the mean of the per-image scores; metrics that are no such
mean (BLEU, METEOR) get none.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from velm_cli import compose
from velm_cli.errors import UserError, on_one_line
from velm_cli.files import write_bytes
from velm_cli.metrics.scores import read_images, read_summary
from velm_cli.report.logs import read_figures

SCORES = {
    "Bleu_4": "BLEU-4",
    "METEOR": "METEOR",
    "ROUGE_L": "ROUGE-L",
    "CIDEr": "CIDEr",
    "SPICE": "SPICE",
}
AVERAGES = ("ROUGE_L", "CIDEr", "SPICE")  # means of per-image scores; BLEU and METEOR are counted over the corpus
RESAMPLES = 2000
SIGN, LARGEST_PLOT = "drawn by velm report", 64 << 20
SIGNED_BY = {"png": "Software", "svg": "Description", "pdf": "Subject"}  # where the formats have room for it


@dataclass(frozen=True, slots=True)
class ScoredRun:
    """A finished run folder of train, finetune or evaluate."""

    folder: Path
    options: dict[str, Any]  # every option of the experiment, flat; of the training run if it is an evaluation
    scores: dict[str, float | None]
    per_image: dict[Any, dict[str, float | None]]
    trained: int | None  # parameters that learn
    captions_per_s: float | None  # in training, median over the log lines


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: the runs that differ in the seed alone."""

    label: tuple[str, ...]  # values of the options that differ between the rows
    runs: int
    scores: dict[str, float | None]  # means over the runs
    interval: tuple[float, float] | None  # 95 %, of the metric that was asked for
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
    config = _config(folder)
    home = folder
    if config.get("stage") == "evaluate":
        if not (
            isinstance(config.get("checkpoint"), str) and isinstance(config.get("decode"), dict) and "split" in config
        ):
            raise UserError(f"{folder / 'config.yaml'} is not a config of this version of velm")
        home = compose.run_folder_of(config["checkpoint"])
        options = compose.experiment_of(_config(home)) | {
            f"decode.{key}": value for key, value in config["decode"].items() if key != "batch_size"
        }
        options["split"] = config["split"]
    else:
        options = compose.experiment_of(config)
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
        scores={name: scores.get(name) for name in SCORES},
        per_image=per_image,
        trained=start.get("trained"),
        captions_per_s=float(np.median(speeds)) if speeds else None,
    )


def _config(folder: Path) -> dict[str, Any]:
    config = OmegaConf.to_container(compose.read_config(folder / "config.yaml"))
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise UserError(f"{folder / 'config.yaml'} is not a config of this version of velm")
    return {str(key): value for key, value in config.items()}


def compare(runs: Sequence[ScoredRun], metric: str = "CIDEr") -> tuple[list[str], list[Row]]:
    """The options that differ (but the seed), and a row for each of their combinations, the best first."""
    common = set.intersection(*(set(run.options) for run in runs)) - {"seed"}
    differing = sorted(key for key in common if len({json.dumps(run.options[key], default=str) for run in runs}) > 1)
    if not differing:
        differing = [] if len(runs) == 1 else ["run"]
    groups: dict[tuple[str, ...], list[ScoredRun]] = {}
    for run in runs:
        label = tuple(run.folder.name if key == "run" else str(run.options[key]) for key in differing)
        groups.setdefault(label, []).append(run)
    rows = [_row(label, group, metric) for label, group in groups.items()]
    rows.sort(key=lambda row: row.scores[metric] or 0.0, reverse=True)
    return [key.removesuffix(".kind") for key in differing], rows


def _row(label: tuple[str, ...], runs: list[ScoredRun], metric: str) -> Row:
    def mean(values: list) -> float | None:
        return None if any(value is None for value in values) else float(np.mean(values))

    return Row(
        label=label,
        runs=len(runs),
        scores={name: mean([run.scores[name] for run in runs]) for name in SCORES},
        interval=bootstrap([run.per_image for run in runs], metric) if metric in AVERAGES else None,
        trained=runs[0].trained,
        captions_per_s=mean([run.captions_per_s for run in runs]),
    )


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


def table(differing: list[str], rows: list[Row], metric: str = "CIDEr") -> str:
    """Aligned text; scores times 100, as the field prints them."""
    shown = [name for name in SCORES if any(row.scores[name] is not None for row in rows)]
    header = [*differing, "runs", *(SCORES[name] for name in shown), f"{SCORES[metric]} 95 %", "trained", "captions/s"]
    body = []
    for row in rows:
        cells = [*row.label, str(row.runs)]
        cells += ["-" if row.scores[name] is None else f"{100 * row.scores[name]:.1f}" for name in shown]  # type: ignore[operator]
        cells.append("-" if row.interval is None else f"{100 * row.interval[0]:.1f} to {100 * row.interval[1]:.1f}")
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


def plot(differing: list[str], rows: list[Row], path: Path, metric: str = "CIDEr") -> None:
    """A point and an interval for each row, the best on top, signed as velm's in the file."""
    try:
        import matplotlib
    except ImportError:
        raise UserError("out= draws with matplotlib: pip install matplotlib") from None
    matplotlib.rcdefaults()  # a matplotlibrc in the working folder may be a stranger's, and can run LaTeX
    matplotlib.use("Agg")
    from matplotlib import pyplot

    kind = path.suffix.lower().removeprefix(".")
    if kind not in SIGNED_BY:
        raise UserError(f"report out={path}: a picture's name ends in one of {', '.join(SIGNED_BY)}; a page's in html")
    figure, axes = pyplot.subplots(figsize=(7, 1.2 + 0.4 * len(rows)), layout="constrained")
    for place, row in enumerate(reversed(rows)):
        score = row.scores[metric]
        if score is None:
            continue
        if row.interval is not None:
            axes.plot([100 * value for value in row.interval], [place, place], color="tab:blue", linewidth=2)
        axes.plot([100 * score], [place], "o", color="tab:blue")
        axes.annotate(
            f"{100 * score:.1f}", (100 * score, place), textcoords="offset points", xytext=(0, 6), ha="center"
        )
    axes.set_yticks(range(len(rows)), [", ".join(row.label) or "run" for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.2)
    axes.set_xlabel(f"{SCORES[metric]} (line: 95 % bootstrap over seeds and images)")
    axes.set_ylabel(", ".join(differing))
    axes.grid(axis="x", alpha=0.3)
    out = io.BytesIO()
    figure.savefig(out, format=kind, dpi=150, metadata={SIGNED_BY[kind]: SIGN})
    pyplot.close(figure)
    write_bytes(path, [out.getvalue()])


def is_plot(path: Path) -> bool:
    """Whether `path` is a picture that `plot` has written."""
    return path.stat().st_size < LARGEST_PLOT and SIGN.encode() in path.read_bytes()
