"""Words of a source that are hidden: which ones, and that they are gone for every tokenizer."""

from __future__ import annotations

import pytest

from velm_cli.data.masked_words import MaskedTexts, words_to_mask
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.errors import UserError
from velm_cli.schema import TokenizerConfig, TokenizerKind

TEXTS = ["A man in a Red hat, two dogs.", "redder than red-hot children", "", "blue"]


def test_lists_and_files(tmp_path):
    colours, nouns = words_to_mask("colours"), words_to_mask("nouns")
    assert {"red", "grey"} <= colours and {"man", "men", "dogs", "ladies", "churches", "child", "jeans"} <= nouns
    assert not colours & nouns and not words_to_mask("none")
    path = tmp_path / "words.txt"
    path.write_text("\ufeffHut\n\n rot \n", encoding="utf-8")
    assert words_to_mask(str(path)) == {"hut", "rot"}
    path.write_text("\n")
    with pytest.raises(UserError, match="it holds 0 words"):
        words_to_mask(str(path))
    path.write_bytes(b"\xff\xfa\n")
    with pytest.raises(UserError, match="not UTF-8"):
        words_to_mask(str(path))
    with pytest.raises(UserError, match="no such file"):
        words_to_mask("verbs")


@pytest.mark.parametrize("kind", [TokenizerKind.word, TokenizerKind.bpe, TokenizerKind.wordpiece])
def test_whole_words_are_one_mask_each(kind):
    tokenizer = Tokenizer.build(TokenizerConfig(kind=kind, min_count=1, vocab_size=400), TEXTS * 9)
    masked = MaskedTexts(TEXTS, tokenizer, 50, words_to_mask("colours") | words_to_mask("nouns"))
    assert masked.hidden == 6, "man, Red, hat, dogs, children, blue; neither redder nor red-hot"
    rows = [masked.ids[begin:end].tolist() for begin, end in zip(masked.offsets[:-1], masked.offsets[1:], strict=True)]
    assert [row.count(tokenizer.mask_id) for row in rows] == [4, 1, 0, 1]
    left = [tokenizer.decode([token for token in row if token != tokenizer.mask_id]).lower() for row in rows]
    assert not any(word in text.split() for text in left for word in ("man", "red", "hat", "dogs", "children", "blue"))
    whole = MaskedTexts(TEXTS, tokenizer, 50, ["zebra"])
    assert [whole.ids[b:e].tolist() for b, e in zip(whole.offsets[:-1], whole.offsets[1:], strict=True)] == (
        tokenizer.encode_batch(TEXTS)
    )
    cut = MaskedTexts(TEXTS, tokenizer, 3, ["red"])
    assert max(cut.offsets[1:] - cut.offsets[:-1]) == 3
