"""Tables of tasks other than captioning: their own columns, blind evaluations beside their twin, floors."""

import csv
import json
from pathlib import Path

import pytest
from velm import call

from velm_cli.metrics.scores import save
from velm_cli.metrics.vqa_scores import VQA_COLUMNS, Question, score_vqa
from velm_cli.report.exports import write_table
from velm_cli.report.runs import ScoredRun, read_run
from velm_cli.report.tables import compare, text
from velm_cli.schema import MetricsConfig
from velm_cli.schema.metric_names import Column, columns_as_json, columns_of_json, score_named


def run(name: str, value: float, blind: str = "none", twin: str = "t", **options) -> ScoredRun:
    return ScoredRun(
        folder=Path(name),
        options={"seed": 0, "eval.blind": blind, **options},
        scores={"VQA": value, "VQA_always": value},
        per_image={1: {"VQA": value}},
        trained=None,
        captions_per_s=None,
        intervals={"VQA": (value - 0.1, value + 0.1)},
        task="vqa",
        columns=VQA_COLUMNS,
        primary="VQA",
        floors={"majority": {"VQA": 0.18}, "prior by question type": {"VQA": 0.299}},
        blind=blind,
        twin=twin,
    )


RUNS = [
    run("a", 0.4, lr="1"),
    run("a-image", 0.31, "image", lr="1"),
    run("a-source", 0.2, "source", lr="1"),
    run("b", 0.5, twin="u", lr="2"),
    run("b-shuffled", 0.52, "shuffled", twin="u", lr="2"),
]


def test_blind_evaluations_are_columns_of_their_twin_with_the_drop(tmp_path):
    table = compare(RUNS)
    assert [(row.label, row.scores["VQA"]) for row in table.rows] == [(("2",), 0.5), (("1",), 0.4)]
    assert table.differing == ["lr"] and table.blind == ["image", "shuffled", "source"]
    lines = [line.split("  ") for line in text(table).splitlines()]
    header, best, other = ([cell.strip() for cell in line if cell.strip()] for line in lines)
    assert header[4:9] == ["VQA 95 %", "no image", "shuffled", "no source", "floor"]
    assert best[4:9] == ["40.00 to 60.00", "-", "52.00 (+2.00)", "-", "29.90 prior by question type"]
    assert other[4:9] == ["30.00 to 50.00", "31.00 (-9.00)", "-", "20.00 (-20.00)", "29.90 prior by question type"]
    write_table(table, tmp_path / "t.csv")
    first, second = csv.DictReader((tmp_path / "t.csv").open(newline=""))
    assert float(second["VQA_image"]) == 0.31 and float(second["VQA_image_drop"]) == pytest.approx(-0.09)
    assert first["VQA_image"] == "" and (first["floor"], first["VQA_floor"]) == ("prior by question type", "0.299")
    write_table(table, tmp_path / "t.md")
    markdown = (tmp_path / "t.md").read_text()
    assert "| lr | runs | VQA | VQA always | no image | shuffled | no source | floor | trained |" in markdown
    assert "50.00 (40.00 to 60.00)" in markdown and "31.00 (-9.00)" in markdown
    write_table(table, tmp_path / "t.tex")
    assert r"\begin{tabular}{lrrrrrrrr}" in (tmp_path / "t.tex").read_text()


def test_a_blind_evaluation_without_its_twin_is_a_row():
    table = compare([RUNS[0], RUNS[4]])
    assert len(table.rows) == 2 and not table.blind
    assert "eval.blind" in table.differing


def test_two_evaluations_of_the_same_have_no_control():
    again = run("again", 0.4, lr="1")
    assert not compare([RUNS[0], again, RUNS[1]]).blind


