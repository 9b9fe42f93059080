"""Accuracy and consistency equal the official scripts' rules on random predictions; intervals draw whole sets."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from velm_cli.errors import UserError
from velm_cli.metrics.comparison import summands_of
from velm_cli.metrics.reason_files import matched_statements, read_judgements, read_statements
from velm_cli.metrics.reason_scores import score_reason
from velm_cli.metrics.significance import Summands, bootstrap, mean_of, paired_permutation
from velm_cli.schema import MetricsConfig, Mismatch


def nlvr(rng: random.Random) -> list[dict]:
    return [
        {"identifier": f"{number}-{world}", "sentence": f"sentence {number}", "label": rng.choice(("true", "false"))}
        for number in range(40)
        for world in range(rng.randint(1, 4))
    ]


def nlvr2(rng: random.Random) -> list[dict]:
    return [
        {
            "identifier": f"dev-{number}-{pair}-{sentence}",
            "sentence": f"sentence {number} {sentence}",
            "label": rng.choice(("True", "False")),
        }
        for number in range(30)
        for pair in range(4)
        for sentence in range(2)
        if rng.random() < 0.9
    ]


def official_nlvr(lines: str, records: list[dict]) -> tuple[float, float]:
    """What its script does with images, said in other words: six orders of each, groups before the first dash."""
    said = {}
    for line in lines.splitlines():
        name, label = line.split(",")
        said[name.split(".")[0].split("-", 1)[1]] = label.lower()
    assert len(said) == 6 * len(records)
    hits = defaultdict(list)
    for record in records:
        for order in range(6):
            hits[record["identifier"].split("-")[0]].append(
                said[f"{record['identifier']}-{order}"] == record["label"].lower()
            )
    every = [hit for group in hits.values() for hit in group]
    return sum(every) / len(every), sum(map(all, hits.values())) / len(hits)


def official_nlvr2(lines: str, records: list[dict]) -> tuple[float, float]:
    said = dict(line.lower().split(",") for line in lines.splitlines())
    hits = defaultdict(list)
    for record in records:
        split, number, _, sentence = record["identifier"].split("-")
        hits[split, number, sentence].append(said[record["identifier"]] == record["label"].lower())
    every = [hit for group in hits.values() for hit in group]
    return sum(every) / len(every), sum(map(all, hits.values())) / len(hits)


def guesses(records: list[dict], names, rng: random.Random) -> str:
    """Right in nine of ten, so that some groups are consistent."""
    lines = []
    for record in records:
        for name in names(record["identifier"]):
            label = record["label"] if rng.random() < 0.9 else rng.choice(("true", "false"))
            lines.append(f"{name},{label}\n")
    rng.shuffle(lines)
    return "".join(lines)


FORMS = {
    "nlvr": (nlvr, official_nlvr, lambda name: [f"test-{name}-{order}.png" for order in range(6)]),
    "nlvr2": (nlvr2, official_nlvr2, lambda name: [name]),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_the_official_rules(tmp_path, form, seed):
    rng = random.Random(seed)
    make, official, names = FORMS[form]
    records = make(rng)
    lines = guesses(records, names, rng)
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "said.csv").write_text(lines)
    statements, _ = read_statements(tmp_path / "records.jsonl")
    truth, labels, notes = matched_statements(statements, read_judgements(tmp_path / "said.csv"), Mismatch.error, "it")
    scores = score_reason(truth, labels, MetricsConfig(resamples=50))
    accuracy, consistency = official(lines, records)
    assert not notes and scores.corpus == {
        "accuracy": pytest.approx(accuracy),
        "consistency": pytest.approx(consistency),
    }
    assert 0 < consistency < accuracy < 1
    trues = official("".join(f"{name},true\n" for r in records for name in names(r["identifier"])), records)
    assert scores.floors["always true"] == pytest.approx(dict(zip(scores.corpus, trues, strict=True)))
    images = [{"scores": own, "about": scores.about[name]} for name, own in scores.per_image.items()]
    for key in scores.corpus:  # what a folder of scores is compared by later
        assert summands_of(images, key).total() == pytest.approx(scores.corpus[key])
        assert bootstrap(summands_of(images, key)) == bootstrap(scores.summands[key])


def test_rows_of_a_cluster_are_drawn_and_exchanged_together():
    """Ten copies of each row, in one cluster, say no more than the row itself: same interval, same p."""
    rng = np.random.default_rng(0)
    ours, theirs = rng.random(60), rng.random(60) + 0.1
    copies, clusters = np.repeat(np.arange(60), 10), np.repeat(np.arange(60), 10)
    alone, other = mean_of(ours), mean_of(theirs)
    many, more = mean_of(ours[copies], clusters), mean_of(theirs[copies], clusters)
    assert bootstrap(many) == pytest.approx(bootstrap(alone))
    assert paired_permutation(many, more) == paired_permutation(alone, other) > 0.001
    apart = bootstrap(Summands(many.rows_IS, many.score))
    assert apart[1] - apart[0] < 0.5 * (bootstrap(many)[1] - bootstrap(many)[0])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("dev-1-0-0,maybe\n", "maybe is neither"),
        ("dev-1-0-0\n", "line 1: it has 1 cells"),
        ("identifier,prediction\n", "holds no predictions"),
        ("[]", "holds no answers"),
        ('{"dev-1-0-0": "3"}', ": 3 is neither"),
        ("\x80\x02", "a pickle"),
    ],
)
def test_predictions_in_no_known_form_are_named_in_a_line(tmp_path, text, said):
    path = tmp_path / ("said.json" if text.startswith("{") else "said.csv")
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UserError) as caught:
        read_judgements(path)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffdev-1-0-0,True\ndev-1-1-0,FALSE\n",
        "identifier,label\ndev-1-0-0,true\ndev-1-1-0,false\n",
        "probability,prediction,id\n0.9,true,dev-1-0-0\n0.2,false,dev-1-1-0\n",
        '{"dev-1-0-0": "true", "dev-1-1-0": "false"}',
        '[{"id": "dev-1-0-0", "prediction": "True", "true": 0.9}, {"id": "dev-1-1-0", "prediction": "false"}]',
        '{"id": "dev-1-0-0", "prediction": "true"}\n{"id": "dev-1-1-0", "prediction": "false"}\n',
    ],
)
def test_known_forms_of_predictions(tmp_path, text):
    path = tmp_path / "said"
    path.write_text(text)
    assert read_judgements(path).labels == {"dev-1-0-0": "true", "dev-1-1-0": "false"}


def test_what_is_not_on_both_sides_is_counted(tmp_path):
    Path(tmp_path / "records").write_text(
        '{"identifier": "1-0", "sentence": "s", "label": "true"}\n{"identifier": "1-1", "label": "false"}\n'
    )
    statements, _ = read_statements(tmp_path / "records")
    (tmp_path / "said").write_text("dev-1-0-0,true\ndev-1-0-0,false\ndev-7-0-0,true\n")
    given = read_judgements(tmp_path / "said")
    with pytest.raises(UserError, match=r"no prediction for 11 examples .*no reference for 1 .*more than one"):
        matched_statements(statements, given, Mismatch.error, "said")
    truth, labels, notes = matched_statements(statements, given, Mismatch.ignore, "said")
    assert labels == {"1-0-0": "true"} and truth["1-0-0"].label == "true" and len(notes) == 3
    (tmp_path / "facts").write_text("1-0,true\n1-1,true\n")  # a system that reads the facts: one label a record
    truth, labels, _ = matched_statements(statements, read_judgements(tmp_path / "facts"), Mismatch.error, "facts")
    assert score_reason(truth, labels, MetricsConfig(resamples=0)).corpus == {"accuracy": 0.5, "consistency": 0.0}
