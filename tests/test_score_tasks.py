"""`velm score task=vqa` and `task=retrieve`: files in, tables, folders and pages out; mistakes in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
from velm import call

from velm_cli.files import read_sealed

KINDS = ("is there", "how many")
ANSWERS = {"is there": (["yes"] * 7 + ["no"] * 3, ["no"] * 10), "how many": (["2"] * 5 + ["3"] * 5, ["1"] * 10)}
ANNOTATIONS = [
    {
        "question_id": 100 + number,
        "image_id": number // 2,
        "question_type": KINDS[number % 2],
        "answer_type": ("yes/no", "number")[number % 2],
        "multiple_choice_answer": ANSWERS[KINDS[number % 2]][number % 4 // 2][0],
        "answers": [
            {"answer": answer, "answer_id": place}
            for place, answer in enumerate(ANSWERS[KINDS[number % 2]][number % 4 // 2], 1)
        ],
    }
    for number in range(12)
]
QUESTIONS = [{"question_id": 100 + n, "image_id": n // 2, "question": f"question {n}?"} for n in range(12)]


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("annotations.json").write_text(json.dumps({"annotations": ANNOTATIONS}))
    Path("questions.json").write_text(json.dumps({"questions": QUESTIONS}))
    results = [{"question_id": each["question_id"], "answer": "no"} for each in ANNOTATIONS]
    Path("no.json").write_text(json.dumps(results))
    forms = {
        "map.json": json.dumps({str(each["question_id"]): each["answer"] for each in results}),
        "lines.jsonl": "\n".join(map(json.dumps, results)),
        "table.csv": "question_id,answer\n" + "".join(f"{each['question_id']},no\n" for each in results),
    }
    for name, text in forms.items():
        Path(name).write_text(text)
    best = [{"question_id": a["question_id"], "answer": a["multiple_choice_answer"]} for a in ANNOTATIONS]
    Path("best.json").write_text(json.dumps(best))


VQA = ("score", "task=vqa", "references=annotations.json")


def test_answers_of_a_system_get_scores_floors_and_a_page(files, capsys):
    words = [*VQA, "predictions=no.json", "vs=best.json", "questions=questions.json", "training=annotations.json"]
    assert call(*words, "out=scored") == 0
    out = capsys.readouterr().out
    # By hand: of 3 x 4 questions "no" gets 3 of 10 (min(1, .) of 2 or 3 others) in 3, 10 of 10 in 3, 0 in the others.
    expected = (3 * (3 * 2 / 3 + 7) / 10 + 3) / 12
    saved = read_sealed(Path("scored/scores.json"))
    assert saved["VQA"] == pytest.approx(expected) and f"{100 * expected:.2f}" in out
    assert (saved["task"], saved["primary"], saved["examples"]) == ("vqa", "VQA", 12)
    assert saved["VQA_number"] == 0 and saved["VQA_other"] is None
    assert set(saved["floors"]) == {"majority", "prior by question type"}
    assert saved["comparison"]["differences"]["VQA"]["p"] < 0.05
    assert "no is worse than best: VQA " in out and "training has 12 of the scored questions" in out
    lines = [json.loads(line) for line in Path("scored/per_example.jsonl").read_text().splitlines()]
    assert lines[3]["about"]["question"] == "question 3?" and lines[3]["truth"] == ["1"] * 10
    assert '"prompt":"question 3?"' in Path("scored/report.html").read_text()
    assert call(*words, "out=scored") == 0 and "replaced: scored" in capsys.readouterr().out
    assert call(*VQA, "predictions=best.json", "out=scored") == 2
    assert "out=scored holds the scores of other files" in capsys.readouterr().err
    assert call("score", "task=vqa", "predictions=scored/per_example.jsonl", "references=scored/per_example.jsonl") == 0
    assert f"{100 * expected:.2f}" in capsys.readouterr().out, "velm's own lines are both"


def test_every_form_of_answers_gives_the_same(files, capsys):
    tables = []
    for name in ("no.json", "map.json", "lines.jsonl", "table.csv"):
        assert call(*VQA, f"predictions={name}") == 0, name
        tables.append([line for line in capsys.readouterr().out.splitlines() if line.startswith(("VQA", "floor"))])
    assert len(tables[0]) >= 5 and all(table == tables[0] for table in tables)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["predictions=no.json", "fold=5"], "fold=5 has no effect with task=vqa, only with retrieve: leave it out"),
        (["predictions=no.json", "metrics=fast"], "metrics.names=[bleu,rouge_l,cider] has no effect with task=vqa"),
        (["predictions=no.json", "save_df=x.npz"], "save_df=x.npz has no effect with task=vqa, only with caption"),
        (
            ["predictions=few.json"],
            "few.json: no answer for 11 questions (101, 102, 103, 104, 105, ...). mismatch=ignore",
        ),
        (["predictions=other.json"], "no reference for 1 question (7)"),
        (["predictions=twice.json"], "more than one answer for 1 question (100)"),
        (["predictions=nobody.json"], "nobody.json 1: no answer: none of prediction, answer"),
        (["predictions=list.json"], "list.json 1: the answer must be text, not ['a']"),
        (["predictions=none.json"], "predictions=none.json does not exist"),
        (["predictions=again.json"], "predictions=again.json: more than once in it: 1 question (100); JSON keeps"),
        (["predictions=wrapped.json"], "predictions=wrapped.json: more than once in it: 1 question (100); JSON keeps"),
        (["predictions=columns.csv"], "predictions=columns.csv: the column answer is there twice"),
        (["predictions=sign.csv"], "no reference for 2 questions (²"),
        (["predictions=lines.json"], r"no reference for 1 question (\nvelm: \x1b[2J)"),
        (["predictions=no.json", "questions=asked.json"], "asked.json 13: question 100 is there twice"),
        (["predictions=packed.json"], "predictions=packed.json is a zip archive or spreadsheet: unpack it"),
        (["predictions=cut.json"], "predictions=cut.json is broken JSON at line 1"),
        (["predictions=no.json", "training=no.json"], "no.json 1: no answers: none of answers, direct_answers"),
        (["predictions=no.json", "questions=few.json"], 'few.json 1: "question" must be text'),
    ],
)
def test_a_mistake_is_one_line(files, capsys, words, line):
    answers = [{"question_id": each["question_id"], "answer": "no"} for each in ANNOTATIONS]
    for name, value in {
        "few.json": answers[:1],
        "other.json": [*answers, {"question_id": 7, "answer": "no"}],
        "twice.json": [*answers, answers[0]],
        "nobody.json": [{"question_id": 1}],
        "lines.json": [*answers, {"question_id": "\nvelm: \x1b[2J", "answer": "no"}],
        "asked.json": [*QUESTIONS, QUESTIONS[0] | {"question": "another?"}],
        "list.json": [{"question_id": 1, "answer": ["a"]}],
    }.items():
        Path(name).write_text(json.dumps(value))
    Path("cut.json").write_text('[{"question_id": 1, "ans')
    Path("again.json").write_text('{"100": "no", "100": "yes", "101": "no"}')
    Path("wrapped.json").write_text('{"predictions": {"100": "no", "100": "yes", "101": "no"}}')
    Path("columns.csv").write_text("question_id,answer,Answer\n100,yes,no\n")
    Path("sign.csv").write_text("question_id,answer\n²,yes\n" + "9" * 5000 + ",yes\n")
    Path("packed.json").write_bytes(b"PK\x03\x04" + bytes(40))
    assert call(*VQA, *words) == 2
    err = capsys.readouterr().err
    assert line in err and len(err.splitlines()) == 1


def test_ids_may_be_text_in_any_of_the_files(files, capsys):
    def as_text(rows):
        return [row | {"question_id": str(row["question_id"])} for row in rows]

    Path("texts.json").write_text(json.dumps(as_text(QUESTIONS)))
    Path("training.json").write_text(json.dumps({"annotations": as_text(ANNOTATIONS[:5])}))
    words = [*VQA, "predictions=no.json", "questions=texts.json", "training=training.json"]
    assert call(*words, "out=scored") == 0
    assert "training has 5 of the scored questions" in capsys.readouterr().out
    first = json.loads(Path("scored/per_example.jsonl").read_text().splitlines()[0])
    assert (first["id"], first["about"]["question"]) == (100, "question 0?")
    Path("both.json").write_text(json.dumps([*ANNOTATIONS, *as_text(ANNOTATIONS[:1])]))
    assert call("score", "task=vqa", "predictions=no.json", "references=both.json") == 2
    assert "both.json 13: question 100 is there twice" in capsys.readouterr().err


@pytest.mark.parametrize("words", [VQA, ("score", "references=captions.json")])
def test_a_folder_without_scores_takes_the_mended_file(files, capsys, words):
    key = "question_id" if words is VQA else "image_id"
    rows = [{key: 100 + n, "answer" if words is VQA else "caption": "a dog"} for n in range(12)]
    Path("captions.json").write_text(json.dumps(rows))
    Path("mine.json").write_text(json.dumps(rows[:-1]))
    words = [*words, "predictions=mine.json", "out=scored", *(["metrics=fast"] if words is not VQA else [])]
    assert call(*words) == 2
    Path("mine.json").write_text(json.dumps(rows))
    assert call(*words) == 0 and Path("scored/scores.json").is_file()
    Path("mine.json").write_text(json.dumps(rows[::-1]))
    assert call(*words) == 2 and "holds the scores of other files" in capsys.readouterr().err


def test_what_the_other_file_lacks_can_be_left_out_and_is_counted(files, capsys):
    Path("few.json").write_text(json.dumps([{"question_id": 100, "answer": "yes"}, {"question_id": 7, "answer": "a"}]))
    assert call(*VQA, "predictions=few.json", "mismatch=ignore") == 0
    out = capsys.readouterr().out
    assert "few.json  1 questions" in out and "VQA          1.000  100.00" in out
    assert "left out: no answer for 11 questions" in out and "left out: no reference for 1 question (7)" in out


def test_a_task_is_one_of_three(files, capsys):
    for words, line in (
        (["task=vqq"], "velm: task=vqq; did you mean 'vqa'?"),
        (["task=vqa"], "velm: predictions is not set: velm score task=vqa predictions=FILE references=FILE"),
        (["fold=3"], "velm: fold=3 has no effect with task=caption, only with retrieve: leave it out"),
    ):
        given = [] if "not set" in line else ["predictions=no.json", "references=annotations.json"]
        assert call("score", *words, *given) == 2
        assert capsys.readouterr().err.strip() == line


def test_embeddings_are_scored_both_ways(files, capsys):
    rng = np.random.default_rng()
    image_ID = np.eye(20)  # as far apart as can be: the noise takes no text to another image
    text_CD = image_ID.repeat(5, axis=0) + 0.01 * rng.normal(size=(100, 20))
    arrays = {"image_ids": np.arange(20), "text_image_ids": np.arange(20).repeat(5), "text": text_CD}
    np.savez("e.npz", image=image_ID, **arrays)
    np.savez("random.npz", image=rng.normal(size=(20, 20)), **arrays)
    assert call("score", "task=retrieve", "predictions=e.npz", "vs=random.npz", "out=scored") == 0
    out = capsys.readouterr().out
    saved = read_sealed(Path("scored/scores.json"))
    assert saved["i2t_R@1"] == saved["t2i_R@10"] == 1.0 and saved["rsum"] == 600 and saved["i2t_median_rank"] == 1
    assert saved["floors"]["chance"]["t2i_R@5"] == 0.25 and saved["signature"]["ties"] == "mean"
    assert "e is better than random: rsum" in out and "20 images, 100 captions" in out
    assert len(Path("scored/per_example.jsonl").read_text().splitlines()) == 20
    assert call("score", "task=retrieve", "predictions=e.npz", "fold=10", "out=scored") == 2
    assert "out=scored holds the scores of other files" in capsys.readouterr().err
    captions = [{"image_id": image, "caption": f"caption {n}"} for image in range(20) for n in range(5)]
    Path("captions.json").write_text(json.dumps(captions))
    assert call("score", "task=retrieve", "predictions=e.npz", "references=captions.json", "out=named") == 0
    lines = [json.loads(line) for line in Path("named/per_example.jsonl").read_text().splitlines()]
    assert lines[0]["truth"] == [f"caption {n}" for n in range(5)] and lines[0]["about"]["found_images"][0][0] == 0
    Path("captions.json").write_text(json.dumps(captions[1:]))
    capsys.readouterr()
    assert call("score", "task=retrieve", "predictions=e.npz", "references=captions.json") == 2
    assert "1 images have other captions than in the references (0, ...)" in capsys.readouterr().err
    Path("lists.jsonl").write_text("{}")
    assert call("score", "task=retrieve", "predictions=lists.jsonl") == 2
    assert "references is not set: predictions=lists.jsonl ranks captions" in capsys.readouterr().err
