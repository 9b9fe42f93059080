"""From a store to Batches, in an order that is a pure function of (seed, epoch).

Training has to continue where it stopped, on another number of processes or threads, bit for bit. So
nothing here remembers anything: batch n is computed from n. Every random number comes from a counter-based
stream named by what it is for: the order of an epoch and the captions that it draws by (seed, epoch), an
image's crop by (seed, epoch, record). Raw 64-bit numbers are sorted rather than shuffled with numpy's
methods, whose results may change between releases.

Images are read by threads: Pillow and numpy work outside Python's lock, the store is memory-mapped, and no
process has to be forked, fed, or saved from SIGTERM.

Suffixes: B images, K captions an image, T tokens, C concepts; in image_BCHW, CHW is channels, height, width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from velm_cli.data.batch import Batch, assemble
from velm_cli.data.features import FeatureCache
from velm_cli.data.resizing import CENTRE_CROP, Resizing
from velm_cli.data.store import Store
from velm_cli.data.tokens import Tokens
from velm_cli.data.transforms import EvalTransform, TrainTransform, may_flip
from velm_cli.errors import UserError
from velm_cli.schema import DataConfig

TOGETHER = 8192  # images whose captions are drawn at once: sorting needs several times their memory
WINDOW = 50  # batches whose images are sorted by caption length together: the more, the less padding
CAPTIONS, ORDER, BATCHES, AUGMENT, VIEW = range(5)  # names of the random streams

From = TypeVar("From")
Read = Callable[[int, From, Tensor], object]  # record, epoch (or what else it comes from), its row of the batch to fill


@dataclass(frozen=True)
class _Epoch:
    """What an epoch does: `batches` holds positions in the split, `drawn` caption numbers or -1."""

    number: int
    batches: np.ndarray  # [batches, B]
    drawn: np.ndarray  # [images of the split, K]


class TrainLoader:
    """Endless training batches of a split, for one of `world` processes.

    `batch_size` is that of a global batch, of which rank r gets the rows r::world, all of them equally many when the
    shares must be `even`. An epoch visits every
    image at most once and leaves out a random rest smaller than a batch; a split smaller than a batch is
    one batch. `image_size=None` reads no images; with `features` these are read instead, in each epoch from one
    of the views of an image. `limit` keeps the first so many images of the split, each with its first captions
    only.
    Raises UserError when the split has no images, no captions, or too few for the processes.
    """

    def __init__(
        self,
        store: Store,
        tokens: Tokens,
        data: DataConfig,
        *,
        batch_size: int,
        image_size: int | None,
        mean: Sequence[float],
        std: Sequence[float],
        resizing: Resizing = CENTRE_CROP,
        num_concepts: int,
        seed: int,
        split: str = "train",
        limit: int = 0,
        features: Sequence[FeatureCache] = (),
        rank: int = 0,
        world: int = 1,
        even: bool = False,
    ) -> None:
        self._store, self._tokens, self._data = store, tokens, data
        self._num_concepts, self._seed, self._rank, self._world = num_concepts, seed, rank, world
        self._records = store.split(split)[: limit or None]
        images = len(self._records)
        if images == 0:
            raise UserError(f"the {split} split has no images to train on")
        self._batch_size = min(batch_size, images)
        if self._batch_size < world or (even and self._batch_size % world):
            how = "shared evenly" if even else "shared"
            raise UserError(
                f"batches of {self._batch_size} images cannot be {how} by {world} processes: "
                f"change run.batch_size={batch_size} or the number of processes (the {split} split has {images} images)"
            )
        self._ranges = store.target_ranges(self._records)
        if np.array_equal(self._ranges[:, 0], self._ranges[:, 1]):
            raise UserError(f"the {split} split has no captions to train on")
        self._captions_per_image = _slots(self._ranges, data.captions_per_image)
        if limit:  # to learn a few images by heart, each must keep the same captions
            self._ranges[:, 1] = np.minimum(self._ranges[:, 1], self._ranges[:, 0] + self._captions_per_image)
        self._image_size = image_size if store.has_images else None
        self._features = features
        self._transform = TrainTransform(
            self._image_size or 1, mean, std, data.crop_scale, data.flip, data.colour_jitter, resizing
        )
        self._epoch: _Epoch | None = None

    @property
    def batch_size(self) -> int:
        """Images of a global batch: no more than there are."""
        return self._batch_size

    @property
    def captions_per_image(self) -> int:
        """K: captions drawn an image."""
        return self._captions_per_image

    @property
    def batches_per_epoch(self) -> int:
        """Global batches an epoch."""
        return len(self._records) // self._batch_size

    def batches(self, start: int = 0) -> Generator[Batch, None, None]:
        """Batches number `start`, `start + 1`, ... since the beginning of training, without end."""
        return filled(self._planned(start), self._read_view if self._features else self._read_image, self._data.workers)

    def _planned(self, start: int) -> Iterator[tuple[int, Batch]]:
        """(epoch, batch) with room for the images or features instead of these."""
        for number in count(start):
            epoch_number, within = divmod(number, self.batches_per_epoch)
            epoch = self._plan(epoch_number)
            mine = epoch.batches[within, self._rank :: self._world]
            yield (
                epoch_number,
                assemble(
                    self._store,
                    self._tokens,
                    self._records[mine],
                    epoch.drawn[mine],
                    self._num_concepts,
                    self._image_size,
                    self._features[0] if self._features else None,
                ),
            )

    def _plan(self, number: int) -> _Epoch:
        """Order and captions of epoch `number`; the last one asked for is kept."""
        if self._epoch is None or self._epoch.number != number:
            random = partial(_random, self._seed, number)
            drawn = _draw_captions(self._ranges, self._captions_per_image, random)
            words = np.diff(self._tokens.offsets)
            longest = np.where(drawn >= 0, words[drawn], 0).max(axis=1)
            batches = _bucket(longest, self._batch_size, random)
            self._epoch = _Epoch(number, batches, drawn)
        return self._epoch

    def _read_view(self, record: int, epoch: int, out_SD: Tensor) -> None:
        view = 0
        if len(self._features) > 1:
            seeds = np.random.SeedSequence([self._seed, epoch, VIEW, record])
            view = int(np.random.Philox(seeds).random_raw() % len(self._features))
        self._features[view].read_into(record, out_SD)

    def _read_image(self, record: int, epoch: int, out_CHW: Tensor) -> None:
        _read_augmented(self._store, self._transform, record, [self._seed, epoch, AUGMENT, record], out_CHW)


def eval_batches(
    store: Store,
    tokens: Tokens | None,
    indices: Sequence[int] | np.ndarray,
    *,
    batch_size: int,
    image_size: int | None,
    mean: Sequence[float],
    std: Sequence[float],
    resizing: Resizing = CENTRE_CROP,
    num_concepts: int = 0,
    captions_per_image: int = 0,
    workers: int = 0,
    features: FeatureCache | None = None,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch]:
    """Every record of `indices` exactly once, in that order, with its first captions.

    Of `world` processes each gets every `world`-th batch, from its `rank` on: batches are the same ones however
    many share them.

    Without `tokens` (to describe images) batches have K = T = 0. `image_size=None` reads no images; with
    `features` these are read instead.
    """
    records = np.asarray(indices, np.int64)
    image_size = image_size if store.has_images else None
    first = np.zeros((len(records), 0), np.int64)
    if tokens is not None and len(records):
        ranges = store.target_ranges(records)
        first = ranges[:, :1] + np.arange(_slots(ranges, captions_per_image))
        first[first >= ranges[:, 1:]] = -1

    def planned() -> Iterator[tuple[int, Batch]]:
        for start in range(rank * batch_size, len(records), world * batch_size):
            rows = slice(start, start + batch_size)
            yield 0, assemble(store, tokens, records[rows], first[rows], num_concepts, image_size, features)

    def read_image(record: int, epoch: int, out_CHW: Tensor) -> None:
        _read_image(store, record, partial(transform, out_CHW=out_CHW.numpy()))

    transform = EvalTransform(image_size or 1, mean, std, resizing)
    return filled(planned(), read_image if features is None else _read_features(features), workers)


def view_batches(
    store: Store, records: np.ndarray, transform: TrainTransform, view: int, *, batch_size: int, workers: int = 0
) -> Iterator[Batch]:
    """The images of `records` as `transform` shows them in their view number `view`, the same in every run."""

    def planned() -> Iterator[tuple[int, Batch]]:
        for start in range(0, len(records), batch_size):
            rows = np.asarray(records[start : start + batch_size], np.int64)
            none = np.zeros((len(rows), 0), np.int64)
            yield 0, assemble(store, None, rows, none, 0, transform.image_size, None)

    def read(record: int, epoch: int, out_CHW: Tensor) -> None:
        _read_augmented(store, transform, record, [VIEW, view, record], out_CHW)

    return filled(planned(), read, workers)


# ---------------------------------------------------------------------------------------- order


def _random(seed: int, epoch: int, stream: int, count: int) -> np.ndarray:
    """`count` uint64 of the stream; the i-th depends on nothing but these names and i."""
    return np.random.Philox(np.random.SeedSequence([seed, epoch, stream])).random_raw(count)


def _slots(ranges: np.ndarray, captions_per_image: int) -> int:
    """K: as many slots as asked for, but no more than some image can fill."""
    return max(1, min(captions_per_image, int((ranges[:, 1] - ranges[:, 0]).max())))


def _draw_captions(ranges: np.ndarray, slots: int, random: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """int64 [records, slots]: K captions of each record in random order, -1 where it has no more.

    Each caption of the store has a random number in each epoch; a record's slots are its smallest ones.
    """
    keys = random(CAPTIONS, int(ranges[:, 1].max(initial=0)))
    drawn = np.full((len(ranges), slots), -1, np.int64)
    for start in range(0, len(ranges), TOGETHER):
        rows = slice(start, start + TOGETHER)
        counts = ranges[rows, 1] - ranges[rows, 0]
        owner = np.repeat(np.arange(len(counts)), counts)
        rank = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        numbers = np.repeat(ranges[rows, 0], counts) + rank
        numbers = numbers[np.lexsort((keys[numbers], owner))]
        kept = rank < slots
        drawn[rows][owner[kept], rank[kept]] = numbers[kept]
    return drawn


def _bucket(lengths: np.ndarray, batch_size: int, random: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """int64 [batches, batch_size]: a random order in which a batch holds images of like `lengths`."""
    batches = len(lengths) // batch_size
    order = np.argsort(random(ORDER, len(lengths)), kind="stable")[: batches * batch_size]
    window = WINDOW * batch_size
    parts = [order[start : start + window] for start in range(0, len(order), window)]
    order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
    return order.reshape(batches, batch_size)[np.argsort(random(BATCHES, batches), kind="stable")]


# ---------------------------------------------------------------------------------------- content


def _read_image(store: Store, record: int, transform: Callable[[bytes], Tensor]) -> None:
    try:
        transform(store.image_bytes(record))
    except OSError as error:  # it was checked when the store was built, but disks decay
        raise UserError(
            f"image {store.example_id(record)} of the store cannot be read ({error}): "
            "build the store again with velm preprocess ... fresh=true"
        ) from error


def _read_augmented(
    store: Store, transform: TrainTransform, record: int, seeds: Sequence[int], out_CHW: Tensor
) -> None:
    draw = partial(
        transform,
        generator=np.random.Generator(np.random.Philox(np.random.SeedSequence(seeds))),
        may_flip=transform.flip and may_flip(store.targets(record)),
        out_CHW=out_CHW.numpy(),
    )
    _read_image(store, record, draw)


def _read_features(features: FeatureCache) -> Read[int]:
    return lambda record, epoch, out_SD: features.read_into(record, out_SD)


def filled(planned: Iterable[tuple[From, Batch]], read: Read[From], workers: int) -> Generator[Batch, None, None]:
    """The batches of (epoch, batch) pairs in order, images or features read by `workers` threads ahead of use.

    0 workers read each batch when it is asked for. Closing the iterator ends the threads.
    """

    def jobs(epoch: From, batch: Batch) -> Iterator[tuple[int, From, Tensor]]:
        if batch.visual is not None:
            for record, row in zip(batch.examples, batch.visual, strict=True):
                yield record, epoch, row

    if workers == 0:
        for epoch, batch in planned:
            for job in jobs(epoch, batch):
                read(*job)
            yield batch
        return

    # Each thread works alone: how many others torch may start is a setting of the thread that calls it.
    pool = ThreadPoolExecutor(
        workers, thread_name_prefix="velm-images", initializer=torch.set_num_threads, initargs=(1,)
    )
    waiting: deque = deque()  # (batch, its futures)
    try:
        for epoch, batch in planned:
            waiting.append((batch, [pool.submit(read, *job) for job in jobs(epoch, batch)]))
            if len(waiting) > max(2, 2 * workers // len(batch.examples)):
                yield _finished(*waiting.popleft())
        while waiting:
            yield _finished(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _finished(batch: Batch, reads: list) -> Batch:
    for read in reads:
        read.result()  # raises what the thread raised
    return batch
