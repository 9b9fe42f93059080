"""The table of runs: what differs, means over seeds, the bootstrap, the mistakes."""

import json

import numpy as np
import pytest
from velm import TINY, TINY_MODEL, call, velm

from velm_cli.report.runs import ScoredRun
from velm_cli.report.tables import bootstrap, compare, text
from velm_cli.schema.metric_names import COLUMNS


def scored(name: str, options: dict, scores: list[float], tmp_path, trained: int = 1000) -> ScoredRun:
    return ScoredRun(
        folder=tmp_path / name,
        options=options,
        scores={"Bleu_4": None, "METEOR": None, "ROUGE_L": None, "CIDEr": float(np.mean(scores)), "SPICE": None},
        per_image={number: {"CIDEr": score} for number, score in enumerate(scores)},
        trained=trained,
        captions_per_s=10.0,
    )


def test_seeds_are_averaged_and_only_what_differs_is_named(tmp_path):
    options = {"fusion.kind": "add", "optim.lr": 1e-3, "seed": 0}
    runs = [
        scored("a", options, [1.0, 2.0, 3.0], tmp_path),
        scored("b", options | {"seed": 1}, [2.0, 3.0, 4.0], tmp_path),
        scored("c", options | {"fusion.kind": "cross_modal", "fusion.layers": 2}, [5.0, 5.0, 5.0], tmp_path),
    ]
    found = compare(runs)
    differing, rows = found.differing, found.rows
    assert differing == ["fusion"]
    assert [row.label for row in rows] == [("cross_modal",), ("add",)], "the best first"
    assert [row.runs for row in rows] == [1, 2]
    assert rows[1].scores["CIDEr"] == 2.5
    assert rows[0].intervals["CIDEr"] == (5.0, 5.0)
    assert rows[1].intervals["CIDEr"][0] < 2.5 < rows[1].intervals["CIDEr"][1]
    lines = text(found).splitlines()
    assert lines[0].split() == ["fusion", "runs", "CIDEr", "CIDEr", "95", "%", "trained", "captions/s"]
    assert lines[2].split()[:3] == ["add", "2", "250.0"]


def test_runs_that_differ_in_nothing_are_told_apart_by_their_names(tmp_path):
    runs = [scored(name, {"fusion.kind": "add", "seed": 0}, [1.0], tmp_path) for name in "ab"]
    assert compare(runs).differing == ["run"]
    assert compare(runs[:1]).differing == []
    seeds = [scored(f"s{seed}", {"fusion.kind": "add", "seed": seed}, [1.0 + seed], tmp_path) for seed in range(2)]
    found = compare(seeds)
    differing, (row,) = found.differing, found.rows
    assert (differing, row.runs, row.scores["CIDEr"]) == ([], 2, 1.5)


def test_a_run_and_its_evaluations_are_never_averaged(tmp_path):
    """The training knows no decoding, so that is no column; the seed is the same."""
    options = {"optim.lr": 1e-3, "seed": 0}
    runs = [
        scored("a", options, [1.0], tmp_path),
        scored("a-val", options | {"split": "val"}, [2.0], tmp_path),
        scored("a-test", options | {"split": "test"}, [3.0], tmp_path),
        scored("b", options | {"optim.lr": 1e-2}, [4.0], tmp_path),
        scored("again/a", options, [5.0], tmp_path),
    ]
    found = compare(runs)
    differing, rows = found.differing, found.rows
    assert differing == ["optim.lr", "run"] and all(row.runs == 1 for row in rows)
    assert [row.label[1] for row in rows] == [str(tmp_path / "again/a"), "b", "a-test", "a-val", str(tmp_path / "a")]


def test_a_metric_that_is_no_mean_over_images_gets_no_interval(tmp_path):
    run = scored("a", {"fusion.kind": "add", "seed": 0}, [1.0, 2.0, 3.0], tmp_path)
    run.scores["Bleu_4"] = 0.3
    for scores in run.per_image.values():
        scores["Bleu_4"] = 0.1  # their mean, 0.1, says nothing of the corpus score
    (row,) = compare([run], "Bleu_4").rows
    assert row.scores["Bleu_4"] == 0.3 and row.intervals["Bleu_4"] is None
    assert row.intervals["CIDEr"] is not None


