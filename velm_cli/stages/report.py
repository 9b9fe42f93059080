"""report: one table of any number of run folders, and a plot or a page of them. Takes folders, so no Hydra."""

from __future__ import annotations

import sys
from pathlib import Path

from velm_cli.errors import UserError, did_you_mean, on_one_line
from velm_cli.report.comparison import compare_page
from velm_cli.report.evaluations import Evaluated, read_evaluation
from velm_cli.report.page import is_page
from velm_cli.report.runs import SCORES, compare, is_plot, plot, read_run, table
from velm_cli.stages.outputs import output_file

USAGE = """velm report FOLDER... [metric=CIDEr] [out=PICTURE.png | out=PAGE.html]

One row for every combination of options in which the runs differ; runs that differ in the seed alone are
averaged. Folders are those of train, finetune or evaluate, such as runs/train/*; those without scores are left out.
A picture shows the metric with error bars; a page shows the captions side by side, first those on which the runs
differ most.
"""


def main(args: list[str]) -> None:
    """Print the table; draw it if `out=` says where."""
    if not args or args[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    options = dict(arg.split("=", 1) for arg in args if "=" in arg and not Path(arg).exists())
    folders = [Path(arg) for arg in args if arg.partition("=")[0] not in options]
    for key in options:
        if key not in ("metric", "out"):
            raise UserError(f"report: no option {key!r}{did_you_mean(key, ['metric', 'out'])}; {USAGE.splitlines()[0]}")
    metric = options.get("metric", "CIDEr")
    if metric not in SCORES:
        raise UserError(f"report metric={metric}: one of {', '.join(SCORES)}")
    if not folders:
        raise UserError("report: give one or more run folders, such as runs/train/*")
    evaluations: dict[Path, Evaluated] = {}
    page = plot_file = None
    if options.get("out", "").endswith(".html"):
        page = output_file("report out", options["out"], _is_comparison, "a page of velm report")
    elif "out" in options:
        plot_file = output_file("report out", options["out"], is_plot, "a picture of velm report")
    runs, left_out = {}, []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"report: {folder} does not exist")
        try:
            runs[folder] = read_run(folder)
            if page:
                evaluations[folder] = read_evaluation(folder)
        except UserError as error:  # of a sweep that is not through, say
            runs.pop(folder, None)
            left_out.append(str(error))
    if not runs:
        raise UserError(left_out[0])
    for reason in left_out:
        print(f"left out: {on_one_line(reason)}", file=sys.stderr)
    differing, rows = compare(list(runs.values()), metric)
    print(table(differing, rows, metric))
    if page:
        verb = "replaced" if page.exists() else "written"
        compare_page(evaluations, page)
        print(f"{verb}: {options['out']}")
    elif plot_file:
        verb = "replaced" if plot_file.exists() else "drawn"
        plot(differing, rows, plot_file, metric)
        print(f"{verb}: {options['out']}")


def _is_comparison(path: Path) -> bool:
    """Whether `path` is a page of this stage: those of evaluations lie beside their scores."""
    return is_page(path) and not (path.parent / "scores.json").exists()
