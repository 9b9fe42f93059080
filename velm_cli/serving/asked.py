"""What a request asks of the model, and how a batch of such requests is answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from velm_cli.inference.arguments import in_chunks
from velm_cli.inference.model import Model
from velm_cli.schema import DecodeConfig, DecodeMethod

# (words, weights [T, h, w], box) of a text about a stored JPEG; None where the model has no such weights.
Look = Callable[[Model, bytes, str], Any]


@dataclass(frozen=True, slots=True)
class Caption:
    """Item: a JPEG in the form of the store. `n` captions are drawn; 0: one is searched for by beams."""

    beams: int
    n: int
    prompt: str
    max_length: int
    length_penalty: float
    top_p: float
    temperature: float
    seed: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Item: (JPEG, question)."""

    beams: int
    max_length: int
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
    if asked.n:
        how = DecodeConfig(
            method=DecodeMethod.nucleus,
            beams=1,
            max_length=asked.max_length,
            top_p=asked.top_p,
            temperature=asked.temperature,
            batch_size=asked.n * len(jpegs),
        )
        texts = model.captions_of(jpegs, how, n=asked.n, seed=asked.seed, prompt=asked.prompt)
        return list(in_chunks(texts, asked.n))
    how = DecodeConfig(
        method=DecodeMethod.beam,
        beams=asked.beams,
        max_length=asked.max_length,
        length_penalty=asked.length_penalty,
        batch_size=len(jpegs),
    )
    return model.captions_of(jpegs, how, prompt=asked.prompt)


def _answers(model: Model, asked: Answer, items: Sequence[tuple[bytes, str]]) -> list[Any]:
    places = {jpeg: place for place, jpeg in enumerate(dict.fromkeys(jpeg for jpeg, _ in items))}
    how = DecodeConfig(beams=asked.beams, max_length=asked.max_length, batch_size=len(items))
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
