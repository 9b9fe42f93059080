"""The table of runs as CSV, Markdown and LaTeX, and what runs are called in a page."""

from __future__ import annotations

import csv
import shutil
import subprocess

import pytest

from velm_cli.report.exports import FORMATS, is_table, write_table
from velm_cli.report.plot import wrapped
from velm_cli.report.runs import ScoredRun, names_of
from velm_cli.report.tables import compare

NASTY = r"a_b & 50 % {x} #1 $5 ~^\ <b>|*"


def run(tmp_path, name: str, options: dict, cider: float, **more) -> ScoredRun:
    return ScoredRun(
        folder=tmp_path / name,
        options={"seed": 0, **options},
        scores={"CIDEr": cider, "Bleu_4": None},
        per_image={number: {"CIDEr": cider + number} for number in (-0.1, 0.0, 0.1)},
        trained=1_234_567,
        captions_per_s=None,
        **more,
    )


@pytest.fixture
def rows(tmp_path):
    runs = [
        run(tmp_path, "a", {"name": NASTY}, 1.0 / 3, intervals={"CIDEr": (0.3, 0.4), "Bleu_4": None}),
        run(tmp_path, "b", {"name": "plain"}, 0.5),
    ]
    return compare(runs)


def test_a_csv_has_every_digit_and_the_intervals_ends(tmp_path, rows):
    write_table(rows, tmp_path / "t.csv")
    plain, nasty = csv.DictReader((tmp_path / "t.csv").open(newline=""))
    assert list(plain) == ["name", "runs", "CIDEr", "CIDEr_low", "CIDEr_high", "trained", "captions_per_s"]
    assert nasty["name"] == NASTY.replace("\\", "\\") and float(nasty["CIDEr"]) == 1.0 / 3
    assert (float(nasty["CIDEr_low"]), float(nasty["CIDEr_high"])) == (0.3, 0.4)
    assert plain["trained"] == "1234567" and plain["captions_per_s"] == ""
    assert 0.4 <= float(plain["CIDEr_low"]) < 0.5 < float(plain["CIDEr_high"]) <= 0.6


def test_markdown_has_a_row_a_line_whatever_the_options_are(tmp_path, rows):
    write_table(rows, tmp_path / "t.md")
    lines = (tmp_path / "t.md").read_text().splitlines()[2:]
    assert lines[:2] == ["| name | runs | CIDEr | trained |", "| --- | ---: | ---: | ---: |"]
    assert lines[3] == r"| a_b & 50 % {x} #1 $5 ~^\\ &lt;b>\|\* | 1 | 33.3 (30.0 to 40.0) | 1.23 M |"


def test_latex_compiles_with_any_option(tmp_path, rows):
    write_table(rows, tmp_path / "t.tex")
    text = (tmp_path / "t.tex").read_text()
    assert (
        r"  a\_b \& 50 \% \{x\} \#1 \$5 \textasciitilde{}\textasciicircum{}\textbackslash{} <b>|* & 1 & 33.3 [30.0, 40.0]"
        r" & 1.23 M \\" + "\n" in text
    )
    assert text.count(r" \\" + "\n") == 3 and r"\begin{tabular}{lrrr}" in text
    if latex := shutil.which("pdflatex"):
        whole = rf"\documentclass{{article}}\begin{{document}}{text}\end{{document}}"
        (tmp_path / "whole.tex").write_text(whole)
        done = subprocess.run([latex, "-interaction=batchmode", "whole.tex"], cwd=tmp_path, capture_output=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", FORMATS)
def test_only_velms_own_tables_are_replaced(tmp_path, rows, kind):
    own, foreign = tmp_path / f"own.{kind}", tmp_path / f"foreign.{kind}"
    write_table(rows, own)
    foreign.write_text("name,score\na,1\n")
    assert is_table(own) and not is_table(foreign)


def test_runs_are_called_as_the_table_calls_them(tmp_path):
    runs = [run(tmp_path, f"{kind}{seed}", {"fusion.kind": kind, "seed": seed}, 0.5) for kind in ("add", "concat") for seed in (0, 1)]  # fmt: skip
    assert names_of(runs) == ["fusion=add seed=0", "fusion=add seed=1", "fusion=concat seed=0", "fusion=concat seed=1"]
    assert names_of(runs[:1]) == ["add0"]
    other = run(tmp_path / "deeper", "add0", {"fusion.kind": "add", "seed": 0}, 0.5)
    assert names_of([runs[0], other]) == [str(tmp_path / "add0"), str(tmp_path / "deeper/add0")]


def test_a_single_runs_interval_is_that_of_its_page(tmp_path):
    scored = run(tmp_path, "a", {}, 0.5, intervals={"CIDEr": (0.1, 0.9), "Bleu_4": (0.2, 0.3)})
    (row,) = compare([scored]).rows
    assert row.intervals["CIDEr"] == (0.1, 0.9) and row.intervals["Bleu_4"] == (0.2, 0.3)


def test_words_of_a_picture_start_no_formula():
    assert wrapped("a$b " * 20, 40).count("\n") == 2 and r"\$" in wrapped("a$b", 40)