def test_the_interval_is_that_of_the_mean():
    """Normal scores: the 95 % interval of the mean is 1.96 standard errors to each side."""
    scores = np.random.default_rng(3).normal(5.0, 2.0, 900)
    low, high = bootstrap([{i: {"CIDEr": float(s)} for i, s in enumerate(scores)}], "CIDEr")
    expected = 1.96 * scores.std() / 30
    assert low == pytest.approx(scores.mean() - expected, abs=0.1 * expected + 0.01)
    assert high == pytest.approx(scores.mean() + expected, abs=0.1 * expected + 0.01)
    assert bootstrap([{0: {"CIDEr": None}}], "CIDEr") is None


def test_a_sweep_becomes_a_table_and_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call("preprocess", "dataset=shapes", *TINY) == 0
    options = [*TINY, *TINY_MODEL, "run.max_steps=2"]
    options = [option for option in options if not option.startswith(("fusion.layers", "fusion.heads"))]
    assert call("train", "-m", *options, "fusion=add,concat", "seed=0,1") == 0
    folders = sorted(str(path) for path in (tmp_path / "runs/train").iterdir())
    assert len(folders) == 4
    capsys.readouterr()
    assert call("report", *folders, "out=picture.png") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["fusion", "runs"]
    assert {tuple(line.split()[:2]) for line in lines[1:3]} == {("add", "2"), ("concat", "2")}
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"
    for again in ("picture.png", "new/picture.svg", "new/picture.svg", "new/picture.pdf", "new/picture.pdf"):
        there = (tmp_path / again).exists()
        assert call("report", *folders, f"out={again}") == 0  # over its own picture
        assert capsys.readouterr().out.endswith(f"{'replaced' if there else 'drawn'}: {again}\n")
    for kind in ("csv", "md", "tex"):
        for verb in ("written", "replaced"):
            assert call("report", *folders, f"out=table.{kind}", "metric=rouge-l") == 0
            assert capsys.readouterr().out.endswith(f"{verb}: table.{kind}\n")
        (tmp_path / f"mine.{kind}").write_text("a,b\n")
        assert call("report", *folders, f"out=mine.{kind}") == 2
        assert "is there and is not a table of velm report" in capsys.readouterr().err
    assert (tmp_path / "table.csv").read_text().startswith("fusion,runs,Bleu_4,Bleu_4_low,Bleu_4_high,")
    assert call("report", *folders, "out=sweep.html") == 0
    assert len([line for line in capsys.readouterr().out.splitlines() if "fusion=add seed=0" in line]) == 3
    data = json.loads((tmp_path / "sweep.html").read_text("utf-8").split('id="data">')[1].split("</script>")[0])
    assert data["title"] == "4 runs" and len(data["verdicts"]) == 3
    names = [f"fusion={fusion} seed={seed}" for fusion in ("add", "concat") for seed in (0, 1)]
    assert sorted(run["name"] for run in data["runs"]) == names
    (tmp_path / "notes.png").write_bytes(b"\x89PNG of mine")
    assert call("report", *folders, "out=notes.png") == 2
    assert "is there and is not a picture of velm report" in capsys.readouterr().err
    assert (tmp_path / "notes.png").read_bytes() == b"\x89PNG of mine"
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")  # a stranger's; matplotlib reads it when imported
    done = velm("report", *folders, "out=unbothered.png", cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "unbothered.png").exists(), done.stderr
    assert call("report", *folders, "out=picture.xyz") == 2
    assert "a picture's name ends in one of png, svg, pdf" in capsys.readouterr().err
    assert call("report", *folders, "metric=Ciderr") == 2
    expected = "velm: report metric=Ciderr: no score of that name; did you mean 'cider'?; BLEU-1, BLEU-2, BLEU-3, BLEU-4, METEOR, ROUGE-L, CIDEr, SPICE, CLIPScore, RefCLIPScore"  # fmt: skip
    assert expected in capsys.readouterr().err
    start = json.loads((tmp_path / "runs/train").joinpath(folders[0], "metrics.jsonl").read_text().splitlines()[0])
    assert start["kind"] == "start"
    assert 0 < start["trained"] <= start["parameters"]


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["nowhere"], "velm: report: nowhere does not exist"),
        (["empty"], "velm: empty: it is not a run folder"),
        (["empty", "metric=CIDER"], "velm: empty: it is not a run folder"),
        (["empty", "ot=a.png"], "velm: report: no option 'ot'; did you mean 'out'?; velm report FOLDER... [metric=NAME] [out=TABLE.csv | TABLE.md | TABLE.tex | PICTURE.png | PAGE.html]"),
        (["empty", "out=a.csv", "out=b.csv"], "velm: report: out= is given twice: leave one"),
        (["metric=CIDEr"], "velm: report: give one or more run folders, such as runs/train/*"),
    ],
)  # fmt: skip
def test_mistakes_get_one_line(args, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert call("report", *args) == 2
    assert capsys.readouterr().err.strip() == line


def test_a_page_compares_runs_side_by_side(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    common = ["dataset=shapes", *TINY]
    assert call("preprocess", *common) == 0
    model = [*common, *TINY_MODEL, "metrics.names=[rouge_l,cider]", "run.max_steps=2"]
    for seed in (0, 1):
        assert call("train", *model, f"seed={seed}", f"name=s{seed}") == 0
        assert call("eval", f"checkpoint=runs/train/s{seed}", "metrics=fast", f"name=e{seed}") == 0
    capsys.readouterr()
    assert call("report", "runs/evaluate/e0", "runs/evaluate/e1", "out=both.html") == 0
    assert capsys.readouterr().out.endswith("written: both.html\n")
    assert call("report", "runs/evaluate/e0", "runs/evaluate/e1", "out=both.html") == 0
    assert capsys.readouterr().out.endswith("replaced: both.html\n")
    (tmp_path / "notes.html").write_text("<!doctype html>mine")
    assert call("report", "runs/evaluate/e0", "out=notes.html") == 2
    assert "velm: report out=notes.html is there and is not a page of velm report" in capsys.readouterr().err
    assert (tmp_path / "notes.html").read_text() == "<!doctype html>mine"
    page = (tmp_path / "both.html").read_text("utf-8")
    assert page.count('id="thumbnail-') == 8
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert [run["name"] for run in data["runs"]] == ["seed=0", "seed=1"]
    assert data["title"] == "seed=1 against seed=0"
    found = dict(zip([m["name"] for m in data["metrics"]], data["runs"][1]["differences"], strict=True))
    assert {name for name, one in found.items() if one is not None} == {*COLUMNS["bleu"], "ROUGE_L", "CIDEr"}
    assert call("report", "runs/evaluate/e0", "out=runs/evaluate/e0/report.html") == 2
    capsys.readouterr()
    saved = json.loads((tmp_path / "runs/evaluate/e0/scores.json").read_text())["intervals"]["CIDEr"]
    assert call("report", "runs/evaluate/e0") == 0  # the table has the interval of the page
    assert f"  {100 * saved[0]:.1f} to {100 * saved[1]:.1f}  " in capsys.readouterr().out
    # An evaluation's own page has the same images, and where the model looked.
    own = (tmp_path / "runs/evaluate/e0/report.html").read_text("utf-8")
    assert own.count('id="thumbnail-') == 8
    (run,) = json.loads(own.split('id="data">')[1].split("</script>")[0])["runs"]
    assert run["about"]["checkpoint"] == "runs/train/s0" and run["about"]["split"] == "test"
    assert run["about"]["data"].startswith("shapes") and run["about"]["model"].startswith("vision=vit text=")
    assert run["about"]["decoding"].startswith("5 beams") and "name=e0" in run["about"]["command"]
    assert "torch" in run["about"]["versions"] and "object precision" in run["details"]
    assert own.count('id="attention-0-') == len([h for h in data["runs"][0]["hypotheses"] if h])