def test_a_control_has_no_control():
    again = run("a-image-again", 0.31, "image", lr="1")
    rows = compare([RUNS[0], again, RUNS[1]]).rows
    assert [(row.scores["VQA"], list(row.controls)) for row in rows] == [(0.4, ["image"]), (0.31, [])]


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """runs/train/r and its evaluations: with everything, without images, and another split."""
    monkeypatch.chdir(tmp_path)
    truth = {number: Question(("yes",) * 6 + ("no",) * 4, question_type="is") for number in range(8)}
    training = [Question(("no",) * 10, question_type="is")]

    def written(folder, config, answers):
        path = tmp_path / folder
        scores = score_vqa(
            truth, dict(zip(truth, answers, strict=True)), MetricsConfig(resamples=20), training=training
        )
        save(scores, path, weights="w")
        (path / "config.yaml").write_text(json.dumps(config))
        return folder

    written("runs/train/r", {"stage": "train", "seed": 0}, ["yes"] * 8)
    common = {"stage": "evaluate", "checkpoint": "runs/train/r", "decode": {}, "split": "test", "seed": 0}
    return [
        written("runs/evaluate/full", common | {"eval": {"blind": "none"}}, ["yes"] * 6 + ["no"] * 2),
        written("runs/evaluate/blind", common | {"eval": {"blind": "image"}}, ["yes"] * 2 + ["red"] * 6),
        written("runs/evaluate/val", common | {"split": "val"}, ["no"] * 8),
    ]


def test_folders_of_another_task_have_their_own_columns_and_controls(folders, capsys):
    full, blind, other = (read_run(Path(folder)) for folder in folders)
    assert (full.task, full.primary, full.blind, blind.blind, other.blind) == ("vqa", "VQA", "none", "image", "none")
    assert full.twin == blind.twin != other.twin
    assert call("report", *folders) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "no image" in lines[0] and lines[0].split()[:3] == ["split", "runs", "VQA"]
    drop = 100 * ((blind.scores["VQA"] or 0) - (full.scores["VQA"] or 0))
    assert f"({drop:+.2f})" in "\n".join(lines) and "majority" in lines[1]
    assert call("report", *folders, "metric=vqa_always", "out=t.csv") == 0
    assert (Path("t.csv").read_text().splitlines()[0]).startswith("split,runs,VQA,VQA_low")
    capsys.readouterr()
    assert call("report", *folders, "metric=CIDEr") == 2
    assert "no score of that name; VQA, VQA always, VQA yes/no" in capsys.readouterr().err
    assert call("report", *folders, "out=page.html") == 0 and '"task":"vqa"' in Path("page.html").read_text()


def test_a_run_and_its_evaluation_on_another_part_are_told_apart_by_it(folders, capsys):
    assert call("report", "runs/train/r", folders[0]) == 0
    header, best, other = (line.split() for line in capsys.readouterr().out.splitlines())
    assert header[0] == "split" and (best[0], other[0]) == ("val", "test"), "scores at the end of training are of val"


def test_runs_of_two_tasks_are_two_tables(folders, capsys):
    from test_report_evaluations import saved

    captions = saved(Path("."), "captions", config_yaml="stage: train\n")
    assert call("report", folders[0], str(captions)) == 0
    out = capsys.readouterr().out
    assert out.startswith("vqa\n") and "\ncaption\n" in out and "CIDEr 95 %" in out and "VQA 95 %" in out
    assert call("report", folders[0], str(captions), "out=t.csv") == 2
    assert "one file has runs of one task; these are of vqa, caption" in capsys.readouterr().err


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        [3],
        [{"key": "a"}],
        [{"key": "a", "label": "A", "scale": "x"}],
        [{"key": "a", "label": "A", "digits": 10**9}],
        [{"key": "a", "label": "A", "more": 1}],
        [{"key": "a", "label": "A"}, {"key": "a", "label": "B"}],
    ],
)
def test_columns_of_strangers_are_checked(value):
    with pytest.raises(ValueError, match="columns is not what velm writes"):
        columns_of_json(value)


def test_columns_survive_their_file_and_are_found_by_any_spelling():
    columns = (*VQA_COLUMNS, Column("rank", "median rank", scale=1, higher_is_better=False))  # a whole number, too
    assert columns_of_json(json.loads(json.dumps(columns_as_json(columns)))) == columns
    assert score_named("vqa yes/no", columns) == "VQA_yes/no" and score_named("Median-Rank", columns) == "rank"
    assert score_named("cider", columns) is None and score_named("cider") == "CIDEr"
