"""The picture of `velm report`: a point and an interval for each row of its table, signed as velm's in the file."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path

from velm_cli.errors import UserError, on_one_line
from velm_cli.files import write_bytes
from velm_cli.report.tables import Table
from velm_cli.schema.metric_names import CAPTION_COLUMNS

SIGN, LARGEST_PLOT = "drawn by velm report", 64 << 20
SIGNED_BY = {"png": "Software", "svg": "Description", "pdf": "Subject"}  # where the formats have room for it
NAME_WIDTH, TITLE_WIDTH = 44, 90  # characters of a line


def plot(table: Table, path: Path) -> None:
    """A point and an interval for each row, the best on top, signed as velm's in the file."""
    kind = path.suffix.lower().removeprefix(".")
    assert kind in SIGNED_BY, "the stage refuses other names"
    try:
        import matplotlib
    except ImportError:
        raise UserError("out= draws with matplotlib: pip install matplotlib") from None
    matplotlib.rcdefaults()  # a matplotlibrc in the working folder may be a stranger's, and can run LaTeX
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows, metric = table.rows, table.metric
    figure, axes = pyplot.subplots(figsize=(7, 1.2 + 0.4 * len(rows)), layout="constrained")
    for place, row in enumerate(reversed(rows)):
        score = row.scores[metric.key]
        if score is None:
            continue
        if (interval := row.intervals[metric.key]) is not None:
            axes.plot([metric.scale * value for value in interval], [place, place], color="tab:blue", linewidth=2)
        axes.plot([metric.scale * score], [place], "o", color="tab:blue")
        axes.annotate(
            metric.shown(score), (metric.scale * score, place), textcoords="offset points", xytext=(0, 6), ha="center"
        )
    names = [wrapped(", ".join(row.label) or "run", NAME_WIDTH) for row in reversed(rows)]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(-0.6, len(rows) - 0.2)
    axes.set_xlabel(
        f"{metric.label} (line: 95 % bootstrap over {'seeds and ' * any(row.runs > 1 for row in rows)}"
        f"{'images' if table.columns == CAPTION_COLUMNS else 'examples'})"
    )
    # Above and level: beside the rows a long list of options would be cut off.
    axes.set_title(wrapped(", ".join(table.differing), TITLE_WIDTH), loc="left", fontsize="medium")
    axes.grid(axis="x", alpha=0.3)
    out = io.BytesIO()
    figure.savefig(out, format=kind, dpi=150, metadata={SIGNED_BY[kind]: SIGN})
    pyplot.close(figure)
    write_bytes(path, [out.getvalue()])


def wrapped(text: str, width: int) -> str:
    """`text` without the characters that start a formula of matplotlib's, in lines."""
    return "\n".join(textwrap.wrap(on_one_line(text).replace("$", r"\$"), width, break_long_words=True))


def is_plot(path: Path) -> bool:
    """Whether `path` is a picture that `plot` has written."""
    return path.stat().st_size < LARGEST_PLOT and SIGN.encode() in path.read_bytes()
