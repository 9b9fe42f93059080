"""`decode.allowed`: a file with one text a line; each text that is written is one of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from velm_cli.data.tokenizer import Tokenizer
from velm_cli.errors import UserError, on_one_line
from velm_cli.lines import Refused, text_lines
from velm_cli.schema import DecodeConfig


def read_allowed(path: str) -> list[str]:
    """The different texts of the file, in its order. UserError where there are none, or a line cannot be read."""
    refused: Refused = []
    texts = list(dict.fromkeys(line.strip() for _, line in text_lines(Path(path), refused)))
    if refused:
        raise UserError(f"allowed: {': '.join(refused[0])}")
    if not texts:
        raise UserError(f"allowed: {path} holds no text: write one on each line")
    return texts


def refuse_unwritable(how: DecodeConfig, tokenizer: Tokenizer) -> None:
    """UserError where `decode.allowed` cannot be used with this tokenizer, before it is."""
    if how.allowed is not None:
        allowed_tokens(read_allowed(how.allowed), tokenizer, longest=how.max_length)


def allowed_tokens(
    texts: Sequence[str], tokenizer: Tokenizer, *, longest: int, prompt: str = ""
) -> dict[tuple[int, ...], str]:
    """What may be written behind the prompt, as tokens, and the texts (prompt included) that these stand for.

    UserError for a text that the tokenizer cannot write, or that has more than `longest` tokens with its end.
    """
    if not texts:
        raise UserError("allowed: give at least one text")
    if prompt and all(text.startswith(f"{prompt} ") for text in texts):
        raise UserError(
            f"allowed: the texts stand behind the prompt {on_one_line(prompt)!r}, and all of them begin with it: "
            "leave it out of them, or give no prompt"
        )
    begun, *listed = tokenizer.encode_batch([prompt, *(f"{prompt} {text}" if prompt else text for text in texts)])
    found: dict[tuple[int, ...], str] = {}
    for text, tokens in zip(texts, listed, strict=True):
        if tokens[: len(begun)] != begun:  # the tokenizer joins prompt and text
            (tokens,) = tokenizer.encode_batch([text])
        else:
            tokens = tokens[len(begun) :]
        shown = on_one_line(text if len(text) <= 60 else f"{text[:60]}...")
        if not tokens or tokenizer.unk_id in tokens or tokenizer.eos_id in tokens:
            why = "no words" if not tokens else "a word that is not in the vocabulary"
            raise UserError(f"allowed: {shown!r} has {why} of this model's tokenizer: leave it out")
        if len(tokens) >= longest:
            raise UserError(
                f"allowed: {shown!r} has {len(tokens)} tokens, and the end is one more: max_length={len(tokens) + 1}"
            )
        found.setdefault(tuple(tokens), f"{prompt} {text}" if prompt else text)
    return found
