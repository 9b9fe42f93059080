"""What is kept from a model to see what it is worth: images that are grey or another example's, empty sources.

A store looks as it is but for what its examples show; scores compare with the store itself.

Suffixes: those of `batch.py`; G groups of examples with the same images.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from velm_cli.data.order import SHUFFLED, random_of
from velm_cli.data.store import Store
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.errors import UserError


class _Seen:
    """A store whose examples show other images than their own; all else is the store's."""

    one_image_each = False

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def __len__(self) -> int:
        return len(self._store)


class _Grey(_Seen):
    def images_of(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        _, image_of_BI = self._store.images_of(examples)
        return np.zeros(int((image_of_BI >= 0).any()), np.int64), np.minimum(image_of_BI, 0)


class _Shuffled(_Seen):
    def __init__(self, store: Store, shown: np.ndarray) -> None:
        """`shown`: int64, for each example the one whose images it shows."""
        super().__init__(store)
        self._shown = shown

    def images_of(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._store.images_of(self._shown[np.asarray(examples, np.int64)])


def grey(store: Store) -> Store:
    """The store with one image, number 0, in the place of each image that an example has.

    Which one that is has no meaning: `SameFeatures` stand for it.
    """
    return cast(Store, _Grey(store))


def shuffled(store: Store, split: str, seed: int) -> Store:
    """The store where every example of `split` shows the images of another one, whose images are others.

    Each example's images are shown once more, as long as no more than half of the examples have the same. The
    assignment depends on the split and the seed alone. Examples without images keep none. UserError where all have the
    same images.
    """
    examples = store.split(split)
    numbers_X, image_of_BI = store.images_of(examples)
    images_BI = np.sort(np.where(image_of_BI < 0, -1, np.append(numbers_X, -1)[image_of_BI]), axis=1)
    looks_B = (image_of_BI >= 0).any(axis=1)
    examples, images_BI = examples[looks_B], images_BI[looks_B]
    _, group_B = np.unique(images_BI, axis=0, return_inverse=True)
    group_B = group_B.reshape(-1)
    sizes_G = np.bincount(group_B)
    if len(sizes_G) < 2:
        raise UserError(f"eval.blind=shuffled: all examples of split={split} in {store.path} show the same image")
    turn_G = random_of(len(sizes_G), seed, SHUFFLED)
    order_B = np.lexsort((group_B, turn_G[group_B]))
    # Those with the same images stand side by side, and each looks past the longest such row: nobody meets its own.
    largest, count = int(sizes_G.max()), len(order_B)
    others_B = order_B[(np.arange(count) + largest) % count]
    if 2 * largest > count:  # too many have the same images for that: they take turns with all the others
        most = int(sizes_G.argmax())
        rest = order_B[group_B[order_B] != most]
        alike = group_B[order_B] == most
        others_B = np.where(alike, rest[np.arange(count) % len(rest)], order_B[alike][np.arange(count) % largest])
    shown = np.arange(len(store))
    shown[examples[order_B]] = examples[others_B]
    return cast(Store, _Shuffled(store, shown))


class SameFeatures:
    """The same features for every image, as a cache would give them."""

    def __init__(self, feature_SD: Tensor) -> None:
        self._feature_SD = feature_SD.to("cpu", torch.float32)

    def empty(self, images: int) -> Tensor:
        return torch.empty((images, *self._feature_SD.shape), pin_memory=torch.cuda.is_available())

    def read_into(self, image: int, out_SD: Tensor) -> None:
        out_SD.copy_(self._feature_SD)


class NoTexts:
    """`count` texts without a word each."""

    def __init__(self, tokenizer: Tokenizer, count: int) -> None:
        self.tokenizer = tokenizer
        self.ids, self.offsets = np.zeros(0, np.uint16), np.zeros(count + 1, np.int64)
