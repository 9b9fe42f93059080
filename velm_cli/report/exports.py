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
from velm_cli.report.tables import BLIND, Row, Table, control_text, floor_text
from velm_cli.schema.metric_names import Column

MARKDOWN_SIGN, LATEX_SIGN = "<!-- written by velm report -->\n", "% written by velm report\n"
LAST_COLUMNS = ("trained", "captions_per_s")  # of the CSV, by which velm knows its own
SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
SPECIAL |= {character: f"\\{character}" for character in "&%$#_{}"}


def write_table(table: Table, path: Path) -> None:
    """Writes the rows in the format that the path's extension names, whole or not at all."""
    write_text(path, FORMATS[path.suffix.lower().removeprefix(".")](table))


def is_table(path: Path) -> bool:
    """Whether `path` is a table that `write_table` has written."""
    with path.open("rb") as file:
        first = file.readline(1 << 16).decode("utf-8", "replace")
    ours = tuple(first.strip().split(",")[-2:]) == LAST_COLUMNS
    return {".md": first == MARKDOWN_SIGN, ".tex": first == LATEX_SIGN}.get(path.suffix.lower(), ours)


def _csv(table: Table) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    keys = [column.key for column in table.shown]
    controls = [f"{table.metric.key}_{part}" for kind in table.blind for part in (kind, f"{kind}_drop")]
    floors = ["floor", f"{table.metric.key}_floor"] if _floored(table) else []
    columns = [name for key in keys for name in (key, f"{key}_low", f"{key}_high")]
    writer.writerow([*map(on_one_line, table.differing), "runs", *columns, *controls, *floors, *LAST_COLUMNS])
    for row in table.rows:
        cells: list[object] = [*map(on_one_line, row.label), row.runs]
        for key in keys:
            cells += [row.scores.get(key), *(row.intervals.get(key) or (None, None))]
        for kind in table.blind:
            cells += table.control(row, kind) or (None, None)
        if floors:
            cells += row.floor or (None, None)
        writer.writerow([*cells, row.trained, row.captions_per_s])
    return out.getvalue()


def _floored(table: Table) -> bool:
    return any(row.floor for row in table.rows)


def _lines(table: Table, cell: Callable[[str], str], with_interval: str) -> list[list[str]]:
    """The header and the rows, for texts."""
    floored = _floored(table)
    header = [*map(cell, table.differing), "runs", *(cell(column.label) for column in table.shown)]
    header += [*(BLIND[kind] for kind in table.blind), *["floor"] * floored, "trained"]
    lines = [header]
    for row in table.rows:
        scores = [_score(row, column, with_interval) for column in table.shown]
        more = [control_text(table, row, kind) for kind in table.blind] + [cell(floor_text(table, row))] * floored
        lines.append([*map(cell, row.label), str(row.runs), *scores, *more, _trained(row)])
    return lines


def _markdown(table: Table) -> str:
    def cell(text: str) -> str:
        return on_one_line(text).replace("\\", "\\\\").replace("|", r"\|").replace("<", "&lt;").replace("*", r"\*")

    lines = _lines(table, cell, "{} ({} to {})")
    left = len(table.differing)
    lines.insert(1, ["---"] * left + ["---:"] * (len(lines[0]) - left))
    return MARKDOWN_SIGN + "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _latex(table: Table) -> str:
    def cell(text: str) -> str:
        return "".join(SPECIAL.get(character, character) for character in on_one_line(text))

    lines = _lines(table, cell, "{} [{}, {}]")
    left = len(table.differing)
    body = [f"  {' & '.join(line)} \\\\\n" for line in lines]
    columns = "l" * left + "r" * (len(lines[0]) - left)
    begin = f"\\begin{{tabular}}{{{columns}}}\n  \\hline\n"
    note = f"% {_scales(table)}, in brackets their 95 % intervals\n"
    return LATEX_SIGN + note + begin + body[0] + "  \\hline\n" + "".join(body[1:]) + "  \\hline\n\\end{tabular}\n"


def _scales(table: Table) -> str:
    """Which scores are times what: `scores times 100` where all are."""
    plain = [column.label for column in table.shown if column.scale != 100]
    return "scores times 100" + (f" but {', '.join(plain)}" if plain else "")


def _score(row: Row, column: Column, with_interval: str) -> str:
    value, interval = row.scores.get(column.key), row.intervals.get(column.key)
    shown = column.shown(value)
    return shown if value is None or interval is None else with_interval.format(shown, *column.ends(interval))


def _trained(row: Row) -> str:
    return "-" if row.trained is None else f"{row.trained / 1e6:.2f} M"


FORMATS: dict[str, Callable[[Table], str]] = {"csv": _csv, "md": _markdown, "tex": _latex}
