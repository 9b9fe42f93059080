"""A finished folder becomes what the report shows: scores, captions, curves; and what is no evaluation is refused."""

import json
import math
import shutil

import pytest

from velm_cli.errors import UserError
from velm_cli.metrics.scores import NAMES, Scores, save
from velm_cli.report.evaluations import Curves, read_evaluation
from velm_cli.report.page import write_page


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
