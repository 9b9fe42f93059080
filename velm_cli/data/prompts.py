"""Sources within a prompt: "Question: {source} Answer:", as tokens that a language model reads before it writes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from velm_cli.data.masked_words import MaskedTexts
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.schema.tasks import SOURCE


class Prompted:
    """Texts as `data.batch.Texts` wants them: each source in its place in the prompt.

    The tokenizer reads source and prompt in one piece, as they stand there. A source of more than `limit` tokens is
    cut, and the prompt around it stays whole. `words` are masked (`data.mask_source`), `hidden` of them; prompts keep
    theirs.
    """

    def __init__(
        self,
        prompt: str,
        texts: Sequence[str],
        tokenizer: Tokenizer,
        limit: int,
        words: frozenset[str] = frozenset(),
    ) -> None:
        self.tokenizer = tokenizer
        self.cut = self.hidden = 0
        before, _, after = prompt.partition(SOURCE)
        first, last, *sources = tokenizer.encode_batch([before, after, *texts])
        if words:
            masked = MaskedTexts(texts, tokenizer, limit, words)
            self.hidden = masked.hidden
            sources = [masked.ids[a:b].tolist() for a, b in zip(masked.offsets, masked.offsets[1:], strict=False)]
            rows = [[*first, *source, *last] for source in sources]
        else:
            rows = tokenizer.encode_batch([f"{before}{text}{after}" for text in texts])
            for number, source in enumerate(sources):
                if len(source) > limit:
                    self.cut += 1
                    rows[number] = [*first, *source[:limit], *last]
        self.ids = np.fromiter((token for row in rows for token in row), np.int64)
        self.offsets = np.fromiter(accumulate(map(len, rows), initial=0), np.int64, len(rows) + 1)


def prompt_digest(prompt: str) -> str:
    """What a signature says of a prompt: its text and its hash."""
    return f"{prompt!r} ({hashlib.sha256(prompt.encode()).hexdigest()[:12]})"
