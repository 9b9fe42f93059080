"""VQA scores: the official accuracy by type, floors, the sentence where a score is no better, and what is told."""

import random
from collections import Counter

import pytest

from velm_cli.errors import UserError
from velm_cli.metrics.comparison import differences, summands_of
from velm_cli.metrics.scores import read_images, read_summary, save, scores_of_summary, table
from velm_cli.metrics.vqa_scores import VQA_COLUMNS, Question, score_vqa
from velm_cli.schema import MetricsConfig

METRICS = MetricsConfig(resamples=200)
KINDS = {"is there": "yes/no", "how many": "number", "what is": "other"}
WORDS = {"is there": ["yes", "no"], "how many": ["1", "2", "3"], "what is": ["red", "a cat", "Dog.", "big"]}


def questions(count: int) -> dict:
    rng = random.Random()
    found = {}
    for number in range(count):
        kind = rng.choice(list(KINDS))
        answers = tuple(rng.choices(WORDS[kind], weights=range(1, len(WORDS[kind]) + 1), k=10))
        found[1000 + number] = Question(answers, f"{kind} ... {number}?", KINDS[kind], kind, image=number // 3)
    return found


def plain(answers, prediction) -> float:
    """The rule in its own words, for answers that no normalisation changes."""
    shares = [min(1, sum(g == prediction for j, g in enumerate(answers) if j != i) / 3) for i in range(len(answers))]
    return sum(shares) / len(shares)


def test_scores_are_means_of_the_accuracy_over_all_and_by_type():
    truth = {n: q for n, q in questions(120).items() if q.question_type != "what is"}
    rng = random.Random()
    predicted = {number: rng.choice(["yes", "no", "1", "2", "three hundred"]) for number in truth}
    scores = score_vqa(truth, predicted, METRICS)
    each = {number: plain(truth[number].answers, predicted[number]) for number in truth}
    assert scores.corpus["VQA"] == pytest.approx(sum(each.values()) / len(each)) == scores.headline
    for kind in ("yes/no", "number"):
        of_kind = [value for number, value in each.items() if truth[number].answer_type == kind]
        assert scores.corpus[f"VQA_{kind}"] == pytest.approx(sum(of_kind) / len(of_kind))
        assert scores.groups["answer type"][kind] == {
            "count": len(of_kind),
            "VQA": pytest.approx(sum(of_kind) / len(of_kind)),
            "VQA_always": pytest.approx(sum(of_kind) / len(of_kind)),
        }
    assert scores.corpus["VQA_other"] is None and "no question has this" in scores.reasons["VQA_other"]
    low, high = scores.intervals["VQA"]
    assert low < scores.corpus["VQA"] < high


def test_floors_are_the_majority_and_the_prior_of_the_question_type():
    truth, training = questions(60), questions(200)
    scores = score_vqa(truth, dict.fromkeys(truth, "no"), METRICS, training=training.values())
    votes = Counter(answer for question in training.values() for answer in question.answers)
    majority = votes.most_common(1)[0][0]
    by_type = {
        kind: Counter(a for q in training.values() if q.question_type == kind for a in q.answers).most_common(1)[0][0]
        for kind in KINDS
    }
    for name, rule in (
        ("majority", lambda q: majority),
        ("prior by question type", lambda q: by_type[q.question_type]),
    ):
        alone = score_vqa(truth, {number: rule(question) for number, question in truth.items()}, METRICS)
        assert scores.floors[name] == pytest.approx(alone.corpus)
    assert f"200 training questions; majority answer {majority!r}" in scores.signature["floors"]
    assert "no training's" in score_vqa(truth, dict.fromkeys(truth, "no"), METRICS).signature["floors"]
    chosen = {1: Question(("no",) * 10, answer="seldom")}
    assert (
        score_vqa(truth, dict.fromkeys(truth, "no"), METRICS, training=chosen.values()).floors["majority"]["VQA"] == 0
    )


def test_a_score_no_better_than_its_floor_says_so():
    truth = questions(100)
    floor = score_vqa(truth, dict.fromkeys(truth, ""), METRICS).floors["prior by question type"]["VQA"]
    best = {number: Counter(question.answers).most_common(1)[0][0] for number, question in truth.items()}
    assert not [line for line in score_vqa(truth, best, METRICS).warnings if "floor" in line]
    for config in (METRICS, MetricsConfig(resamples=0)):
        scores = score_vqa(truth, dict.fromkeys(truth, "elephant"), config)
        (line,) = [line for line in scores.warnings if "floor" in line]
        assert line.startswith(f"VQA 0.00 is worse than the floor 'prior by question type' {100 * floor:.2f}")
    prior = {"is there": "yes", "how many": "3", "what is": "big"}
    rule = {number: prior[question.question_type] for number, question in truth.items()}
    own = score_vqa(truth, rule, METRICS)
    if own.corpus["VQA"] <= own.floors["prior by question type"]["VQA"]:
        assert any("than the floor" in line for line in own.warnings)


def test_capitals_and_full_stops_are_told_where_they_cost_points():
    truth = {number: Question(("yes",) * 10) for number in range(4)}
    scores = score_vqa(truth, dict.fromkeys(truth, "Yes."), METRICS)
    assert (scores.corpus["VQA"], scores.corpus["VQA_always"]) == (0.0, 1.0)
    assert any("VQA is 100.0 lower than VQA always" in line for line in scores.warnings)
    empty = score_vqa(truth, dict.fromkeys(truth, " "), METRICS)
    assert "the answer is empty in 4 questions (0, 1, 2, 3)" in empty.warnings


def test_a_folder_has_the_scores_the_questions_and_the_floors(tmp_path):
    truth = questions(40)
    predicted = dict.fromkeys(truth, "no")
    scores = score_vqa(truth, predicted, METRICS, alternatives={1000: [("no", 0.75)]})
    save(scores, tmp_path)
    assert not (tmp_path / "per_image.jsonl").exists()
    summary, lines = read_summary(tmp_path), read_images(tmp_path)
    assert {key: summary[key] for key in scores.corpus} == scores.corpus
    assert summary["floors"] == scores.floors and summary["groups"] == scores.groups and summary["examples"] == 40
    assert scores_of_summary(summary).columns == VQA_COLUMNS and table(scores_of_summary(summary)) == table(scores)
    assert lines[0]["image_id"] == 1000 and lines[0]["references"] == list(truth[1000].answers)
    assert lines[0]["about"]["alternatives"] == [["no", 0.75]] and lines[0]["about"]["question"] == truth[1000].text
    for column in VQA_COLUMNS:
        if scores.corpus[column.key] is not None:
            assert summands_of(lines, column.key).total() == pytest.approx(scores.corpus[column.key]), column
    found = differences(scores.summands, scores.summands, columns=VQA_COLUMNS)
    assert found["VQA"].value == 0 and found["VQA"].p == 1


@pytest.mark.parametrize(
    ("truth", "predicted", "line"),
    [
        ({}, {}, "there are no questions to score"),
        ({1: ("a",)}, {}, r"no answer predicted for 1 question \(1\)"),
        ({1: ("a",)}, {1: "a", 2: "b"}, r"no reference for 1 question \(2\)"),
        ({1: ()}, {1: "a"}, r"no answers of people for 1 question \(1\)"),
    ],
)
def test_what_does_not_fit_is_named(truth, predicted, line):
    with pytest.raises(UserError, match=line):
        score_vqa({number: Question(answers) for number, answers in truth.items()}, predicted, METRICS)
