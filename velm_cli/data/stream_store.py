"""What `velm preprocess dataset=webdataset` makes of shards that stay where they are.

Every shard is read once, its images are checked (decoded, at an eighth of their size) and nothing of them is kept but
five bytes a sample: what it is for, and a CRC-32. That makes the counts exact, so that training can share the
shards among any number of processes, find its place again after a kill, and notice a shard that has changed. Beside
this lie two ordinary stores: the captions that vocabulary and concepts are learned from, and the held-out images.

    stores/webdataset/manifest.json, plan.json, rejects.jsonl
                      scan/000000.json, 000000.npy   of each shard; a kill loses the shards in work and no others
                      captions/                      a store of captions only
                      held-out/                      a store of the images to validate and test on, if there are any
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from velm_cli.data.array_store import ArrayStore
from velm_cli.data.concepts import labels_of
from velm_cli.data.manifest import preprocess_command, read_manifest
from velm_cli.data.sources import list_shards
from velm_cli.data.store import Column
from velm_cli.data.stream_scan import SPLITS, first_change, scanned_rows
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.data.tokens import Tokens
from velm_cli.errors import UserError
from velm_cli.files import check_crc32
from velm_cli.schema import DatasetConfig, TokenizerConfig, WebDatasetConfig

STREAM_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard to train on: `train` samples, after the `first` ones, which are held out."""

    number: int
    url: str
    train: int
    first: int
    crc32: int


