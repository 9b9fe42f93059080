"""What a training run reads and learns from: positions of images and texts, examples against parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from velm_cli.learners.interface import Learner
from velm_cli.models.fusion.entering import Prefix
from velm_cli.schema import TrainRoot
from velm_cli.stages.image_tokens import image_positions
from velm_cli.stages.task_data import TaskData

SAMPLED = 64  # batches
BY_HEART = 100  # trained parameters for each token to predict: a model that has more can learn the set by heart


class Taught(NamedTuple):
    """What there is to learn from."""

    examples: int
    targets: int  # to predict, in the training set
    noun: str  # of them: tokens, or labels of a judge
    epochs: float

    @staticmethod
    def of(config: TrainRoot, data: TaskData, length: float) -> Taught:
        """`length`: the mean number of tokens of a target, its end among them."""
        examples, run, train = data.store.counts["train"], config.run, data.store.split("train")
        passes = run.max_steps * run.accumulation * run.batch_size / max(1, run.overfit_images or examples)
        if data.task.options.judges:
            return Taught(examples, examples, "labels", passes)
        if data.talks is not None:
            found = data.talks.counts(train)
            return Taught(found["kept"], found["learned"], "tokens", passes)
        texts = examples  # of a stream, which has not counted them
        if len(train):
            ranges = data.store.target_ranges(train)
            texts = int((ranges[:, 1] - ranges[:, 0]).sum())
        return Taught(examples, round(texts * length), "tokens", passes)

    def notes(self, unit: str, trained: int) -> Iterator[str]:
        """A line where the training set is small for so many trained parameters."""
        if (each := trained / max(1, self.targets)) > BY_HEART:
            yield (
                f"note: {trained:,} trained parameters for {self.targets:,} {self.noun} of {self.examples:,} {unit}s, "
                f"{each:,.0f} for each: the model can learn them by heart. Take more data, freeze more "
                "(vision.freeze=all, text.freeze=all, text.lora_rank=8), or stop early (run.patience=3)"
            )


class Rows(NamedTuple):
    """Positions that a language model reads in a step of training, with all images and texts in it."""

    padded: int  # each text behind a copy of its image's positions, and as long as the longest of its batch
    packed: int  # each image's positions once, and no padding


def rows_of_a_step(lengths_T: np.ndarray, *, positions: int, examples: int, images: int, texts: int) -> Rows:
    """The mean over batches of the training texts in their order. `lengths`: tokens that are predicted of each.

    `positions`: of an image; a batch has so many `examples`, with `texts` each, of so many `images`.
    """
    each = max(1, examples * texts)
    batches = np.resize(lengths_T, (min(SAMPLED, -(-len(lengths_T) // each)), each))
    padded = each * (positions + batches.max(axis=1))
    packed = images * positions + batches.sum(axis=1)
    return Rows(round(padded.mean()), round(packed.mean()))


def _talk_lengths(data: TaskData, positions: int) -> np.ndarray:
    """int64: positions of each conversation that is learned from, with images of so many each."""
    assert data.talks is not None
    examples = data.store.split("train")
    examples = examples[data.talks.learnable(examples)]
    images_B = (data.store.images_of(examples)[1] >= 0).sum(axis=1)
    return data.talks.lengths(examples) + images_B * (positions - 1)


def image_rows(
    learner: Learner, config: TrainRoot, data: TaskData, *, images: int, texts: int
) -> Iterator[tuple[str, str]]:
    """Labels and figures: what an image is to the text, and what is read in a step where it stands before it.

    `images`: of a batch; `texts`: of an example.
    """
    model, store = learner.model, data.store
    if model.vision is None or not store.has_images:
        return
    positions = image_positions(model)
    side, tiles = model.image_size, config.vision.tiles
    cut = f", as a whole and in {tiles} x {tiles} tiles" if tiles > 1 else ""
    yield "image tokens", f"{positions:,} for an image of {side} x {side} pixels{cut}"
    lengths_T = np.diff(data.texts.offsets) + 1 if data.talks is None else _talk_lengths(data, positions)
    if not isinstance(model.fusion, Prefix) or not len(lengths_T):
        return
    if data.talks is not None:  # whose images stand among the words
        positions = images = 0
    rows = rows_of_a_step(lengths_T, positions=positions, examples=config.run.batch_size, images=images, texts=texts)
    times = f"{rows.padded / max(1, rows.packed):.1f} times as many"
    if data.talks is not None:
        yield "text reads", f"{rows.packed:,} positions a batch, those of images among them, without padding"
        yield "", f"({rows.padded:,}, {times}, with each conversation as long as the longest of its batch)"
    elif getattr(model.text, "takes_layouts", False):
        yield "text reads", f"{rows.packed:,} positions a batch: each image once, and no padding"
        yield "", f"({rows.padded:,}, {times}, with a copy of the image before each text and padding)"
    else:
        yield "text reads", f"{rows.padded:,} positions a batch: a copy of the image before each text, and padding"
