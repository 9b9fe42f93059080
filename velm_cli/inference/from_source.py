"""Translations and summaries by a trained model: a text, with or without images of its own, in; a text out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np

from velm_cli.data.batch import Columns
from velm_cli.data.loader import eval_batches
from velm_cli.data.processes import available_cores
from velm_cli.errors import UserError
from velm_cli.inference.arguments import decoding, is_one, several, text_of
from velm_cli.inference.examples import Given, sources_of
from velm_cli.inference.loaded import Loaded
from velm_cli.inference.pictures import Picture
from velm_cli.tasks.interface import Session

MAX_LENGTH = 80  # tokens; captions are shorter


class WritesFromSource:
    """What a `Model` does that has learned task=translate or task=summarise."""

    def translate(
        self,
        image: Picture | Sequence[Picture] | None,
        text: str | Sequence[str],
        *,
        beams: int = 5,
        max_length: int = MAX_LENGTH,
        min_length: int = 0,
        length_penalty: float = 1.0,
        repetition_penalty: float = 1.0,
        no_repeat_ngram: int = 0,
        batch_size: int = 64,
    ) -> Any:
        """The translation of `text`; a list where it is a list. `image`: one for each text, or None where the model
        has learned without images (vision=none)."""
        how = {"beams": beams, "max_length": max_length, "min_length": min_length, "length_penalty": length_penalty}
        how |= {"repetition_penalty": repetition_penalty, "no_repeat_ngram": no_repeat_ngram, "batch_size": batch_size}
        return _written(cast(Loaded, self), "translate", image, text, how)

    def summarise(
        self,
        image: Picture | Sequence[Picture] | None,
        text: str | Sequence[str],
        *,
        beams: int = 5,
        max_length: int = MAX_LENGTH,
        min_length: int = 0,
        length_penalty: float = 1.0,
        repetition_penalty: float = 1.0,
        no_repeat_ngram: int = 0,
        batch_size: int = 64,
    ) -> Any:
        """The summary of the document `text`, as `translate` has it. Several captions stand with ` | ` between them."""
        how = {"beams": beams, "max_length": max_length, "min_length": min_length, "length_penalty": length_penalty}
        how |= {"repetition_penalty": repetition_penalty, "no_repeat_ngram": no_repeat_ngram, "batch_size": batch_size}
        return _written(cast(Loaded, self), "summarise", image, text, how)


def _written(model: Loaded, kind: str, image: Any, text: Any, options: dict[str, Any]) -> Any:
    model.needs(kind)
    able, how = model._able, decoding(**options)
    texts = [text_of("text", each) for each in ([text] if isinstance(text, str) else several(text))]
    given = Given(_images(model, image, len(texts)), sources=texts)
    tokenizer = able.tokenizer
    sources = sources_of(texts, tokenizer, able.config)
    found: dict[Any, str] = {}
    if texts:
        batches = eval_batches(
            given,
            Columns(source=sources),
            np.arange(len(texts)),
            batch_size=how.batch_size,
            pixels=able.learner.pixels,
            workers=available_cores(),
        )
        session = Session(model.device)
        with model._steps(len(texts) > how.batch_size), model._autocast():
            found = dict(able.tasks[kind].predict(able.learner, batches, able.spaces, tokenizer, how, session))
    return found[0] if isinstance(text, str) else [found[number] for number in given.ids]


def _images(model: Loaded, image: Any, texts: int) -> list[bytes]:
    """The images of so many texts in the form of the store; UserError where there are others than one each."""
    sees = model._able.learner.pixels is not None
    if image is None:
        if sees:
            raise UserError("image: this model has learned with images: give one for each text")
        return [b""] * texts
    if not sees:
        raise UserError("image: this model has learned without images (vision=none): give None")
    images: Iterable[Any] = [image] if is_one(image) else several(image)
    found = [model.stored(each) for each in images]
    if len(found) != texts:
        raise UserError(f"{len(found)} images and {texts} texts: give one image for each text")
    return found