class StreamStore:
    """A `Store` whose training samples lie in shards elsewhere; its examples are the held-out images, if any."""

    def __init__(self, path: Path, manifest: dict[str, Any], dataset: DatasetConfig | None) -> None:
        """Maps the held-out images; `open` is the way in for everyone else."""
        self.path, self.manifest = path, manifest
        self._learning = ArrayStore.open(path / "captions")
        held_out = path / "held-out" if (path / "held-out").exists() else None
        self._held_out = ArrayStore.open(held_out) if held_out else None
        _refuse_other_parts(path, manifest, self._learning, self._held_out)
        self._texts = self._held_out or self._learning  # where none is held out, those that are learned from
        self.dataset = dataset if isinstance(dataset, WebDatasetConfig) else WebDatasetConfig(images=True)
        self.most_captions: int = manifest["stream"]["most_captions"]

    @classmethod
    def open(cls, path: Path, dataset: DatasetConfig | None = None) -> StreamStore:
        """The complete stream store at `path`; UserError with the command to run where it is not usable."""
        manifest = read_manifest(path)
        if manifest is None or "stream" not in manifest:
            what = "does not exist" if manifest is None else "is a store of another kind"
            raise UserError(f"{path} {what}; name another folder with dataset.store=...")
        if manifest["format"] != STREAM_FORMAT:
            raise UserError(f"the stream store {path} has format {manifest['format']}, this velm reads {STREAM_FORMAT}")
        try:
            for name, expected in manifest.get("crc32_of", {}).items():  # an older velm's store has none
                check_crc32(path / name, expected)
        except (OSError, ValueError) as error:
            raise UserError(f"the store {path} is damaged ({error}); preprocess again with fresh=true") from error
        return cls(path, manifest, dataset)

    def __reduce__(self):
        return StreamStore.open, (self.path, self.dataset)

    @property
    def hash(self) -> str:
        return self.manifest["hash"]

    @property
    def counts(self) -> dict[str, int]:
        """Number of samples in each split; those to train on are in `shards`."""
        return {split: count["records"] for split, count in self.manifest["counts"]["splits"].items()}

    @property
    def has_images(self) -> bool:
        return True

    @property
    def image_size(self) -> int:
        return self.manifest["options"]["image_size"]

    @property
    def concept_names(self) -> list[str]:
        return self._learning.concept_names

    @cached_property
    def concept_numbers(self) -> dict[str, int]:
        """The concept words with their labels."""
        return {name: label for label, name in enumerate(self.concept_names)}

    @cached_property
    def shards(self) -> list[Shard]:
        """The shards to train on, in order; their places are those of `dataset.urls`, if it is given now.

        UserError if that names another number of shards than the store was made from.
        """
        shards = [Shard(**shard) for shard in self.manifest["stream"]["shards"]]
        if self.dataset.urls is not None:
            urls = list_shards(self.dataset)
            if len(urls) != len(shards):
                raise UserError(
                    f"dataset.urls names {len(urls):,} shards, and the store {self.path} was made from "
                    f"{len(shards):,}: leave dataset.urls out, or run {preprocess_command(self.dataset)} fresh=true"
                )
            shards = [changed(shard, url=url) for shard, url in zip(shards, urls, strict=True)]
        return [shard for shard in shards if shard.train]

    def scanned(self, shard: Shard) -> np.ndarray:
        """What the scan found in a shard: a SCANNED row a sample, the `use` of those held out is val's."""
        path = self.path / "scan" / f"{shard.number:06d}.npy"
        try:
            rows = scanned_rows(path, shard.crc32)
        except (OSError, ValueError) as error:
            raise UserError(
                f"the store {self.path} is damaged ({path.name}: {error}); preprocess again with fresh=true"
            ) from error
        rows["use"][np.flatnonzero(rows["use"] == 0)[: shard.first]] = SPLITS.index("val")
        return rows

    def damage(self) -> Iterator[str | None]:
        """Read everything: the held-out images, and the shards to train on wherever they lie."""
        for store in filter(None, (self._learning, self._held_out)):
            yield from (line and f"{store.path.name}: {line}" for line in store.damage())
        for shard in self.shards:
            try:
                yield first_change(shard.url, self.dataset, self.scanned(shard))
            except UserError as error:
                yield str(error)

    # ------------------------------------------------------------------------------------ held-out examples

    def __len__(self) -> int:
        return len(self._held_out) if self._held_out else 0

    @property
    def ids(self) -> Sequence[int | str]:
        return self._held_out.ids if self._held_out else []

    def example_id(self, i: int) -> int | str:
        return self.ids[i]

    def split(self, name: str) -> np.ndarray:
        """As a `Store`'s; none for training, whose samples stream."""
        if name not in SPLITS or (name != "train" and self._held_out is not None):
            return self._texts.split(name)
        return np.zeros(0, np.int64)

    @property
    def num_images(self) -> int:
        return len(self)

    @property
    def one_image_each(self) -> bool:
        return True

    @property
    def most_images(self) -> int:
        return 1

    def image_name(self, x: int) -> int | str:
        return self.ids[x]

    def image_bytes(self, x: int) -> bytes:
        assert self._held_out is not None
        return self._held_out.image_bytes(x)

    def images_of(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._texts.images_of(examples)

    @property
    def all_targets(self) -> Sequence[str]:
        """As a `Store`'s; where none is held out, the captions that vocabulary and concepts are learned from."""
        return self._texts.all_targets

    @property
    def all_sources(self) -> Sequence[str]:
        return self._texts.all_sources

    def targets(self, i: int) -> list[str]:
        return self._texts.targets(i)

    def target_range(self, i: int) -> tuple[int, int]:
        return self._texts.target_range(i)

    def target_ranges(self, examples: np.ndarray) -> np.ndarray:
        return self._texts.target_ranges(examples)

    def source(self, i: int) -> str | None:
        return self._texts.source(i)

    def about(self, i: int) -> dict[str, str]:
        return self._texts.about(i)

    def concepts(self, i: int) -> np.ndarray:
        return labels_of(self.targets(i), self.concept_numbers)

    def tokens(self, config: TokenizerConfig, column: Column = "targets") -> Tokens:
        """As a `Store`'s: the texts of `all_targets`, by the tokenizer that `config` makes of the training captions."""
        limit = config.max_tokens if column == "targets" else config.max_source_tokens
        return self.encode(self._learning.tokens(config).tokenizer, limit, column)

    def training_texts(self) -> Iterator[str]:
        return self._learning.training_texts()

    def encode(self, tokenizer: Tokenizer, max_tokens: int, column: Column = "targets") -> Tokens:
        return self._texts.encode(tokenizer, max_tokens, column)


def _refuse_other_parts(
    path: Path, manifest: dict[str, Any], learning: ArrayStore, held_out: ArrayStore | None
) -> None:
    """UserError where the stores inside are not those that the manifest was written for: without the held-out images
    a training would go without validation, and say nothing."""
    held = sum(count["records"] for split, count in manifest["counts"]["splits"].items() if split != "train")
    problem = None
    if held and held_out is None:
        problem = f"held-out, with {held:,} images to validate and test on, is gone"
    elif "crc32_of" in manifest:  # an older velm's may have made the hash in another way
        parts = [learning.hash, *([held_out.hash] if held_out else [])]
        if content_hash(manifest["stream"]["shards"], parts) != manifest["hash"]:
            problem = "captions or held-out is of another store"
    if problem is not None:
        raise UserError(f"the store {path} is damaged ({problem}); preprocess again with fresh=true")


def content_hash(shards: list[dict[str, Any]], hashes: list[str]) -> str:
    """sha256 of what is trained on in each shard, and of the stores inside."""
    return hashlib.sha256(
        json.dumps([[(s["train"], s["first"], s["crc32"]) for s in shards], hashes]).encode()
    ).hexdigest()
