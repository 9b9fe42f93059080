"""Several stores as one, where only their training texts matter: what vocabularies, concepts and answers come from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np

from velm_cli.data.concepts import HasConcepts
from velm_cli.data.store import Store
from velm_cli.errors import UserError


class Together:
    """The stores of a mixture's parts, by the parts' names; a store of several parts counts once."""

    def __init__(self, stores: Mapping[str, Store]) -> None:
        self.stores = dict(stores)
        self._different = list({store.hash: store for store in stores.values()}.values())
        self._train = [store.split("train") for store in self._different]
        self._starts = np.cumsum([0, *map(len, self._train)])

    @property
    def path(self) -> Path:
        """How lines call it; nothing lies there."""
        return Path("+".join(store.path.name for store in self._different))

    @cached_property
    def hash(self) -> str:
        """sha256 of the parts' names and contents, hexadecimal."""
        content = "\n".join(f"{name} {store.hash}" for name, store in self.stores.items())
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def has_images(self) -> bool:
        return any(store.has_images for store in self._different)

    @cached_property
    def concept_names(self) -> list[str]:
        """Those of all stores, each once: by turns, so that the most frequent of each come first."""
        lists = [store.concept_names for store in self._different]
        return list(dict.fromkeys(name for row in zip_longest(*lists) for name in row if name is not None))

    def training_texts(self) -> Iterator[str]:
        return chain.from_iterable(store.training_texts() for store in self._different)

    def split(self, name: str) -> np.ndarray:
        """The training examples, numbered from 0."""
        if name != "train":
            raise UserError("only the training examples of a mixture are known together")
        return np.arange(self._starts[-1])

    def targets(self, i: int) -> list[str]:
        which = int(np.searchsorted(self._starts, i, side="right")) - 1
        return self._different[which].targets(int(self._train[which][i - self._starts[which]]))


class RenamedConcepts:
    """The concepts of a store, as labels by another list of words that has all of its own."""

    def __init__(self, store: HasConcepts, own: Sequence[str], names: Sequence[str]) -> None:
        number = {name: label for label, name in enumerate(names)}
        self._store, self._label = store, np.array([number[name] for name in own], np.uint16)

    def concepts(self, i: int) -> np.ndarray:
        return np.sort(self._label[self._store.concepts(i)])
