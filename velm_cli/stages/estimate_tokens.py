"""What a training run reads and learns from: positions of images and texts, examples against parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from velm_cli.data.batch import Lengths
from velm_cli.learners.branching import positions_read
from velm_cli.learners.interface import Learner
from velm_cli.learners.writing import WritingLearner
from velm_cli.models.fusion.entering import Prefix
from velm_cli.schema import TrainRoot
from velm_cli.stages.image_tokens import image_positions
from velm_cli.stages.task_data import TaskData

SAMPLED = 16  # batches
COUNTED = 2_000  # conversations
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
    """Positions that a language model reads for a batch, with all images and texts in it; the mean of some batches."""

    branches: int  # each image's positions once, and no padding
    padded: int  # each text behind a copy of its image's positions, and as long as the longest of its batch
    longest: float  # tokens that are predicted of the longest target


def rows_of_batches(data: TaskData, *, positions: int, examples: int, images: int, texts: int, prompts: bool) -> Rows:
    """Of batches of the training texts in their order. `positions`: of an image.

    A batch has so many `examples`, with `texts` each, of so many `images`. `prompts`: their sources are read, too.
    """
    target_N = np.diff(data.texts.offsets) + 2  # BOS and EOS
    source_N = np.diff(data.sources.offsets) + 2 if prompts and data.sources is not None else None
    each = examples * texts
    shared_B = np.arange(examples) * images // examples if images < examples else None
    read = []
    for number in range(min(SAMPLED, -(-len(target_N) // each))):
        places = np.arange(number * each, (number + 1) * each) % len(target_N)
        target_BK = target_N[places].reshape(examples, texts)
        source_B = None if source_N is None else source_N[places[::texts] % len(source_N)]
        lengths = Lengths(target_BK, source_B, shared_B)
        read.append((*positions_read(lengths, positions, prompts=prompts), target_BK.max() - 1))
    branches, padded, longest = np.mean(read, axis=0)
    return Rows(round(branches), round(padded), float(longest))


def _talk_rows(config: TrainRoot, data: TaskData, positions: int) -> Iterator[tuple[str, str]]:
    """Of conversations, whose images stand among the words."""
    length_N = _talk_lengths(data, positions)
    if not len(length_N):
        return
    each = config.run.batch_size
    length_ZB = np.resize(length_N, (min(SAMPLED, -(-len(length_N) // each)), each))  # Z batches
    read, padded = length_ZB.sum(axis=1).mean(), each * length_ZB.max(axis=1).mean()
    yield "text reads", f"{read:,.0f} positions a batch, those of images among them, without padding"
    times = f"{padded / max(1, read):.1f} times as many"
    yield "", f"({padded:,.0f}, {times}, with each conversation as long as the longest of its batch)"


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
    """Labels and figures: what an image is to the text, and what is read of a batch where it stands before it.

    `images`: of a batch; `texts`: of an example.
    """
    model = learner.model
    if model.vision is None or not data.store.has_images:
        return
    positions = image_positions(model)
    side, tiles = model.image_size, config.vision.tiles
    cut = f", as a whole and in {tiles} x {tiles} tiles" if tiles > 1 else ""
    yield "image tokens", f"{positions:,} for an image of {side} x {side} pixels{cut}"
    if data.talks is not None:
        yield from _talk_rows(config, data, positions)
        return
    writes = isinstance(learner, WritingLearner) and texts and len(data.texts.offsets) > 1
    if not (writes and isinstance(model.fusion, Prefix)) or model.places is not None:
        return
    prompts = isinstance(learner, WritingLearner) and learner.prompts
    rows = rows_of_batches(
        data, positions=positions, examples=config.run.batch_size, images=images, texts=texts, prompts=prompts
    )
    if pads(learner):
        yield "text reads", f"{rows.padded:,} positions a batch: a copy of the image before each text, and padding"
    else:
        times = f"{rows.padded / max(1, rows.branches):.1f} times as many"
        yield "text reads", f"{rows.branches:,} positions a batch: each image once, and no padding"
        yield "", f"({rows.padded:,}, {times}, with a copy of the image before each text and padding)"


def pads(learner: Learner) -> bool:
    """Whether all texts of a batch are as long as the longest where they are learned from."""
    if isinstance(learner, WritingLearner) and learner.branches:
        return False
    return not learner.model.fusion.packs


def longest_of_batches(config: TrainRoot, data: TaskData, texts: int) -> int:
    """Tokens that are predicted of a batch's longest target."""
    if not texts or len(data.texts.offsets) < 2:
        return 0
    few = {"examples": config.run.batch_size, "images": config.run.batch_size}
    return round(rows_of_batches(data, positions=0, **few, texts=texts, prompts=False).longest)
