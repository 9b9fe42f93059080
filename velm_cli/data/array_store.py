"""The store of velm's own: image shards, flat arrays that are mapped into memory, tokens in a folder a tokenizer.

`manifest.json` comes last, so a store that has one is complete. Its `hash` names the content: the same examples with
the same pixels have the same hash, whatever folder or file they came from. Formats 1 and 2: see `store_arrays.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from velm_cli.data.arrays import map_array
from velm_cli.data.building import PLAN
from velm_cli.data.conversations import words_of
from velm_cli.data.manifest import preprocess_command, read_manifest
from velm_cli.data.shards import ShardReader, read_index
from velm_cli.data.store import Column, Ids, Texts
from velm_cli.data.store_arrays import STORE_FORMATS, arrays_of
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.data.tokens import Tokens, encoded_in, tokens_in
from velm_cli.errors import UserError
from velm_cli.files import NO_HANDLES, check_crc32, sha256
from velm_cli.schema import DatasetConfig, TokenizerConfig


class ArrayStore:
    """A `Store` (which says what its members are) whose examples all have numbers."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        """Map the arrays; `open` is the way in for everyone else."""
        self.path, self.manifest = path, manifest
        arrays = {name: map_array(path / f"{name}.npy") for name in arrays_of(manifest["format"])}
        self._targets = Texts(arrays["caption_text"], arrays["caption_offsets"])
        self._target_offsets = arrays["record_captions"]
        self._splits = arrays["record_splits"]
        self._image_locations = arrays["image_locations"]
        self._concept_ids, self._concept_offsets = arrays["concept_ids"], arrays["concept_offsets"]
        self._shards = ShardReader(path / "images", [shard.get("index") for shard in manifest["shards"]])
        self._sources = Texts(np.zeros(0, np.uint8), np.zeros(1, np.int64))
        self._images: tuple[np.ndarray, np.ndarray] | None = None  # numbers in a row, and offsets; None: format 1
        self._about: np.ndarray | None = None
        if manifest["format"] == 2:
            self._images = arrays["example_images"], arrays["example_image_offsets"]
            self._about = arrays["about"]
            if len(arrays["source_text"]):
                self._sources = Texts(arrays["source_text"], arrays["source_offsets"])

    @classmethod
    def open(cls, path: Path, dataset: DatasetConfig | None = None) -> ArrayStore:
        """The store at `path`; UserError with the command to run where there is no usable one.

        With `dataset` the command is exact; without it, what only the user knows stays in capitals.
        """
        manifest = read_manifest(path)
        command = preprocess_command(dataset) if dataset else f"velm preprocess dataset=KIND dataset.store={path}"
        if manifest is None:
            what = "is not finished" if (path / PLAN).exists() else "does not exist"
            raise UserError(f"the store {path} {what}; run: {command}")
        if "stream" in manifest:
            raise UserError(f"the store {path} is of shards that stay elsewhere (dataset=webdataset); run: {command}")
        if manifest["format"] not in STORE_FORMATS:
            raise UserError(
                f"the store {path} has format {manifest['format']}, this velm reads "
                f"{' and '.join(map(str, STORE_FORMATS))}; run: {command} fresh=true"
            )
        try:
            for shard in manifest["shards"]:
                if (path / "images" / shard["file"]).stat().st_size != shard["bytes"]:
                    raise ValueError(f"{shard['file']} has another size than when it was written")
            for name, expected in manifest.get("crc32_of", {}).items():  # an older velm's store has none
                check_crc32(path / name, expected)
            return cls(path, manifest)
        except PermissionError as error:  # nothing is wrong with what may not be read
            raise UserError(f"{error.filename}: {error.strerror}; make it readable") from error
        except (OSError, ValueError, EOFError) as error:
            if isinstance(error, OSError) and error.errno in NO_HANDLES:
                raise
            raise UserError(f"the store {path} is damaged ({error}); run: {command} fresh=true") from error

    def __reduce__(self):
        return ArrayStore.open, (self.path,)  # a copy in another process maps the files again

    @property
    def hash(self) -> str:
        return self.manifest["hash"]

    @property
    def counts(self) -> dict[str, int]:
        return {split: count["records"] for split, count in self.manifest["counts"]["splits"].items()}

    @property
    def has_images(self) -> bool:
        return self.manifest["options"]["images"]

    @property
    def image_size(self) -> int:
        return self.manifest["options"]["image_size"]

    @cached_property
    def concept_names(self) -> list[str]:
        return json.loads((self.path / "concepts.json").read_text(encoding="utf-8"))

    def __len__(self) -> int:
        return len(self._splits)

    @cached_property
    def ids(self) -> Sequence[int | str]:
        return Ids(self.path / "ids.json")

    def example_id(self, i: int) -> int | str:
        return self.ids[i]

    def split(self, name: str) -> np.ndarray:
        splits = self.manifest["splits"]
        if name not in splits:
            raise UserError(f"the store {self.path} has no split {name!r}; it has {', '.join(splits)}")
        return np.flatnonzero(self._splits == splits.index(name))

    # ------------------------------------------------------------------------------------ images

    @property
    def num_images(self) -> int:
        return len(self._image_locations)

    @cached_property
    def one_image_each(self) -> bool:
        if not self.has_images or self.num_images != len(self):
            return False
        if self._images is None:
            return True
        numbers, offsets = self._images
        everyone = np.arange(len(self) + 1)
        return np.array_equal(offsets, everyone) and np.array_equal(numbers, everyone[:-1])

    @cached_property
    def most_images(self) -> int:
        if self._images is None:
            return int(self.num_images > 0)
        return int(np.diff(self._images[1]).max(initial=0))

    @cached_property
    def _image_ids(self) -> Sequence[int | str]:
        return self.ids if self._images is None else Ids(self.path / "image_ids.json")

    def image_name(self, x: int) -> int | str:
        return self._image_ids[x]

    def image_bytes(self, x: int) -> bytes:
        assert self.has_images
        try:
            return self._shards.read(*self._image_locations[x].tolist())
        except (OSError, ValueError) as error:  # it was whole when the store was built, but disks decay
            if isinstance(error, OSError) and error.errno in NO_HANDLES:
                raise
            raise UserError(
                f"image {self.image_name(x)} of the store {self.path} cannot be read ({error}): "
                "build the store again with velm preprocess ... fresh=true"
            ) from error

    def images_of(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        examples = np.asarray(examples, np.int64)
        if self._images is None:
            counts = np.full(len(examples), int(self.num_images > 0))
            wanted = examples if self.num_images else examples[:0]
        else:
            numbers, offsets = self._images
            starts = offsets[examples]
            counts = offsets[examples + 1] - starts
            ends = np.cumsum(counts)
            wanted = numbers[np.repeat(starts - (ends - counts), counts) + np.arange(counts.sum())].astype(np.int64)
        distinct, first, rows = np.unique(wanted, return_index=True, return_inverse=True)
        order = np.argsort(first)  # of first use
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        image_of_BI = np.full((len(examples), int(counts.max(initial=0))), -1, np.int64)
        image_of_BI[np.arange(image_of_BI.shape[1]) < counts[:, None]] = place[rows.reshape(-1)]
        return distinct[order], image_of_BI

    def damage(self) -> Iterator[str | None]:
        for shard in self.manifest["shards"]:
            file = self.path / "images" / shard["file"]
            changed = f"{file.name} has changed since it was written" if sha256(file) != shard["sha256"] else None
            if changed is None:
                try:
                    read_index(file, shard.get("index"))
                except (OSError, ValueError, EOFError) as error:
                    changed = str(error)
            yield changed

    # ------------------------------------------------------------------------------------ texts

    @property
    def all_targets(self) -> Sequence[str]:
        return self._targets

    @property
    def all_sources(self) -> Sequence[str]:
        return self._sources

    def targets(self, i: int) -> list[str]:
        return self._targets.among(*self.target_range(i))

    def target_range(self, i: int) -> tuple[int, int]:
        return int(self._target_offsets[i]), int(self._target_offsets[i + 1])

    def target_ranges(self, examples: np.ndarray) -> np.ndarray:
        return np.stack([self._target_offsets[examples], self._target_offsets[examples + 1]], axis=1)

    def source(self, i: int) -> str | None:
        return self._sources[i] or None if len(self._sources) else None

    def about(self, i: int) -> dict[str, str]:
        if self._about is None:
            return {}
        values = zip(self._about_values.items(), self._about[i].tolist(), strict=True)
        return {key: known[number] for (key, known), number in values if number >= 0}

    @cached_property
    def _about_values(self) -> dict[str, list[str]]:
        return json.loads((self.path / "about.json").read_text(encoding="utf-8"))

    def tokens(self, config: TokenizerConfig, column: Column = "targets") -> Tokens:
        tokens = tokens_in(self.path / "tokens", self.hash, config, self._targets, self.training_texts())
        return tokens if column == "targets" else self.encode(tokens.tokenizer, config.max_source_tokens, column)

    def training_texts(self) -> Iterator[str]:
        splits = self.manifest["splits"]
        train = splits.index("train") if "train" in splits else -1
        target_splits = np.repeat(self._splits, np.diff(self._target_offsets))
        return chain(
            (self._targets[c] for c in np.flatnonzero(target_splits == train)),
            (words_of(self._sources[i]) for i in np.flatnonzero(self._splits == train) if len(self._sources)),
        )

    def encode(self, tokenizer: Tokenizer, max_tokens: int, column: Column = "targets") -> Tokens:
        texts = self._targets if column == "targets" else self._sources
        assert column == "targets" or len(texts), "no example has a source"
        return encoded_in(self.path / "tokens", self.hash, tokenizer, max_tokens, texts, column)

    def concepts(self, i: int) -> np.ndarray:
        return self._concept_ids[self._concept_offsets[i] : self._concept_offsets[i + 1]]
