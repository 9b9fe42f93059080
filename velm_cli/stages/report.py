"""report: one table of any number of run folders, also as a file, and a plot or a page of them. Takes folders, so no
Hydra."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from velm_cli.errors import UserError, did_you_mean, on_one_line
from velm_cli.report.comparison import compare_page
from velm_cli.report.evaluations import Evaluated, read_evaluation
from velm_cli.report.exports import FORMATS, is_table, write_table
from velm_cli.report.page import is_page
from velm_cli.report.plot import SIGNED_BY, is_plot, plot
from velm_cli.report.runs import ScoredRun, names_of, read_run
from velm_cli.report.tables import Table, compare, text
from velm_cli.schema.metric_names import Column, score_named
from velm_cli.stages.outputs import output_file

USAGE = """velm report FOLDER... [metric=NAME] [out=TABLE.csv | TABLE.md | TABLE.tex | PICTURE.png | PAGE.html]

One row for every combination of options in which the runs differ; runs that differ in the seed alone are
averaged. Folders are those of train, finetune or evaluate, such as runs/train/*; those without scores are left out.
Each task has a table of its own, the best first by metric= (CIDEr, VQA, rsum ...). Evaluations with eval.blind=
stand next to the one of the same weights with everything, and floors (what a trivial rule scores) next to both.
A CSV has all digits, as fractions with the ends of their 95 % intervals; Markdown and LaTeX have scores times 100.
A picture (png, svg, pdf) shows the metric with error bars; a page shows the captions side by side, first those on
which the runs differ most, and how far each run differs from the first.
"""
OPTIONS = ("metric", "out")


def main(args: list[str]) -> None:
    """Print the table; write, draw or show it if `out=` says where."""
    if not args or {"-h", "--help"} & set(args):
        print(USAGE, end="")
        return
    given = [arg.partition("=")[0] for arg in args if "=" in arg and not Path(arg).exists()]
    if twice := next((key for key in given if given.count(key) > 1), None):
        raise UserError(f"report: {twice}= is given twice: leave one")
    options = dict(arg.split("=", 1) for arg in args if "=" in arg and not Path(arg).exists())
    folders = [Path(arg) for arg in args if arg.partition("=")[0] not in options]
    for key in options:
        if key not in OPTIONS:
            raise UserError(f"report: no option {key!r}{did_you_mean(key, OPTIONS)}; {USAGE.splitlines()[0]}")
    if not folders:
        raise UserError("report: give one or more run folders, such as runs/train/*")
    kind, out = _output(options["out"]) if "out" in options else ("", None)
    evaluations: dict[Path, Evaluated] = {}
    runs: dict[Path, ScoredRun] = {}
    left_out = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"report: {folder} does not exist")
        try:
            runs[folder] = read_run(folder)
            if kind == "html":
                evaluations[folder] = read_evaluation(folder)
        except UserError as error:  # of a sweep that is not through, say
            runs.pop(folder, None)
            left_out.append(str(error))
    if not runs:
        raise UserError(left_out[0])
    for reason in left_out:
        print(f"left out: {on_one_line(reason)}", file=sys.stderr)
    tables = _tables(list(runs.values()), options.get("metric"), needs_it=bool(kind))
    for name, table in tables.items():
        print(f"{name}\n{text(table)}" if len(tables) > 1 else text(table))
    if out is None:
        return
    if len(tables) > 1:
        raise UserError(f"report out={options['out']}: one file has runs of one task; these are of {', '.join(tables)}")
    (table,) = tables.values()
    verb = "replaced" if out.exists() else "drawn" if kind in SIGNED_BY else "written"
    if kind == "html":
        for line in compare_page(evaluations, names_of(list(runs.values())), out):
            print(on_one_line(line))
    elif kind in FORMATS:
        write_table(table, out)
    else:
        plot(table, out)
    print(f"{verb}: {options['out']}")


def _tables(runs: Sequence[ScoredRun], metric: str | None, *, needs_it: bool) -> dict[str, Table]:
    """By task, ordered by `metric` where its runs have it; UserError where none knows it, or (`needs_it`) has a value.

    Two versions of a task's columns are two tables.
    """
    groups: dict[tuple[str, tuple[Column, ...]], list[ScoredRun]] = {}
    for run in runs:
        groups.setdefault((run.task, run.columns), []).append(run)
    keys = [None if metric is None else score_named(metric, columns) for _, columns in groups]
    if metric is not None and not any(keys):
        labels = list(dict.fromkeys(column.label for _, columns in groups for column in columns))
        near = did_you_mean(metric.lower(), map(str.lower, labels))
        raise UserError(f"report metric={metric}: no score of that name{near}; {', '.join(labels)}")
    tables = {}
    for ((task, _), group), key in zip(groups.items(), keys, strict=True):
        name = task if task not in tables else f"{task} (other columns)"
        tables[name] = compare(group, key)
    if (
        needs_it
        and metric is not None
        and all(table.rows[0].scores[table.metric.key] is None for table in tables.values())
    ):
        raise UserError(f"report metric={metric}: none of these runs has a {next(iter(tables.values())).metric.label}")
    return tables


def _output(value: str) -> tuple[str, Path]:
    """(what kind of file, its path), looked at before the work begins."""
    kind = Path(value).suffix.lower().removeprefix(".")
    if kind == "html":
        return kind, output_file("report out", value, _is_comparison, "a page of velm report")
    if kind in FORMATS:
        return kind, output_file("report out", value, is_table, "a table of velm report")
    if kind in SIGNED_BY:
        return kind, output_file("report out", value, is_plot, "a picture of velm report")
    raise UserError(
        f"report out={value}: a picture's name ends in one of {', '.join(SIGNED_BY)}; a page's in html; "
        f"a table's in {', '.join(FORMATS)}"
    )


def _is_comparison(path: Path) -> bool:
    """Whether `path` is a page of this stage: those of evaluations lie beside their scores."""
    return is_page(path) and not (path.parent / "scores.json").exists()
