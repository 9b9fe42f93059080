"""What a run should know of its conversations: how many are cut or left out, and how long they are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from velm_cli.data.store import Store
from velm_cli.data.talk_tokens import TalkTokens
from velm_cli.schema import ChatTaskConfig, TrainRoot

NOT_WRITTEN = 0.1  # share of the replies longer than decode.max_length that is worth a note


def talk_notes(config: TrainRoot, talks: TalkTokens, store: Store) -> Iterator[str]:
    """Lines about the training part."""
    assert isinstance(config.task, ChatTaskConfig)
    examples = store.split("train")
    found = talks.counts(examples)
    yield f"template    {talks.form.named}; a turn ends with {talks.tokenizer.spelling(talks.form.end_id)}"
    mean = found["tokens"] / max(1, found["kept"])
    yield f"learned     {found['kept']:,} of {len(examples):,} conversations, {mean:.1f} tokens each without images"
    if found["cut"]:
        yield (
            f"note: {found['cut']:,} conversations have more tokens than task.max_tokens={talks.limit} (the longest "
            f"{found['longest']:,}): their ends are not learned from"
        )
    if found["dropped"]:
        how = "have more tokens than" if talks.drops else "have no reply within"
        yield f"note: {found['dropped']:,} conversations {how} task.max_tokens={talks.limit} and are left out"
    if found["refused"]:
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in talks.refused.items())
        yield f"note: {found['refused']:,} conversations are left out, which the chat template refuses: {reasons}"
    replied = examples[talks.learnable(examples)]
    length = talks.offsets[replied + 1] - talks.offsets[replied] - talks.prompts[replied]
    longest = config.decode.max_length
    longer = float(np.mean(length > longest)) if len(length) else 0.0
    if longer > NOT_WRITTEN:
        yield (
            f"note: decode.max_length={longest}: {longer:.0%} of the replies have more tokens, so what is written ends "
            f"before they do: decode.max_length={int(np.quantile(length, 0.99))} would hold 99 %"
        )
