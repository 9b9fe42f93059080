"""Pixels and features into batches that were planned: by threads, ahead of use, each image by itself.

An image's crop depends on nothing but its name, and whether it may be mirrored on what its examples say.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from velm_cli.data.batch import Batch
from velm_cli.data.features import Features
from velm_cli.data.order import generator_of
from velm_cli.data.pixels import Pixels
from velm_cli.data.store import Store
from velm_cli.data.transforms import EvalTransform, TrainTransform, may_flip
from velm_cli.errors import UserError
from velm_cli.schema import DataConfig

From = TypeVar("From")
Read = Callable[[int, From, Tensor], object]  # image, epoch (or what else it comes from), its row of the batch to fill


class Images(Protocol):
    """What there is to read: those of a Store, or images in memory."""

    def image_name(self, x: int) -> int | str: ...

    def image_bytes(self, x: int) -> bytes: ...


Showing = Callable[[int], Sequence[int]]  # image -> the examples that show it


def train_transform(pixels: Pixels, data: DataConfig) -> TrainTransform:
    """How images are augmented for training."""
    size, mean, std, resizing = pixels
    return TrainTransform(size, mean, std, data.crop_scale, data.flip, data.colour_jitter, resizing)


def by_itself(image: int) -> Sequence[int]:
    return (image,)


def showing_in(store: Store, examples: np.ndarray) -> Showing:
    """Which of `examples` show an image."""
    if store.one_image_each:
        return by_itself
    images_X, image_of_BI = store.images_of(examples)
    shown: dict[int, list[int]] = {image: [] for image in images_X.tolist()}
    names = images_X.tolist()
    for row, column in np.argwhere(image_of_BI >= 0).tolist():
        shown[names[image_of_BI[row, column]]].append(int(examples[row]))
    return lambda image: shown.get(image, ())


def _texts(store: Store, examples: Sequence[int]) -> list[str]:
    """All that is said of what these examples show."""
    texts: list[str] = []
    for example in examples:
        texts += store.targets(example)
        if (source := store.source(example)) is not None:
            texts.append(source)
    return texts


def _read_image(store: Images, image: int, transform: Callable[[bytes], Tensor]) -> None:
    try:
        transform(store.image_bytes(image))
    except OSError as error:  # it was checked when the store was built, but disks decay
        raise UserError(
            f"image {store.image_name(image)} of the store cannot be read ({error}): "
            "build the store again with velm preprocess ... fresh=true"
        ) from error


def read_augmented(
    store: Store, transform: TrainTransform, image: int, examples: Sequence[int], name: tuple[int, ...], out_CHW: Tensor
) -> None:
    draw = partial(
        transform,
        generator=generator_of(*name),
        may_flip=transform.flip and may_flip(_texts(store, examples)),
        out_CHW=out_CHW.numpy(),
    )
    _read_image(store, image, draw)


def reading_plainly(store: Images, pixels: Pixels) -> Read[int]:
    transform = EvalTransform(*pixels)

    def read(image: int, epoch: int, out_CHW: Tensor) -> None:
        _read_image(store, image, partial(transform, out_CHW=out_CHW.numpy()))

    return read


def reading_features(features: Features) -> Read[int]:
    return lambda image, epoch, out_SD: features.read_into(image, out_SD)


def filled(planned: Iterable[tuple[From, Batch]], read: Read[From], workers: int) -> Generator[Batch, None, None]:
    """The batches of (when, batch) pairs in order, images or features read by `workers` threads ahead of use.

    0 workers read each batch when it is asked for. Closing the iterator ends the threads.
    """

    def jobs(when: From, batch: Batch) -> Iterator[tuple[int, From, Tensor]]:
        if batch.visual is not None:
            for image, row in zip(batch.images, batch.visual, strict=True):
                yield image, when, row

    if workers == 0:
        for when, batch in planned:
            for job in jobs(when, batch):
                read(*job)
            yield batch
        return

    # Each thread works alone: how many others torch may start is a setting of the thread that calls it.
    pool = ThreadPoolExecutor(
        workers, thread_name_prefix="velm-images", initializer=torch.set_num_threads, initargs=(1,)
    )
    waiting: deque = deque()  # (batch, its futures)
    try:
        for when, batch in planned:
            waiting.append((batch, [pool.submit(read, *job) for job in jobs(when, batch)]))
            if len(waiting) > max(2, 2 * workers // max(1, len(batch.images))):
                yield _finished(*waiting.popleft())
        while waiting:
            yield _finished(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _finished(batch: Batch, reads: list) -> Batch:
    for read in reads:
        read.result()  # raises what the thread raised
    return batch
