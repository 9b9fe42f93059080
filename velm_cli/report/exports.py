"""The table of `velm report` as a file: CSV for programs, Markdown and LaTeX for texts.

CSV has every digit, as fractions under the names of `scores.json`, with the ends of each 95 % interval in columns of
their own. Markdown and LaTeX have what the terminal shows, the interval in the cell of its score.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

from velm_cli.errors import on_one_line
from velm_cli.files import write_text
from velm_cli.report.runs import Row, shown_scores
from velm_cli.schema.metric_names import LABELS

MARKDOWN_SIGN, LATEX_SIGN = "<!-- written by velm report -->\n", "% written by velm report\n"
LAST_COLUMNS = ("trained", "captions_per_s")  # of the CSV, by which velm knows its own
SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
SPECIAL |= {character: f"\\{character}" for character in "&%$#_{}"}


def write_table(differing: list[str], rows: list[Row], path: Path, metric: str = "CIDEr") -> None:
    """Writes the rows in the format that the path's extension names, whole or not at all."""
    write_text(path, FORMATS[path.suffix.lower().removeprefix(".")](differing, rows, shown_scores(rows, metric)))


def is_table(path: Path) -> bool:
    """Whether `path` is a table that `write_table` has written."""
    with path.open("rb") as file:
        first = file.readline(1 << 16).decode("utf-8", "replace")
    ours = tuple(first.strip().split(",")[-2:]) == LAST_COLUMNS
    return {".md": first == MARKDOWN_SIGN, ".tex": first == LATEX_SIGN}.get(path.suffix.lower(), ours)


def _csv(differing: list[str], rows: list[Row], shown: list[str]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = [column for name in shown for column in (name, f"{name}_low", f"{name}_high")]
    writer.writerow([*map(on_one_line, differing), "runs", *columns, *LAST_COLUMNS])
    for row in rows:
        cells: list[object] = [*map(on_one_line, row.label), row.runs]
        for name in shown:
            cells += [row.scores[name], *(row.intervals[name] or (None, None))]
        writer.writerow([*cells, row.trained, row.captions_per_s])
    return out.getvalue()


def _markdown(differing: list[str], rows: list[Row], shown: list[str]) -> str:
    def cell(text: str) -> str:
        return on_one_line(text).replace("\\", "\\\\").replace("|", r"\|").replace("<", "&lt;").replace("*", r"\*")

    header = [*map(cell, differing), "runs", *(LABELS[name] for name in shown), "trained"]
    lines = [header, ["---"] * len(differing) + ["---:"] * (len(header) - len(differing))]
    lines += [
        [*map(cell, row.label), str(row.runs), *(_score(row, name, "{} ({} to {})") for name in shown), _trained(row)]
        for row in rows
    ]
    return MARKDOWN_SIGN + "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _latex(differing: list[str], rows: list[Row], shown: list[str]) -> str:
    def cell(text: str) -> str:
        return "".join(SPECIAL.get(character, character) for character in on_one_line(text))

    header = [*map(cell, differing), "runs", *(LABELS[name] for name in shown), "trained"]
    lines = [
        [*map(cell, row.label), str(row.runs), *(_score(row, name, "{} [{}, {}]") for name in shown), _trained(row)]
        for row in rows
    ]
    body = [f"  {' & '.join(line)} \\\\\n" for line in (header, *lines)]
    columns = "l" * len(differing) + "r" * (len(header) - len(differing))
    begin = f"\\begin{{tabular}}{{{columns}}}\n  \\hline\n"
    note = "% scores times 100, in brackets their 95 % intervals\n"
    return LATEX_SIGN + note + begin + body[0] + "  \\hline\n" + "".join(body[1:]) + "  \\hline\n\\end{tabular}\n"


def _score(row: Row, name: str, with_interval: str) -> str:
    value, interval = row.scores[name], row.intervals[name]
    if value is None:
        return "-"
    shown = f"{100 * value:.1f}"
    return shown if interval is None else with_interval.format(shown, *(f"{100 * end:.1f}" for end in interval))


def _trained(row: Row) -> str:
    return "-" if row.trained is None else f"{row.trained / 1e6:.2f} M"


FORMATS: dict[str, Callable[[list[str], list[Row], list[str]], str]] = {"csv": _csv, "md": _markdown, "tex": _latex}
