"""What `velm score` does for every task but captions: the folder of the results, tables, notes, files, the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from velm_cli import __version__
from velm_cli.errors import on_one_line, visible
from velm_cli.metrics.comparison import Difference, as_json, comparison_table, differences, verdict
from velm_cli.metrics.scores import ExampleId, Scores, save, table
from velm_cli.report.evaluations import evaluated_of
from velm_cli.report.page import Picture, write_page
from velm_cli.schema import ScoreRoot
from velm_cli.stages.outputs import score_folder


class FromFile(Protocol):
    """What was read from a file."""

    @property
    def digest(self) -> str: ...


def results(
    config: ScoreRoot, ours: FromFile, references: str | None, theirs: FromFile | None, **options: Any
) -> AbstractContextManager[Any]:
    """The folder `out` for what is scored within it, if there is one: nobody else's (`score_folder`).

    `references`: their digest. `options`: what the numbers depend on beside the files, the task and the resamples.
    """
    if config.out is None:
        return nullcontext()
    inputs = {"predictions": ours.digest}
    if references is not None:
        inputs["references"] = references
    if theirs is not None:
        inputs["vs"] = theirs.digest
    common = {"task": config.task.value, "metrics.resamples": config.metrics.resamples}
    return score_folder("out", config.out, inputs, common | options)


def finish(
    config: ScoreRoot,
    ours: Scores,
    theirs: Scores | None,
    notes: Sequence[str],
    pictures: Mapping[ExampleId, Picture],
    *,
    counted: str,
) -> float | None:
    """Prints the scores (`counted` is what of), compares them with those of vs=, writes `out`; the primary score."""
    this, that = names(config)
    print(visible(f"{config.predictions}  {counted}\n{table(ours)}"))
    found: dict[str, Difference] = {}
    if theirs is not None:
        print(visible(f"{config.vs}  {counted}\n{table(theirs)}"))
        found = differences(ours.summands, theirs.summands, config.metrics.resamples, columns=ours.columns)
        said = verdict(this, that, found, columns=ours.columns, primary=ours.primary)
        print(visible(f"\n{comparison_table(found, ours.columns)}\n{on_one_line(said)}"))
    for note in dict.fromkeys([*notes, *ours.warnings]):
        print(f"note: {on_one_line(note)}")
    if config.out is not None:
        out = Path(config.out)
        verb = "replaced" if (out / "scores.json").exists() else "written"
        compared = as_json(this, that, found, columns=ours.columns, primary=ours.primary) if theirs else None
        save(ours, out, comparison=compared)
        shown = page(config, ours, theirs, found, pictures)
        print(f"{verb}: {config.out}  (look at {shown})")
    return ours.headline


def names(config: ScoreRoot) -> tuple[str, str]:
    """What the two systems are called: their files' names without extension, or all of the paths if these are equal."""
    this, that = Path(config.predictions), Path(config.vs or "")
    return (this.stem, that.stem) if this.stem != that.stem else (str(this), str(that))


def page(
    config: ScoreRoot,
    ours: Scores,
    theirs: Scores | None,
    found: Mapping[str, Difference],
    pictures: Mapping[ExampleId, Picture],
) -> Path:
    """report.html in `out`; its differences are to its first system, so that is `vs`."""
    this, that = names(config)
    about = {"references": config.references, "scored by": f"velm {__version__}"}
    runs = [evaluated_of(ours, this, found, about={"predictions": config.predictions, **about})]
    said = []
    if theirs is not None:
        runs.insert(0, evaluated_of(theirs, that, about={"predictions": str(config.vs), **about}))
        said = [verdict(this, that, found, columns=ours.columns, primary=ours.primary)]
    title = " against ".join(run.name for run in reversed(runs))
    path = Path(str(config.out)) / "report.html"
    write_page(path, runs, pictures, title=title, notes=said)
    return path
