"""A model of transformers that velm did not train, for `velm caption` and `velm answer` (`checkpoint=hf:FOLDER`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from velm_cli import configs
from velm_cli.data.images import read_rgb
from velm_cli.engine.device import PRODUCTS, drawing_from, pick_precision
from velm_cli.errors import UserError
from velm_cli.inference.arguments import in_chunks
from velm_cli.inference.pictures import Form
from velm_cli.models.hf.opening import find, load
from velm_cli.models.hf.prompts import asking
from velm_cli.models.hf.writing import Refused, Shown, Writer, not_theirs
from velm_cli.schema import DatasetConfig, DecodeConfig, Precision

LARGEST_SIDE = 1 << 16  # pixels of a shorter side: none is scaled, which is left to the model's processor
QUALITY = 95


class ForeignModel:
    """What `velm caption` and `velm answer` ask of a `Model`, by a model's own processor and `generate`."""

    answers_by = "vqa"  # the task by which it answers questions

    def __init__(self, checkpoint: str, device: torch.device, precision: Precision) -> None:
        """UserError where the folder cannot be used."""
        name = configs.foreign_model(checkpoint)
        assert name is not None
        self._found = find(name)
        self._precision = pick_precision(precision, device)
        self._device = device
        self._model: Any = None

    @property
    def form(self) -> Form:
        """Images as they are, upright and in RGB."""
        return Form(LARGEST_SIDE, QUALITY, DatasetConfig().max_pixels, as_it_is=True)

    @property
    def sha256(self) -> str:
        return self._found.digest()

    def __repr__(self) -> str:
        return f"<{self._found.maker.__name__} of {self._found.folder}>"

    def needs(self, kind: str) -> None:
        """UserError where it cannot do this task."""
        asking(self._found, kind, "")

    @contextlib.contextmanager
    def ready(self) -> Iterator[ForeignModel]:
        """Within it the model is loaded."""
        self._model = self._model or load(self._found, self._device, PRODUCTS[self._precision])
        yield self

    def captions_of(
        self, jpegs: Sequence[bytes], how: DecodeConfig, *, seed: int = 0, prompt: str = ""
    ) -> list[str | Refused]:
        """A caption of each image, or why the processor could not take it. `prompt`: what the model is asked."""
        return self._written("caption", prompt, [Shown([read_rgb(jpeg)]) for jpeg in jpegs], how, seed)

    def answers_of(
        self,
        jpegs: Sequence[bytes],
        questions: Sequence[str],
        image_of: Sequence[int],
        how: DecodeConfig,
        *,
        choices: Sequence[str] | None = None,
        probabilities: int = 0,
    ) -> list[str | Refused]:
        """The answer to each question; question i is about image `image_of[i]`."""
        if choices or probabilities:
            raise UserError(
                f"choices= and probabilities= are for runs of velm: {self._found.refers} writes its answers"
            )
        images = [read_rgb(jpeg) for jpeg in jpegs]
        shown = [Shown([images[image]], text) for image, text in zip(image_of, questions, strict=True)]
        return self._written("vqa", "", shown, how, 0)

    def _written(
        self, task: str, prompt: str, shown: Sequence[Shown], how: DecodeConfig, seed: int
    ) -> list[str | Refused]:
        assert self._model is not None, "within `ready`"
        for line in not_theirs(how):
            raise UserError(line)
        writer = Writer(self._found, self._model, asking(self._found, task, prompt), how)
        with drawing_from(seed, self._device):
            return [text for some in in_chunks(shown, how.batch_size) for text in writer.write(some)]
