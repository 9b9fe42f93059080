"""Where a trained model looked in one image, for a text of its own or of the caller's."""

from __future__ import annotations

import torch

from velm_cli.data.loader import eval_batches
from velm_cli.data.looked import Attention
from velm_cli.data.transforms import kept_box
from velm_cli.errors import UserError
from velm_cli.inference.abilities import Able
from velm_cli.inference.examples import Given
from velm_cli.learners.attribution import METHODS, chosen, looked, said_of, why_not
from velm_cli.learners.judging import ANSWERS


def attention_of(
    able: Able, jpeg: bytes, text: str, question: str | None, method: str, device: torch.device
) -> Attention:
    """Of an image in the form of the store; as `Model.attention`, with a text."""
    if method not in ("auto", *METHODS):
        raise UserError(f"method={method!r}: one of auto, {', '.join(METHODS)}")
    if (why := why_not(able.learner, method)) is not None:
        raise UserError(f"method={method}: this model cannot show where it looked: {why}")
    answers = able.spaces.get(ANSWERS, ())
    said = said_of(able.learner, able.tokenizer, text, answers=answers, asked=question is not None)
    pixels = able.learner.pixels
    assert pixels is not None, "a model without vision has been refused"
    given = Given([jpeg], sources=None if question is None else [question])
    columns = given.columns(able.tokenizer, able.config)
    (batch,) = eval_batches(given, columns, [0], batch_size=1, pixels=pixels)
    used = chosen(able.learner, method)
    (maps_THW,) = looked(able.learner, batch.to(device), [said], used)
    return Attention(list(said.words), maps_THW, kept_box(jpeg, pixels.size, pixels.resizing), used)
