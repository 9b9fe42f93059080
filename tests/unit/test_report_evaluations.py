"""A finished folder becomes what the report shows: scores, captions, curves; and what is no evaluation is refused."""

import json
import math
import os
import shutil

import pytest
from velm import call

from velm_cli.errors import UserError
from velm_cli.files import read_sealed, sealed
from velm_cli.metrics.scores import Scores, save
from velm_cli.report.evaluations import Curves, read_evaluation
from velm_cli.report.page import write_page
from velm_cli.report.runs import read_run
from velm_cli.schema.metric_names import NAMES


def saved(folder, name="eval", **extra):
    corpus = {metric: 0.5 if metric == "CIDEr" else None for metric in NAMES}
    reasons = {metric: "not requested" for metric in NAMES if metric != "CIDEr"}
    per_image = {7: {"CIDEr": 0.25}, "x": {"CIDEr": 0.75}}
    scores = Scores(
        corpus=corpus,
        intervals={metric: (0.4, 0.6) if metric == "CIDEr" else None for metric in NAMES},
        reasons=reasons,
        per_image=per_image,
        signature={"velm": "1"},
        warnings=["note"],
        references={7: ["a", "b"], "x": ["c"]},
        hypotheses={7: "d\ud83d", "x": ""},
        language={"vocabulary": 1234.0, "distinct_1": 0.2345, "novel": None},
        spice_categories={"Color": 0.123, "Size": None},
    )
    save(scores, folder / name)
    for file, content in extra.items():
        (folder / name / file.replace("_", ".")).write_text(content)
    return folder / name


def test_a_finished_folder_is_read_as_it_was_scored(tmp_path):
    run = read_evaluation(saved(tmp_path))
    assert run.name == "eval" and run.scores["CIDEr"] == 0.5 and run.scores["SPICE"] is None
    assert run.per_image == {7: {"CIDEr": 0.25}, "x": {"CIDEr": 0.75}}
    assert run.hypotheses == {7: "d\ud83d", "x": ""} and run.references == {7: ["a", "b"], "x": ["c"]}
    assert run.reasons["METEOR"] == "not requested" and run.warnings == ["note"] and run.signature == {"velm": "1"}
    assert run.curves is None
    assert run.intervals["CIDEr"] == (0.4, 0.6) and run.intervals["SPICE"] is None
    assert run.details == {"vocabulary": "1,234", "distinct 1": "0.2345", "SPICE, Color": "12.3"}
    write_page(tmp_path / "page.html", [run])


def test_curves_are_those_of_the_run_that_is_evaluated(tmp_path):
    lines = [
        {"kind": "start", "step": 0, "trained": 5},
        {"kind": "train", "step": 10, "loss_text": 3.0, "loss_image": 9.0, "lr": 1.0},
        {"kind": "train", "step": 20, "loss_text": 2.5, "lr": 1.0},
        {"kind": "validation", "step": 20, "loss": 2.0, "cider": 0.5},
        {"kind": "train", "step": 20, "loss_text": 2.0, "lr": 1.0},
        {"kind": "train", "step": 30, "loss_image": 4.0, "loss_joint": 1.0},
        {"kind": "train", "step": 40, "loss_text": math.nan},
        {"kind": "validation", "step": 40, "loss": 1.0},
    ]
    trained = saved(tmp_path, "trained", config_yaml="stage: train\n", metrics_jsonl="\n".join(map(json.dumps, lines)))
    expected = Curves([(10, 3.0), (20, 2.0), (30, 5.0)], [(20, 2.0), (40, 1.0)], [(20, 0.5)])
    assert read_evaluation(trained).curves == expected
    evaluated = saved(tmp_path, "evaluated", config_yaml=f"stage: evaluate\ncheckpoint: {trained}\n")
    assert read_evaluation(evaluated).curves == expected
    shutil.rmtree(trained)
    assert read_evaluation(evaluated).curves is None


def test_what_is_no_evaluation_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"it has no scores\.json; give the folder of a finished run"):
        read_evaluation(tmp_path)
    folder = saved(tmp_path)
    (folder / "scores.json").write_text("{}")
    with pytest.raises(UserError, match=r"eval: its scores are damaged \('reasons'\)"):
        read_evaluation(folder)
    saved(tmp_path)
    (folder / "per_image.jsonl").write_text('{"image_id": 1')
    with pytest.raises(UserError, match="its scores are damaged"):
        read_evaluation(folder)


