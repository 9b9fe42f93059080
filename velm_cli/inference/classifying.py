"""Labels of images by a trained learner: those that it has learned, or any, put in prompts (zero-shot)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch

from velm_cli.data.batch import Batch
from velm_cli.errors import UserError
from velm_cli.inference.abilities import Able
from velm_cli.inference.arguments import is_one, several, text_of, whole
from velm_cli.inference.examples import Given
from velm_cli.inference.loaded import Loaded
from velm_cli.inference.pictures import Picture
from velm_cli.schema import DecodeConfig
from velm_cli.tasks.classify import LABELS, ClassifyTask
from velm_cli.tasks.interface import Session


class Classifies:
    """What a `Model` does that has learned labels, or to compare images with captions."""

    def classify(
        self,
        images: Picture | Iterable[Picture],
        labels: Sequence[str] | None = None,
        *,
        prompts: Sequence[str] | None = None,
        top: int = 5,
        batch_size: int = 64,
    ) -> Any:
        """The `top` likeliest labels of each image with their probabilities, as a dict, the best first.

        Of a model that has learned labels (task=classify): its own, or some of them. Of one that compares images with
        captions any `labels`, in `prompts` such as "a photo of a {}", whose vectors are averaged (zero-shot).
        """
        model = cast(Loaded, self)
        model.needs("classify")
        if isinstance(labels, str) or isinstance(prompts, str):
            raise UserError("labels and prompts are lists of texts")
        for option, texts in (("labels", labels), ("prompts", prompts)):
            for each in texts or ():
                text_of(option, each)
        whole("top", top), whole("batch_size", batch_size)
        pictures: Iterable[Any] = [images] if is_one(images) else several(images)
        given = Given([model.stored(each) for each in pictures])
        with model._autocast():
            batches = model._batches(given, batch_size)
            found = dict(_classified(model._able, batches, labels, prompts, top, model.device))
        listed = [found[number] for number in given.ids]
        return listed[0] if is_one(images) else listed


def _classified(
    able: Able,
    batches: Iterable[Batch],
    labels: Sequence[str] | None,
    prompts: Sequence[str] | None,
    top: int,
    device: torch.device,
) -> Iterator[tuple[int | str, dict[str, float]]]:
    """(id, the likeliest labels with their probabilities, the best first) of all examples of the batches."""
    task = able.tasks["classify"]
    assert isinstance(task, ClassifyTask)
    wanted = None if labels is None else list(dict.fromkeys(labels))
    if task.prompted:
        if wanted is None or len(wanted) < 2:
            raise UserError("labels: this model compares images with texts; give at least two labels")
        options = task.options if prompts is None else replace(task.options, prompts=list(prompts))
        if without := [prompt for prompt in options.prompts if "{}" not in prompt]:
            raise UserError(f"prompts: {without[0]!r} has no {{}}, which becomes the label")
        task, spaces, places = ClassifyTask(options, prompted=True), {LABELS: wanted}, None
    else:
        if prompts is not None:
            raise UserError("prompts have no effect: this model has learned its labels; leave them out")
        spaces, places = {LABELS: list(able.spaces[LABELS])}, None
        if wanted is not None:
            places = _places(wanted, able.spaces[LABELS])
    for name, one in task.predict(able.learner, batches, spaces, able.tokenizer, DecodeConfig(), Session(device)):
        shares_C, names = one.shares_C, one.names
        if places is not None:
            shares_C, names = shares_C[places], wanted or ()
            if task.single:
                shares_C = shares_C / max(float(shares_C.sum()), float(np.finfo(np.float32).tiny))
        best = np.argsort(-shares_C, kind="stable")[:top].tolist()
        yield name, {names[place]: float(shares_C[place]) for place in best}


def _places(wanted: Sequence[str], known: Sequence[str]) -> list[int]:
    place = {label: number for number, label in enumerate(known)}
    if unknown := [label for label in wanted if label not in place]:
        raise UserError(
            f"labels: {unknown[0]!r} is not among the {len(known):,} that this model can tell apart; one that compares "
            "images with captions takes any"
        )
    return [place[label] for label in wanted]
