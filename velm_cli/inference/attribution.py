"""Where a trained model looked in one image, for a text of its own or of the caller's."""

from __future__ import annotations

import torch

from velm_cli.data.loader import eval_batches
from velm_cli.data.looked import Attention
from velm_cli.data.transforms import kept_box
from velm_cli.errors import UserError
from velm_cli.inference.abilities import Able
from velm_cli.inference.examples import Given
from velm_cli.learners.attribution import METHODS, Said, as_one, chosen, looked, spelled, why_not
from velm_cli.learners.judging import JudgingLearner
from velm_cli.metrics.vqa import normalised
from velm_cli.tasks.vqa import ANSWERS


def attention_of(
    able: Able, jpeg: bytes, text: str, question: str | None, method: str, device: torch.device
) -> Attention:
    """Of an image in the form of the store; as `Model.attention`, with a text."""
    if method not in ("auto", *METHODS):
        raise UserError(f"method={method!r}: one of auto, {', '.join(METHODS)}")
    if (why := why_not(able.learner, method)) is not None:
        raise UserError(f"method={method}: this model cannot show where it looked: {why}")
    said = said_of(able, text, question)
    pixels = able.learner.pixels
    assert pixels is not None, "a model without vision has been refused"
    given = Given([jpeg], sources=None if question is None else [question])
    columns = given.columns(able.tokenizer, able.config.tokenizer.max_source_tokens)
    (batch,) = eval_batches(given, columns, [0], batch_size=1, pixels=pixels)
    used = chosen(able.learner, method)
    (maps_THW,) = looked(able.learner, batch.to(device), [said], used)
    return Attention(list(said.words), maps_THW, kept_box(jpeg, pixels.size, pixels.resizing), used)


def said_of(able: Able, text: str, question: str | None) -> Said:
    """UserError for a text without words, or an answer that the model cannot tell apart."""
    if isinstance(able.learner, JudgingLearner):
        places = {normalised(answer): place for place, answer in enumerate(able.spaces[ANSWERS])}
        if (place := places.get(normalised(text))) is None:
            raise UserError(
                f"text={text!r} is not among the {len(places):,} answers that this model can tell apart "
                "(task.answer=classify)"
            )
        return Said([text], label=place)
    said = spelled(able.tokenizer, text) if question is None else as_one(able.tokenizer, text)
    if not said.words or not said.word_of:
        raise UserError(f"text={text!r}: it has no words to look for")
    return said
