"""The store: a preprocessed data set in one folder, which training maps into memory and never writes.

Images and examples are two tables. An image is stored once, however many examples name it; in captioning an example is
an image. Two kinds of store have one interface: of arrays and shards of velm's own (`array_store.py`), and of shards
that stay where they are (`stream_store.py`); `opening.py` knows which is which.
"""

from __future__ import annotations

import itertools
import json
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from velm_cli.data.manifest import preprocess_command as preprocess_command
from velm_cli.data.manifest import read_manifest as read_manifest
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.data.tokens import Tokens
from velm_cli.relocating import store_path as store_path  # where it lies, is for everybody to ask here
from velm_cli.schema import TokenizerConfig

Column = Literal["targets", "sources"]  # of texts: what is to be produced, and what goes in with the images


class Texts(Sequence[str]):
    """The texts of a column by number; nothing is decoded before it is asked for."""

    def __init__(self, text: np.ndarray, offsets: np.ndarray) -> None:
        self.text, self.offsets = text, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, c):  # int -> str; slices are of no use here
        return self.text[self.offsets[c] : self.offsets[c + 1]].tobytes().decode()

    def among(self, start: int, stop: int) -> list[str]:
        """Number start to stop - 1, which lie side by side: in less time than one by one."""
        ends = (self.offsets[start : stop + 1] - self.offsets[start]).tolist()
        text = self.text[self.offsets[start] : self.offsets[stop]].tobytes()
        return [text[begin:end].decode() for begin, end in itertools.pairwise(ends)]


class Ids(Sequence[int | str]):
    """The ids in a JSON file of one a line, by number. Of the lines' places only every 16th is held."""

    EVERY = 16

    def __init__(self, path: Path) -> None:
        lines, position, starts = 0, 0, []
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + position
                starts.append(ends[-lines % self.EVERY :: self.EVERY] + 1)  # id 0 follows the first line, which is [
                lines += len(ends)
                position += len(chunk)
            self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._starts = np.concatenate([*starts, [position]])
        self._count = lines - 2  # without [ and ]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i):  # int -> int | str; slices are of no use here
        if not 0 <= i < self._count:
            raise IndexError(i)
        block, line = divmod(i, self.EVERY)
        lines = self._text[self._starts[block] : self._starts[block + 1]].split(b"\n", line + 1)
        return json.loads(lines[line].rstrip(b","))


class Store(Protocol):
    """A complete store. Examples are numbered from 0 in the order of (split, id), images from 0, as are targets."""

    @property
    def path(self) -> Path: ...

    @property
    def manifest(self) -> dict[str, Any]: ...

    @property
    def hash(self) -> str:
        """sha256 of the content, hexadecimal."""

    @property
    def counts(self) -> dict[str, int]:
        """Number of examples in each split, zeros included (the manifest's `counts` say more)."""

    @property
    def has_images(self) -> bool:
        """False for a store of texts only."""

    @property
    def image_size(self) -> int:
        """Pixels of the shorter side of its images; of images that were smaller, fewer."""

    @property
    def concept_names(self) -> list[str]:
        """The concept words, the most frequent first; labels are indices into this list."""

    def __len__(self) -> int:
        """Number of examples that can be had by number; samples that stream are not among them."""

    @property
    def ids(self) -> Sequence[int | str]:
        """The id of every example, as result files carry it."""

    def example_id(self, i: int) -> int | str:
        """Id of example i."""

    def split(self, name: str) -> np.ndarray:
        """Numbers of the examples in split `name` (int64, rising); UserError if there is no such split."""

    # images

    @property
    def num_images(self) -> int:
        """Number of distinct images."""

    @property
    def one_image_each(self) -> bool:
        """Whether example i has image i and no other, as in captioning."""

    @property
    def most_images(self) -> int:
        """The most images that an example has."""

    def image_name(self, x: int) -> int | str:
        """The id that the data set gives image x."""

    def image_bytes(self, x: int) -> bytes:
        """JPEG of image x; UserError when it is no longer the one that was stored."""

    def images_of(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(int64 [X]: the distinct images of these examples in the order of first use; int64 [B, I]: for each example
        rows of the first, -1 where it has fewer than I, the most that any of these examples has)."""

    # texts

    @property
    def all_targets(self) -> Sequence[str]:
        """The targets by number, as `target_range` and Tokens count them."""

    @property
    def all_sources(self) -> Sequence[str]:
        """The source of every example, empty where it has none; no texts at all where no example has one."""

    def targets(self, i: int) -> list[str]:
        """Targets of example i: captions in the order of their annotation ids; answers."""

    def target_range(self, i: int) -> tuple[int, int]:
        """Example i has the targets number start to stop - 1 (of the store, and of its Tokens)."""

    def target_ranges(self, examples: np.ndarray) -> np.ndarray:
        """int64 [examples, 2]: the `target_range` of each."""

    def source(self, i: int) -> str | None:
        """The text that goes in with the images of example i; None without."""

    def about(self, i: int) -> dict[str, str]:
        """What scores of example i are split by (question_type, answer_type)."""

    def tokens(self, config: TokenizerConfig, column: Column = "targets") -> Tokens:
        """A column of its texts as `config` tokenises them, made on the first call and kept beside the store.

        A vocabulary is learned from the training examples only, of their targets and sources; targets end at
        `config.max_tokens`, sources at `config.max_source_tokens`. Source number i is that of example i.
        """

    def training_texts(self) -> Iterator[str]:
        """What a vocabulary is learned from: the training examples' targets, then their sources."""

    def encode(self, tokenizer: Tokenizer, max_tokens: int, column: Column = "targets") -> Tokens:
        """The same by a tokenizer that exists already (a checkpoint's); also kept beside the store."""

    def concepts(self, i: int) -> np.ndarray:
        """Labels of example i (uint16, rising): the concept words its targets contain."""

    def damage(self) -> Iterator[str | None]:
        """Read every byte of the images: for each shard a line about what has changed, or None.

        What else lies beside them was checked when the store was opened.
        """


def first_image(store: Store, example: int) -> int:
    """Number of the first image of an example; -1 where it has none."""
    images, _ = store.images_of(np.array([example]))
    return int(images[0]) if len(images) else -1
