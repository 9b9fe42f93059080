"""What tokenisation loses is counted, and said with its cure."""

import itertools
import re

import pytest

from velm_cli.data.coverage import coverage_lines
from velm_cli.data.tokens import CUT, Tokens, tokens_in
from velm_cli.schema import TokenizerConfig, TokenizerKind

ZH = [
    a + b
    for a, b in itertools.product(
        ["一只狗在草地上", "两个孩子在海边", "红色的汽车"], ["奔跑着很开心", "停在路边", "看着外面"]
    )
]
TH = ["สุนัขวิ่งบนสนามหญ้า" + end for end in ["ในสวน", "กับเด็ก", "สีเขียว", "ทุกวัน"]]
EN = ["a dog runs on the grass", "two children play at the sea", "a red car stands at the kerb"]
RARE = [f"the {a}{b} of {b}{c} thing" for a, b, c in itertools.product("xyz", "stu", "pqr")]


def lines(folder, captions, *, own=True, **options):
    config = TokenizerConfig(**{"min_count": 1, **options})
    tokens = tokens_in(folder / "tokens", "a store", config, captions, captions)
    return list(coverage_lines(tokens, captions, config, own=own))


WORD, BPE, PIECES = TokenizerKind.word, TokenizerKind.bpe, TokenizerKind.wordpiece
SEGMENTED = ["一只 狗 在 草地 上 奔跑", "两个 孩子 在 海边 玩耍"]


@pytest.mark.parametrize(
    ("captions", "options", "first", "warned"),
    [
        (EN, {}, "0.0% of the words unknown (<unk>), 0 of 3 captions cut at tokenizer.max_tokens=40", None),
        (SEGMENTED, {}, "0.0% of the words unknown", None),
        (ZH, {}, "0.0% of the words unknown", "tokenizer=word makes tokens of 1. letters.*tokenizer=bpe or"),
        (TH, {}, "0.0% of the words unknown", "no blanks between words.*tokenizer=bpe"),
        (ZH * 2, {"kind": BPE}, "0.0% of the words unknown", "lower tokenizer.vocab_size=8000"),
        (ZH, {"kind": PIECES}, "0.0% of the words unknown", None),
        (RARE, {"min_count": 25}, "40.0% of the words unknown", "40% of the words.*lower tokenizer.min_count=25, or"),
        (EN * 3, {"max_tokens": 5}, "9 of 9 captions cut at tokenizer.max_tokens=5", "the longest has 7 tokens"),
        (EN * 3, {"max_tokens": 6}, "3 of 9 captions cut", "33% of the captions are longer"),
        ([*EN * 9, "a " * 50], {}, "1 of 28 captions cut at tokenizer.max_tokens=40", None),
    ],
)
def test_what_is_lost_is_counted_and_too_much_of_it_is_a_warning(captions, options, first, warned, tmp_path):
    said, *warnings = lines(tmp_path, captions, **options)
    assert said.startswith("coverage    ") and first in said
    assert len(warnings) == (warned is not None)
    if warned is not None:
        assert warnings[0].startswith("warning: ")
        assert re.search(warned, warnings[0]), warnings[0]


def test_a_vocabulary_that_a_model_brings_cannot_be_changed_here(tmp_path):
    lines(tmp_path, EN)
    config = TokenizerConfig(min_count=2)
    tokens = tokens_in(tmp_path / "tokens", "a store", config, EN, EN)
    (_, warning) = coverage_lines(tokens, EN, config, own=False)
    assert "min_count" not in warning and "text model that knows their language" in warning


def test_tokens_of_an_older_velm_say_what_they_can(tmp_path):
    config = TokenizerConfig(min_count=2)
    tokens = tokens_in(tmp_path / "tokens", "a store", config, EN, EN)
    (tokens.folder / CUT).unlink()
    old = Tokens(tokens.folder, "a store")
    assert old.cut is None
    said = next(iter(coverage_lines(old, EN, config, own=True)))
    assert "words unknown" in said and "cut" not in said


def test_no_captions_say_nothing(tmp_path):
    config = TokenizerConfig(min_count=1)
    tokens = tokens_in(tmp_path / "tokens", "a store", config, EN, EN)
    assert list(coverage_lines(tokens, [], config, own=True)) == []
