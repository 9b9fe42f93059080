"""A trained model as Python uses it: `velm_cli.load(RUN)` gives one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from velm_cli.data.batch import Batch, Columns, assemble
from velm_cli.data.loader import eval_batches
from velm_cli.data.looked import Attention
from velm_cli.data.processes import available_cores
from velm_cli.engine.device import autocast, pick_precision
from velm_cli.errors import UserError
from velm_cli.inference.abilities import Able, load_able
from velm_cli.inference.answering import Asked, answered
from velm_cli.inference.arguments import (
    choice,
    decoding,
    device_of,
    in_chunks,
    is_one,
    several,
    text_of,
    texts_of,
    whole,
)
from velm_cli.inference.attribution import attention_of
from velm_cli.inference.captioning import TOGETHER, Captions
from velm_cli.inference.classifying import Classifies
from velm_cli.inference.examples import Given, Tokenised
from velm_cli.inference.from_source import WritesFromSource
from velm_cli.inference.pictures import Form, Picture, stored
from velm_cli.inference.talking import Chats, as_talks, replies
from velm_cli.learners.matching import TEXTS_AT_ONCE, embed_images, embed_texts
from velm_cli.models.decoding import converted_once, laid_out_for_steps
from velm_cli.schema import DecodeConfig, Precision


def load(checkpoint: str | Path, device: str | torch.device = "auto", *, precision: Precision | str = "auto") -> Model:
    """The model of a run folder, of an exported folder, of a kept checkpoint or of a .safetensors file in a run.

    `device`: auto (CUDA, else Metal, else the CPU), cpu, cuda, cuda:1, mps. `precision`: auto (bf16 where the hardware
    multiplies it faster), fp32 or bf16. Raises UserError, in one line, for whatever is wrong with the checkpoint.
    """
    if not isinstance(checkpoint, (str, Path)):
        raise UserError(f"checkpoint: give a path, not {type(checkpoint).__name__}")
    where = device if isinstance(device, torch.device) else device_of(device)
    how = pick_precision(choice("precision", precision, Precision), where)
    return Model(load_able(checkpoint, where), how)


class Model(Captions, WritesFromSource, Classifies, Chats):
    """Captions, answers and embeddings of images by one trained model. Made by `load`.

    An image is a path, the bytes of a file, a PIL image or a uint8 array [height, width, 3]. It is brought into the
    form that the training store had, so the words are those of `velm eval`. One image gives one result, several
    (any iterable) a list in their order. Not thread-safe: calls from several threads wait for each other at your side.
    """

    def __init__(self, able: Able, precision: Precision) -> None:
        self._able, self._precision = able, precision
        self._form = Form.of(able.config.dataset)
        self._ready = False

    # ------------------------------------------------------------------------------------- what it is

    @property
    def config(self) -> Any:
        """The options it was trained with (a `velm_cli.schema.TrainRoot`)."""
        return self._able.config

    @property
    def sha256(self) -> str:
        """Of its weights, hexadecimal."""
        return self._able.sha256

    @property
    def device(self) -> torch.device:
        return next(self._able.learner.parameters()).device

    @property
    def precision(self) -> str:
        return self._precision.value

    @property
    def width(self) -> int:
        """E: numbers in an embedding."""
        width: int = self._able.config.loss.joint_width
        return width

    @property
    def can(self) -> tuple[str, ...]:
        """What it has learned: some of `caption`, `answer`, `embed`, `translate`, `summarise`, `classify`."""
        named = {"vqa": "answer", "retrieve": "embed", "classify": "classify"}
        return tuple(named.get(kind, kind) for kind in self._able.can)

    def __repr__(self) -> str:
        config = self._able.config
        parts = f"{config.vision.kind} + {config.text.kind} + {config.fusion.kind}"
        return f"<velm model {self._able.file}: {parts}, can {' and '.join(self.can) or 'predict nothing'}>"

    # --------------------------------------------------------------------------------------- answers

    def answer(
        self,
        image: Picture | Sequence[Picture],
        question: str | Sequence[str],
        *,
        choices: Sequence[str] | None = None,
        probabilities: int = 0,
        beams: int = 1,
        max_length: int = 30,
        min_length: int = 0,
        repetition_penalty: float = 1.0,
        no_repeat_ngram: int = 0,
        batch_size: int = 64,
    ) -> Any:
        """The answer to a question about an image; a list where images or questions (or both, in pairs) are lists.

        `choices`: the answer is the likeliest of these. `probabilities`: instead of the answer alone, a dict of so many
        of the likeliest answers with their probabilities (where answers are chosen, not written).
        """
        self.needs(self.answers_by)
        alone = is_one(image) and isinstance(question, str)
        images: list[Any] = [image] if is_one(image) else list(several(image))
        questions = [question] if isinstance(question, str) else list(several(question))
        if len(images) == 1 and len(questions) > 1:
            image_of = [0] * len(questions)
        elif len(questions) == 1:
            questions, image_of = questions * len(images), list(range(len(images)))
        elif len(images) == len(questions):
            image_of = list(range(len(images)))
        else:
            raise UserError(f"{len(images)} images and {len(questions)} questions: give one of either, or pairs")
        for each in questions:
            text_of("question", each)
        texts_of("choices", choices)
        how = decoding(
            beams=beams,
            max_length=max_length,
            min_length=min_length,
            repetition_penalty=repetition_penalty,
            no_repeat_ngram=no_repeat_ngram,
            batch_size=batch_size,
        )
        whole("probabilities", probabilities, least=0)
        jpegs = [self.stored(each) for each in images]
        found = self.answers_of(jpegs, questions, image_of, how, choices=choices, probabilities=probabilities)
        return found[0] if alone else found

    def answers_of(
        self,
        jpegs: Sequence[bytes],
        questions: Sequence[str],
        image_of: Sequence[int],
        how: DecodeConfig,
        *,
        choices: Sequence[str] | None = None,
        probabilities: int = 0,
    ) -> list[Any]:
        """As `answer`, of images in the form of the store; question i is about image `image_of[i]`."""
        if not questions:
            return []
        if self.answers_by == "chat":
            if choices is not None or probabilities:
                raise UserError("choices, probabilities: a model of task=chat writes its replies")
            return replies(self, as_talks(questions), jpegs, [[image] for image in image_of], how)
        given = Given(jpegs, sources=questions, image_of=image_of)
        asked = Asked(choices=choices, probabilities=probabilities)
        with self._steps(len(given) > how.batch_size), self._autocast():
            batches = self._batches(given, how.batch_size)
            found = dict(answered(self._able, batches, how, asked, self.device))
        return [found[number] for number in given.ids]

    # ------------------------------------------------------------------------------- where it looked

    def attention(
        self, image: Picture, text: str | None = None, *, question: str | None = None, method: str = "auto"
    ) -> Attention:
        """Where in the image it looked for each word of the caption `text`, or for the answer `text` to a question.

        Without `text` it is the model's own. The result has `words`, `maps_THW` (for each word a grid of shares of 1),
        `box` (the part of the image that the grid covers) and the `method`: attention (of the words to the image, where
        the fusion has any), gradient, occlusion, or by itself (auto) what docs/where-it-looked.md found to be right.
        """
        self.needs("caption" if question is None else "vqa")
        if text is None:
            text = self.caption(image) if question is None else self.answer(image, question)
        return self.attention_of(self.stored(image), text, question=question, method=method)

    def attention_of(self, jpeg: bytes, text: str, *, question: str | None = None, method: str = "auto") -> Attention:
        """As `attention`, of an image in the form of the store."""
        text_of("text", text), text_of("question", question or "")
        return attention_of(self._able, jpeg, text, question, method, self.device)

    # ------------------------------------------------------------------------------------ embeddings

    def embed_images(
        self, images: Picture | Iterable[Picture], *, batch_size: int = 64, progress: bool = False
    ) -> np.ndarray:
        """Unit vectors, float32: [E] of one image, [N, E] of several. Their products with texts' are cosines."""
        self.needs("retrieve")
        alone, at_once = is_one(images), whole("batch_size", batch_size)
        pictures = [images] if alone else several(images)
        parts = []
        with self._bar(pictures, "image", progress) as bar, ThreadPoolExecutor(available_cores()) as pool:
            for some in in_chunks(pictures, TOGETHER):
                parts.append(self.embeddings_of(list(pool.map(self.stored, some)), at_once))
                bar.update(len(parts[-1]))
        found = np.concatenate(parts) if parts else np.zeros((0, self.width), np.float32)
        return found[0] if alone else found

    def embeddings_of(self, jpegs: Sequence[bytes], batch_size: int = 64) -> np.ndarray:
        """float32 [N, E], of images in the form of the store."""
        learner: Any = self._able.learner
        parts = [np.zeros((0, self.width), np.float32)]
        with torch.no_grad(), self._autocast():
            for batch in self._batches(Given(jpegs), batch_size):
                features = learner.model.encode_image(batch.to(self.device).image_XCHW)
                parts.append(embed_images(learner, features).float().cpu().numpy())
        return np.concatenate(parts)

    def embed_texts(self, texts: str | Sequence[str]) -> np.ndarray:
        """Unit vectors, float32: [E] of one text, [N, E] of several."""
        self.needs("retrieve")
        alone = isinstance(texts, str)
        listed = [text_of("texts", text) for text in ([texts] if alone else several(texts))]
        learner: Any = self._able.learner
        parts = [np.zeros((0, self.width), np.float32)]
        with torch.no_grad(), self._autocast():
            for some in in_chunks(listed, TEXTS_AT_ONCE):
                batch = self._of_texts(some).to(self.device)
                tokens_NT, lengths_N = batch.tokens_BKT[:, 0], batch.lengths_BK[:, 0]
                parts.append(embed_texts(learner, tokens_NT, lengths_N).float().cpu().numpy())
        found = np.concatenate(parts)
        return found[0] if alone else found

    # ---------------------------------------------------------------------------------------- within

    @contextlib.contextmanager
    def ready(self) -> Iterator[Model]:
        """Within it many calls share what each would prepare: weights laid out (float32) or converted (bf16) once."""
        if self._ready:
            yield self
            return
        prepare = laid_out_for_steps if self._precision is Precision.fp32 else converted_once
        with prepare(self._able.learner.model):
            self._ready = True
            try:
                yield self
            finally:
                self._ready = False

    def stored(self, picture: Picture) -> bytes:
        """The image in the form of the training store; UserError names it where it cannot be used."""
        return stored(picture, self._form)

    @property
    def form(self) -> Form:
        """How the training store kept its images."""
        return self._form

    def _batches(self, given: Given, batch_size: int) -> Iterator[Batch]:
        learner, config = self._able.learner, self._able.config
        columns = given.columns(self._able.tokenizer, config)
        numbers = np.arange(len(given))
        return eval_batches(
            given, columns, numbers, batch_size=batch_size, pixels=learner.pixels, workers=available_cores()
        )

    def _of_texts(self, texts: Sequence[str]) -> Batch:
        """A batch of texts without images, cut where training cut its captions."""
        config, tokenizer = self._able.config, self._able.tokenizer
        tokens = Tokenised(texts, tokenizer, config.tokenizer.max_tokens)
        numbers = np.arange(len(texts))
        return assemble(Given((), image_of=[0] * len(texts)), Columns(tokens), numbers, numbers[:, None], None, None)

    def _steps(self, many: bool) -> contextlib.AbstractContextManager[Any]:
        """Preparing takes the time of a word or two, so it is for several batches."""
        return self.ready() if many else contextlib.nullcontext()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return autocast(self.device, self._precision)

    def needs(self, kind: str) -> None:
        """UserError where it has not learned this task."""
        if (why := self._able.why_not(kind)) is not None:
            raise UserError(why)

    def _bar(self, pictures: Any, unit: str, progress: bool) -> tqdm:
        total = len(pictures) if hasattr(pictures, "__len__") else None
        return tqdm(total=total, unit=unit, disable=not progress)
