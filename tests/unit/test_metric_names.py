"""One name of a score is enough, in any case and spelling, wherever a score is named."""

from __future__ import annotations

import pytest

from velm_cli.errors import UserError
from velm_cli.schema import MetricsConfig, ScoreRoot
from velm_cli.schema.metric_names import LABELS, NAMES, metric_named, score_named
from velm_cli.validate import validate


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        *((spelling, "Bleu_4") for spelling in ("BLEU-4", "bleu_4", "Bleu 4", "bleu@4", "B@4", "b4", "bleu", "BLEU")),
        *((spelling, "Bleu_1") for spelling in ("BLEU-1", "bleu1")),
        *((spelling, "ROUGE_L") for spelling in ("rouge-l", "ROUGE-L", "rouge_l", "RougeL", "rouge")),
        *((spelling, "CIDEr") for spelling in ("cider", "CIDER", "CIDEr-D")),
        ("meteor", "METEOR"), ("Spice", "SPICE"), ("clip-score", "CLIPScore"), ("CLIP-S", "CLIPScore"), ("refclips", "RefCLIPScore"),
        *((spelling, None) for spelling in ("", "bleu-5", "rouge-1", "cider2", "acc", "b")),
    ],
)  # fmt: skip
def test_spellings(spelling, name):
    assert score_named(spelling) == name


def test_every_label_and_column_names_itself():
    for name in NAMES:
        assert score_named(name) == score_named(LABELS[name]) == score_named(LABELS[name].lower()) == name


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("cider", ["cider"]),
        ("CIDEr", ["cider"]),
        (["CIDEr", "BLEU-4", "bleu", "Bleu_1"], ["cider", "bleu"]),
        (["ROUGE-L"], ["rouge_l"]),
        ([], []),
        (None, ["None"]),
        (3, ["3"]),
    ],
)
def test_a_value_and_a_list_are_lists_in_velms_spelling(value, names):
    config = MetricsConfig(names=value, required=value)
    assert config.names == config.required == names


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ("spcie", "metrics: no metric 'spcie'; did you mean 'spice'? (there are bleu, meteor, rouge_l, cider, spice)"),
        ("SPCIE", "metrics: no metric 'SPCIE'; did you mean 'spice'? (there are bleu, meteor, rouge_l, cider, spice)"),
        ("CLIPScore", "metrics: CLIPScore needs a model: give metrics.clip=FOLDER"),
    ],
)
def test_what_is_no_metric_is_one_line(names, line):
    root = ScoreRoot(predictions="p", references="r", metrics=MetricsConfig(names=names))
    with pytest.raises(UserError) as failure:
        validate(root)
    assert str(failure.value) == line


def test_a_metric_is_required_in_any_spelling():
    validate(ScoreRoot(predictions="p", references="r", metrics=MetricsConfig(names="BLEU-4", required="bleu")))
    assert metric_named("RefCLIPScore") == "clip" and metric_named("x") is None
