"""What tokenisation loses of the captions: words that become <unk>, captions that are cut, languages without blanks.

A vocabulary of 9 words trains without an error, and its model writes nothing of use: so it is counted, and said.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from velm_cli.data.tokens import Tokens
from velm_cli.schema import TokenizerConfig, TokenizerKind

TOO_MUCH = 0.1  # share of unknown words or of cut captions that is worth a warning
LOOKED_AT = 1000  # captions, evenly spread, whose script is looked at
LETTERS_A_TOKEN = 5.0  # words of Chinese, Japanese and Thai have two to four on average
# Beginnings of Unicode's names of letters that are written without blanks between words.
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")


def coverage_lines(
    tokens: Tokens,
    captions: Sequence[str],
    config: TokenizerConfig,
    *,
    own: bool,
    noun: str = "captions",
    column: str = "targets",
) -> Iterator[str]:
    """How much of a column of texts the tokens hold, and a warning with the cure for each that is too little.

    `noun`: what the texts are. `own`: the vocabulary is learned from these captions as `config` says; else a model or
    a run brings it.
    """
    count, words = len(captions), len(tokens.ids)
    if not count or not words:
        return
    option, limit = "max_tokens", config.max_tokens
    if column == "sources":
        option, limit = "max_source_tokens", config.max_source_tokens
    unk = tokens.tokenizer.unk_id
    unknown = 0 if unk is None else int(np.count_nonzero(tokens.ids == unk))
    said = [f"{unknown / words:.1%} of the words unknown (<unk>)"] if unk is not None else []
    if tokens.cut is not None:
        said.append(f"{tokens.cut:,} of {count:,} {noun} cut at tokenizer.{option}={limit}")
    if said:
        yield f"coverage    {', '.join(said)}"
    is_word = own and config.kind is TokenizerKind.word
    letters = _unspaced_letters(captions)
    if own and letters * count > LETTERS_A_TOKEN * words:
        cure = "tokenizer=bpe or tokenizer=wordpiece"
        if not is_word:
            cure = f"lower tokenizer.vocab_size={config.vocab_size}"
        yield (
            f"warning: these {noun} have no blanks between words, and tokenizer={config.kind.value} makes tokens of "
            f"{letters * count / words:.0f} letters of them, so whole phrases are learned as words: {cure}"
        )
    elif unknown > TOO_MUCH * words:
        cure = "choose a text model that knows their language, or train with tokenizer=bpe"
        if is_word:
            lower = f"lower tokenizer.min_count={config.min_count}, or " if config.min_count > 1 else ""
            cure = f"{lower}take tokenizer=bpe, which knows every word"
        elif own:
            cure = "raise tokenizer.vocab_size, or take tokenizer=bpe, which knows every word"
        yield f"warning: {unknown / words:.0%} of the words are unknown to the vocabulary and become <unk>: {cure}"
    if tokens.cut and tokens.cut > TOO_MUCH * count:
        yield (
            f"warning: {tokens.cut / count:.0%} of the {noun} are longer than tokenizer.{option}="
            f"{limit} and lose their ends: raise it (the longest has {tokens.longest:,} tokens)"
            + ", and decode.max_length with it"
            * (column == "targets")
        )


def _unspaced_letters(captions: Sequence[str]) -> float:
    """Mean number of letters of a caption where most are of scripts without blanks; else 0."""
    numbers = range(0, len(captions), max(1, len(captions) // LOOKED_AT))
    letters = [letter for number in numbers for letter in captions[number] if letter.isalpha()]
    unspaced = sum(letter > "\u0dff" and unicodedata.name(letter, "").startswith(UNSPACED) for letter in letters)
    return len(letters) / len(numbers) if 2 * unspaced > len(letters) else 0.0
