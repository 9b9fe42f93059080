"""What a request asks of the model, and how a batch of such requests is answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from velm_cli.data.written import all_texts
from velm_cli.inference.model import Model
from velm_cli.schema import DecodeConfig, DecodeMethod

# (words, weights [T, h, w], box) of a text about a stored JPEG; None where the model has no such weights.
Look = Callable[[Model, bytes, str], Any]


@dataclass(frozen=True, slots=True)
class Caption:
    """Item: a JPEG in the form of the store. `n` captions are drawn; 0: one is searched for by beams, or the `best`."""

    beams: int
    n: int
    best: int
    prompt: str
    allowed: tuple[str, ...] | None
    max_length: int
    min_length: int
    length_penalty: float
    top_p: float
    top_k: int
    temperature: float
    repetition_penalty: float
    no_repeat_ngram: int
    seed: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Item: (JPEG, question)."""

    beams: int
    max_length: int
    min_length: int
    repetition_penalty: float
    no_repeat_ngram: int
    choices: tuple[str, ...] | None
    probabilities: int


@dataclass(frozen=True, slots=True)
class EmbedImages:
    """Item: JPEGs, a tuple."""


@dataclass(frozen=True, slots=True)
class EmbedTexts:
    """Item: texts, a tuple."""


@dataclass(frozen=True, slots=True)
class Attend:
    """Item: (JPEG, text)."""


def work(model: Model, look: Look) -> Callable[[Any, Sequence[Any]], list[Any]]:
    """The function that `batching.Batches` calls with what is asked and with its items."""

    def answer(asked: Any, items: Sequence[Any]) -> list[Any]:
        match asked:
            case Caption():
                return _captions(model, asked, items)
            case Answer():
                return _answers(model, asked, items)
            case EmbedImages():
                return _parts(model.embeddings_of([jpeg for item in items for jpeg in item]), items)
            case EmbedTexts():
                return _parts(model.embed_texts([text for item in items for text in item]), items)
            case Attend():
                return [look(model, jpeg, text) for jpeg, text in items]
        raise AssertionError(asked)

    return answer


def _captions(model: Model, asked: Caption, jpegs: Sequence[bytes]) -> list[Any]:
    several = asked.n or asked.best
    how = DecodeConfig(
        method=DecodeMethod.nucleus if asked.n else DecodeMethod.beam,
        beams=1 if asked.n else asked.beams,
        samples=several or 1,
        max_length=asked.max_length,
        min_length=asked.min_length,
        length_penalty=asked.length_penalty,
        top_p=asked.top_p,
        top_k=asked.top_k,
        temperature=asked.temperature,
        repetition_penalty=asked.repetition_penalty,
        no_repeat_ngram=asked.no_repeat_ngram,
        batch_size=(asked.n or 1) * len(jpegs),
    )
    texts = model.captions_of(jpegs, how, seed=asked.seed, prompt=asked.prompt, allowed=asked.allowed)
    return [list(all_texts(text)) for text in texts] if several else list(texts)


def _answers(model: Model, asked: Answer, items: Sequence[tuple[bytes, str]]) -> list[Any]:
    places = {jpeg: place for place, jpeg in enumerate(dict.fromkeys(jpeg for jpeg, _ in items))}
    how = DecodeConfig(
        beams=asked.beams,
        max_length=asked.max_length,
        min_length=asked.min_length,
        repetition_penalty=asked.repetition_penalty,
        no_repeat_ngram=asked.no_repeat_ngram,
        batch_size=len(items),
    )
    return model.answers_of(
        list(places),  # several questions about one image encode it once
        [question for _, question in items],
        [places[jpeg] for jpeg, _ in items],
        how,
        choices=asked.choices,
        probabilities=asked.probabilities,
    )


def _parts(rows: Any, items: Sequence[Sequence[Any]]) -> list[Any]:
    found, start = [], 0
    for item in items:
        found.append(rows[start : start + len(item)])
        start += len(item)
    return found