DEEP = "[" * 100_000
SUMMARIES = {
    "a text for a score": {"CIDEr": "0.5"},
    "a list for a score": {"CIDEr": [1]},
    "too large a score": {"CIDEr": 10**400},
    "infinity": {"CIDEr": math.inf},
    "no intervals": {"intervals": [1]},
    "an interval of one": {"intervals": {"CIDEr": 3}},
    "an interval of texts": {"intervals": {"CIDEr": ["a", "b"]}},
    "reasons in a list": {"reasons": ["a"]},
    "reasons of numbers": {"reasons": {"CIDEr": 3}},
    "warnings in a text": {"warnings": "abc"},
    "warnings of lists": {"warnings": [["a"]]},
    "language of texts": {"language": {"x": "y"}},
    "categories in a number": {"spice_categories": 3},
    "a signature in a number": {"signature": 3},
    "checksums in a list": {"crc32_of": [1]},
    "checksums of a device": {"crc32_of": {"/dev/zero": "00000000"}},
    "checksums above": {"crc32_of": {"../x": "00000000"}},
}
IMAGES = {
    "numbers": "3",
    "ids in lists": '{"image_id": [1], "hypothesis": "a", "references": ["b"], "scores": {"CIDEr": 1}}',
    "numbers for captions": '{"image_id": 1, "hypothesis": 3, "references": ["b"], "scores": {"CIDEr": 1}}',
    "a text for references": '{"image_id": 1, "hypothesis": "a", "references": "b", "scores": {"CIDEr": 1}}',
    "texts for scores": '{"image_id": 1, "hypothesis": "a", "references": ["b"], "scores": {"CIDEr": "x"}}',
    "deep": DEEP,
}
LOGS = {
    "no kind": "{}",
    "no step": '{"kind": "validation", "loss": 1}',
    "a text for a step": '{"kind": "train", "step": "a", "loss": 1}',
    "a text for a loss": '{"kind": "train", "step": 1, "loss_text": "a"}',
    "a text for a speed": '{"kind": "train", "step": 1, "captions_per_s": "a"}',
    "a text for a size": '{"kind": "start", "step": 0, "trained": "many"}',
    "too large a loss": '{"kind": "train", "step": 1, "loss": 1%s}' % ("0" * 400),
    "deep": DEEP,
}
CONFIGS = {
    "nothing": "",
    "the begin of its first line": "# seal",
    "a list for a checkpoint": "stage: evaluate\ncheckpoint: [1]\ndecode: {}\nsplit: test\n",
    "a number for decode": "stage: evaluate\ncheckpoint: x\ndecode: 5\nsplit: test\n",
    "numbers for keys": "1: 2\nstage: train\n",
}


def spoiled(folder, summary=None, images=None, log=None, config="stage: train\n"):
    path = saved(folder, "strange", config_yaml=config)
    value = read_sealed(path / "scores.json")
    if images is not None:
        (path / "per_image.jsonl").write_text(images + "\n")
        del value["crc32_of"]
    (path / "scores.json").write_text(json.dumps(sealed(value | (summary or {}))))
    if log is not None:
        (path / "metrics.jsonl").write_text(log + "\n{}\n")
    return path


@pytest.mark.parametrize(
    "spoil",
    [
        *(pytest.param({"summary": value}, id=name) for name, value in SUMMARIES.items()),
        *(pytest.param({"images": value}, id=f"images: {name}") for name, value in IMAGES.items()),
        *(pytest.param({"log": value}, id=f"log: {name}") for name, value in LOGS.items()),
        *(pytest.param({"config": value}, id=f"config: {name}") for name, value in CONFIGS.items()),
    ],
)
def test_whatever_a_strangers_folder_holds_one_line_says_why_it_is_left_out(tmp_path, spoil, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        read_run(spoiled(tmp_path, **spoil))
    assert "\n" not in str(error.value)
    if "config" not in spoil:
        with pytest.raises(UserError):
            read_evaluation(tmp_path / "strange")
    saved(tmp_path, "good", config_yaml="stage: train\n")
    for out in ([], ["out=page.html"]):
        assert call("report", "strange", "good", *out) == 0  # the others are shown
        said = capsys.readouterr()
        assert said.err.startswith("left out: ") and said.err.count("\n") == 1
        assert "50.0" in said.out


def test_pipes_in_a_strangers_folder_are_not_waited_for(tmp_path):
    for name in ("scores.json", "per_image.jsonl"):
        path = spoiled(tmp_path, images="{}" if name != "scores.json" else None)
        (path / name).unlink()
        os.mkfifo(path / name)
        with pytest.raises(UserError, match=f"{name} is not a file"):
            read_run(path)
        shutil.rmtree(path)


def test_options_of_strangers_reach_the_terminal_as_text(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, text in (("a", "x"), ("b", '"\\e[2J\\nvelm: all good"')):
        saved(tmp_path, name, config_yaml=f"stage: train\nname: {name}\nvision: {{kind: {text}}}\n")
    assert call("report", "a", "b") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(line.isprintable() for line in lines)
    assert any(line.startswith(r"\x1b[2J\nvelm: all good") for line in lines)
