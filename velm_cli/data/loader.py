"""From a store to Batches, in an order that is a pure function of (seed, epoch).

Training has to continue where it stopped, on another number of processes or threads, bit for bit. So
nothing here remembers anything: batch n is computed from n. The order of an epoch and the texts that it draws are
functions of (seed, epoch), an image's crop of (seed, epoch, image).

Examples that share an image stand side by side in a batch, so that it is read and encoded once for all of them.

Images are read by threads: Pillow and numpy work outside Python's lock, the store is memory-mapped, and no
process has to be forked, fed, or saved from SIGTERM.

Suffixes: N examples of the split; the others are those of `batch.py`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from velm_cli.data.batch import Batch, Columns, Examples, assemble
from velm_cli.data.features import FeatureCache, Features
from velm_cli.data.order import AUGMENT, RUNS, VIEW, Share, bucket, draw_targets, random_of, runs_of, slots_of
from velm_cli.data.pixels import Pixels
from velm_cli.data.reading import (
    Images,
    Showing,
    by_itself,
    filled,
    read_augmented,
    reading_features,
    reading_plainly,
    showing_in,
    train_transform,
)
from velm_cli.data.store import Store
from velm_cli.errors import UserError
from velm_cli.schema import DataConfig


@dataclass(frozen=True)
class _Epoch:
    """What an epoch does: `batches` holds positions in the split, `drawn` numbers of targets or -1."""

    number: int
    batches: np.ndarray  # [batches, B]
    drawn: np.ndarray  # [N, K]


@dataclass(frozen=True)
class _Moment:
    """When an image is read, and who shows it in the global batch."""

    epoch: int
    showing: Showing


class TrainLoader:
    """Endless training batches of a split, for one of `world` processes.

    `batch_size` is that of a global batch, in examples. An epoch visits every example at most once and leaves out a
    random rest smaller than a batch; a split smaller than a batch is one batch. `pixels=None` reads no images; with
    `features` these are read instead, in each epoch from one of the views of an image. `limit` keeps the first
    examples of the split only, each with its first targets.

    Where every example has an image of its own, rank r gets the rows r::world of a global batch. Otherwise up to
    `data.examples_per_image` examples of an image stand side by side, and a rank gets rows side by side.
    Raises UserError when the split has no examples, no targets, or too few for the processes.
    """

    def __init__(
        self,
        store: Store,
        columns: Columns,
        data: DataConfig,
        *,
        batch_size: int,
        pixels: Pixels | None,
        seed: int,
        split: str = "train",
        limit: int = 0,
        features: Sequence[FeatureCache] = (),
        share: Share = Share(),  # noqa: B008, it cannot change
    ) -> None:
        self._store, self._columns, self._data, self._seed, self._share = store, columns, data, seed, share
        self._examples = of_first_images(store, split, limit)
        alone = store.one_image_each or not store.has_images
        if columns.talks is not None:  # of some nothing is learned: what the template refuses, or what is too long
            self._examples = self._examples[columns.talks.learnable(self._examples)]
        examples, noun = len(self._examples), "images" if alone else "examples"
        if examples == 0:
            raise UserError(f"the {split} split has no {noun} to train on")
        self._batch_size = share.batch_size(batch_size, examples, noun, f"the {split} split has {examples} {noun}")
        self._ranges = np.zeros((examples, 2), np.int64)
        self._slots = 0
        if columns.targets is not None:
            self._ranges = store.target_ranges(self._examples)
            if np.array_equal(self._ranges[:, 0], self._ranges[:, 1]):
                texts = "captions" if alone else "targets"
                raise UserError(f"the {split} split has no {texts} to train on")
            self._slots = slots_of(self._ranges, columns.per_example)
            if limit:  # to learn a few examples by heart, each must keep the same targets
                self._ranges[:, 1] = np.minimum(self._ranges[:, 1], self._ranges[:, 0] + self._slots)
        self._images_N = None if alone else _first_images(store, self._examples)
        pixels = pixels if store.has_images else None
        self._image_size = pixels.size if pixels else None
        self._features = features
        self._transform = train_transform(pixels or Pixels(1), data)
        self._epoch: _Epoch | None = None

    @property
    def batch_size(self) -> int:
        """Examples of a global batch: no more than there are."""
        return self._batch_size

    @property
    def captions_per_image(self) -> int:
        """K: targets drawn per example."""
        return self._slots

    @property
    def batches_per_epoch(self) -> int:
        """Global batches an epoch."""
        return len(self._examples) // self._batch_size

    def batches(self, start: int = 0) -> Generator[Batch, None, None]:
        """Batches number `start`, `start + 1`, ... since the beginning of training, without end."""
        return filled(self._planned(start), self._read_view if self._features else self._read_image, self._data.workers)

    def _planned(self, start: int) -> Iterator[tuple[_Moment, Batch]]:
        """(when, batch) with room for the images or features instead of these."""
        rows = (self._share.every if self._images_N is None else self._share.together)(self._batch_size)
        features = self._features[0] if self._features else None
        for number in count(start):
            epoch_number, within = divmod(number, self.batches_per_epoch)
            epoch = self._plan(epoch_number)
            together = epoch.batches[within]
            mine = together[rows]
            batch = assemble(
                self._store, self._columns, self._examples[mine], epoch.drawn[mine], self._image_size, features
            )
            yield _Moment(epoch_number, self._showing(together)), batch

    def _showing(self, together: np.ndarray) -> Showing:
        """Of the examples of a global batch, so that no number of ranks changes what is mirrored."""
        if self._images_N is None or not self._transform.flip or self._image_size is None or self._features:
            return by_itself
        return showing_in(self._store, self._examples[together])

    def _plan(self, number: int) -> _Epoch:
        """Order and targets of epoch `number`; the last one asked for is kept."""
        if self._epoch is None or self._epoch.number != number:
            random = partial(_random, self._seed, number)
            drawn = draw_targets(self._ranges, self._slots, random)
            longest = np.zeros(len(drawn), np.int64)
            if self._columns.targets is not None:
                words = np.diff(self._columns.targets.offsets)
                longest = np.where(drawn >= 0, words[drawn], 0).max(axis=1)
            if self._columns.source is not None:
                longest = longest + np.diff(self._columns.source.offsets)[self._examples]
            if self._columns.talks is not None:
                longest = longest + self._columns.talks.lengths(self._examples)
            runs = None
            if self._images_N is not None:
                runs = runs_of(self._images_N, random(RUNS, len(longest)), self._data.examples_per_image)
            batches = bucket(longest, self._batch_size, random, runs)
            self._epoch = _Epoch(number, batches, drawn)
        return self._epoch

    def _read_view(self, image: int, when: _Moment, out_SD: Tensor) -> None:
        view = 0
        if len(self._features) > 1:
            view = int(random_of(1, self._seed, when.epoch, VIEW, image)[0] % len(self._features))
        self._features[view].read_into(image, out_SD)

    def _read_image(self, image: int, when: _Moment, out_CHW: Tensor) -> None:
        name = (self._seed, when.epoch, AUGMENT, image)
        read_augmented(self._store, self._transform, image, when.showing(image), name, out_CHW)


class Evaluated(Examples, Images, Protocol):
    """What predictions are made of: a Store, or examples in memory."""

    @property
    def has_images(self) -> bool: ...

    def target_ranges(self, examples: np.ndarray) -> np.ndarray: ...


def eval_batches(
    store: Evaluated,
    columns: Columns,
    examples: Sequence[int] | np.ndarray,
    *,
    batch_size: int,
    pixels: Pixels | None,
    workers: int = 0,
    features: Features | None = None,
    share: Share = Share(),  # noqa: B008, it cannot change
) -> Iterator[Batch]:
    """Every one of `examples` exactly once, in that order, with its first targets.

    Of `world` processes each gets every `world`-th batch, from its `rank` on: batches are the same ones however
    many share them. `pixels=None` reads no images; with `features` these are read instead.
    """
    numbers = np.asarray(examples, np.int64)
    image_size = pixels.size if pixels and store.has_images else None
    first = np.zeros((len(numbers), 0), np.int64)
    if columns.targets is not None and len(numbers):
        ranges = store.target_ranges(numbers)
        first = ranges[:, :1] + np.arange(slots_of(ranges, columns.per_example))
        first[first >= ranges[:, 1:]] = -1

    def planned() -> Iterator[tuple[int, Batch]]:
        for start in range(share.rank * batch_size, len(numbers), share.world * batch_size):
            rows = slice(start, start + batch_size)
            yield 0, assemble(store, columns, numbers[rows], first[rows], image_size, features)

    read = reading_plainly(store, pixels or Pixels(1)) if features is None else reading_features(features)
    return filled(planned(), read, workers)


def image_batches(
    store: Store,
    images: Sequence[int] | np.ndarray,
    pixels: Pixels,
    *,
    batch_size: int,
    view: tuple[int, DataConfig] | None = None,
    workers: int = 0,
) -> Iterator[Batch]:
    """The images of these numbers in that order, without any example.

    As they are evaluated, or, with `view`, in that view of them as the options augment, the same in every run.
    """

    def planned() -> Iterator[tuple[int, Batch]]:
        tokens_BKT, lengths_BK = torch.zeros(0, 0, 0, dtype=torch.int64), torch.zeros(0, 0, dtype=torch.int64)
        for start in range(0, len(images), batch_size):
            numbers = [int(image) for image in images[start : start + batch_size]]
            shape = (len(numbers), 3, pixels.size, pixels.size)
            image_XCHW = torch.empty(shape, pin_memory=torch.cuda.is_available())
            yield 0, Batch.of(tokens_BKT, lengths_BK, images=numbers, image_XCHW=image_XCHW)

    if view is None:
        return filled(planned(), reading_plainly(store, pixels), workers)
    number, data = view
    transform = train_transform(pixels, data)
    # A view is kept for all examples that there are, so none of them may name a side.
    showing = showing_in(store, np.arange(len(store))) if transform.flip else by_itself

    def read(image: int, epoch: int, out_CHW: Tensor) -> None:
        read_augmented(store, transform, image, showing(image), (VIEW, number, image), out_CHW)

    return filled(planned(), read, workers)


def _random(seed: int, epoch: int, stream: int, count: int) -> np.ndarray:
    return random_of(count, seed, epoch, stream)


def of_first_images(store: Store, split: str, images: int) -> np.ndarray:
    """int64: the examples of a split that are about its first `images` images; 0 = all."""
    examples_N = store.split(split)
    if not images or store.one_image_each or not store.has_images:
        return examples_N[: images or None]
    images_N = _first_images(store, examples_N)
    different, first_X = np.unique(images_N, return_index=True)
    return examples_N[np.isin(images_N, different[np.argsort(first_X)[:images]])]


def _first_images(store: Store, examples: np.ndarray) -> np.ndarray:
    """int64 [N]: examples with the same number stand side by side. Their first image; without one, one of their own."""
    images_X, image_of_NI = store.images_of(examples)
    alone_N = -1 - np.arange(len(examples))
    if not image_of_NI.shape[1]:
        return alone_N
    first_N = image_of_NI[:, 0]
    alone_N[first_N >= 0] = images_X[first_N[first_N >= 0]]
    return alone_N
