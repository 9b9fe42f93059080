"""The store: a preprocessed data set in one folder, which training maps into memory and never writes.

Images lie in tar shards (`shards.py`), captions and labels in flat arrays, tokens in a folder a tokenizer
(`tokens.py`). `manifest.json` comes last, so a store that has one is complete. Its `hash` names the
content: the same records with the same pixels have the same hash, whatever folder or file they came from.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from velm_cli.data.arrays import map_array
from velm_cli.data.building import (
    ARRAYS,
    MANIFEST,
    PLAN,
    STORE_FORMAT,
)
from velm_cli.data.shards import ShardReader, read_index
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.data.tokens import Tokens, encoded_in, tokens_in
from velm_cli.errors import UserError
from velm_cli.files import NO_HANDLES, SEAL, check_crc32, sha256, unsealed
from velm_cli.relocating import store_path as store_path  # where it lies, is for everybody to ask here
from velm_cli.schema import (
    KINDS,
    DatasetConfig,
    FlickrConfig,
    PreprocessConfig,
    TokenizerConfig,
)


def preprocess_command(dataset: DatasetConfig, preprocess: PreprocessConfig | None = None) -> str:
    """The command line that builds the store of `dataset`: every option that is not the default."""
    default = KINDS["dataset"][dataset.kind]()
    choice = dataset.kind
    if isinstance(dataset, FlickrConfig):  # the one kind with two files in conf/dataset
        choice = default.release = dataset.release
    words = [f"velm preprocess dataset={choice}"]
    for name in (option.name for option in fields(dataset)):
        value = getattr(dataset, name)
        if value != getattr(default, name):
            text = value.name if isinstance(value, Enum) else str(value)
            plain = re.fullmatch(r"[\w./:+-]+", text)
            words.append(f"dataset.{name}={text}" if plain else f"""'dataset.{name}="{text}"'""")
    for option in fields(preprocess) if preprocess else ():
        if option.name != "part" and (value := getattr(preprocess, option.name)) != option.default:
            words.append(f"preprocess.{option.name}={value}")
    return " ".join(words)


class Captions(Sequence[str]):
    """The captions of a store by number; nothing is decoded before it is asked for."""

    def __init__(self, text: np.ndarray, offsets: np.ndarray) -> None:
        self.text, self.offsets = text, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, c):  # int -> str; slices are of no use here
        return self.text[self.offsets[c] : self.offsets[c + 1]].tobytes().decode()


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


class Store:
    """A complete store. Record numbers run from 0 in the order of (split, image id)."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        """Map the arrays; `Store.open` is the way in for everyone else."""
        self.path = path
        self.manifest = manifest
        arrays = {name: map_array(path / f"{name}.npy") for name in ARRAYS}
        self._captions = Captions(arrays["caption_text"], arrays["caption_offsets"])
        self._record_captions = arrays["record_captions"]
        self._record_splits = arrays["record_splits"]
        self._image_locations = arrays["image_locations"]
        self._concept_ids, self._concept_offsets = arrays["concept_ids"], arrays["concept_offsets"]
        self._shards = ShardReader(path / "images", [shard.get("index") for shard in manifest["shards"]])

    @classmethod
    def open(cls, path: Path, dataset: DatasetConfig | None = None) -> Store:
        """The store at `path`; UserError with the command to run where there is no usable one.

        With `dataset` the command is exact; without it, what only the user knows stays in capitals.
        """
        manifest = read_manifest(path)
        command = preprocess_command(dataset) if dataset else f"velm preprocess dataset=KIND dataset.store={path}"
        if manifest is None:
            what = "is not finished" if (path / PLAN).exists() else "does not exist"
            raise UserError(f"the store {path} {what}; run: {command}")
        if "stream" in manifest:
            from velm_cli.data.stream_store import open_stream  # which builds on this module

            return open_stream(path, manifest, dataset)
        if manifest["format"] != STORE_FORMAT:
            raise UserError(
                f"the store {path} has format {manifest['format']}, this velm reads {STORE_FORMAT}; "
                f"run: {command} fresh=true"
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
        return Store.open, (self.path,)  # a copy in another process maps the files again

    @property
    def hash(self) -> str:
        """sha256 of the content, hexadecimal."""
        return self.manifest["hash"]

    @property
    def counts(self) -> dict[str, int]:
        """Number of records in each split, zeros included (the manifest's `counts` say more)."""
        return {split: count["records"] for split, count in self.manifest["counts"]["splits"].items()}

    @property
    def has_images(self) -> bool:
        """False for a store of captions only."""
        return self.manifest["options"]["images"]

    @property
    def image_size(self) -> int:
        """Pixels of the shorter side of its images; of images that were smaller, fewer."""
        return self.manifest["options"]["image_size"]

    @property
    def concept_names(self) -> list[str]:
        """The concept words, the most frequent first; labels are indices into this list."""
        return self._concept_names

    @cached_property
    def _concept_names(self) -> list[str]:
        return json.loads((self.path / "concepts.json").read_text(encoding="utf-8"))

    @cached_property
    def ids(self) -> Sequence[int | str]:
        """The image id of every record, as result files carry it."""
        return Ids(self.path / "ids.json")

    def __len__(self) -> int:
        return len(self._record_splits)

    def split(self, name: str) -> np.ndarray:
        """Numbers of the records in split `name` (int64, rising); UserError if there is no such split."""
        splits = self.manifest["splits"]
        if name not in splits:
            raise UserError(f"the store {self.path} has no split {name!r}; it has {', '.join(splits)}")
        return np.flatnonzero(self._record_splits == splits.index(name))

    def image_id(self, i: int) -> int | str:
        """Image id of record i."""
        return self.ids[i]

    def caption_range(self, i: int) -> tuple[int, int]:
        """Record i has the captions number start to stop - 1 (of the store, and of its Tokens)."""
        return int(self._record_captions[i]), int(self._record_captions[i + 1])

    def caption_ranges(self, records: np.ndarray) -> np.ndarray:
        """int64 [records, 2]: the `caption_range` of each."""
        return np.stack([self._record_captions[records], self._record_captions[records + 1]], axis=1)

    def captions(self, i: int) -> list[str]:
        """Captions of record i, in the order of their annotation ids."""
        return [self._captions[c] for c in range(*self.caption_range(i))]

    @property
    def all_captions(self) -> Sequence[str]:
        """The captions by number, as `caption_range` and Tokens count them."""
        return self._captions

    # An example is an image here, so the numbers of both are the same.
    one_image_each = True

    @property
    def num_images(self) -> int:
        return len(self)

    def example_id(self, i: int) -> int | str:
        return self.image_id(i)

    def image_name(self, x: int) -> int | str:
        """The id of image x."""
        return self.image_id(x)

    def images_of(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The distinct images of `examples` in order of first use; int64 [B, I] rows of these, -1 none."""
        return np.asarray(examples, np.int64), np.arange(len(examples))[:, None]

    def source(self, i: int) -> str | None:
        return None

    def targets(self, i: int) -> list[str]:
        return self.captions(i)

    def target_ranges(self, examples: np.ndarray) -> np.ndarray:
        return self.caption_ranges(examples)

    def image_bytes(self, i: int) -> bytes:
        """JPEG of record i; UserError when it is no longer the one that was stored."""
        assert self.has_images
        try:
            return self._shards.read(*self._image_locations[i].tolist())
        except (OSError, ValueError) as error:  # it was whole when the store was built, but disks decay
            if isinstance(error, OSError) and error.errno in NO_HANDLES:
                raise
            raise UserError(
                f"image {self.image_id(i)} of the store {self.path} cannot be read ({error}): "
                "build the store again with velm preprocess ... fresh=true"
            ) from error

    def damage(self) -> Iterator[str | None]:
        """Read every byte of the image shards and their indexes: for each shard a line about what has changed, or None.

        What else lies beside the images was checked when the store was opened.
        """
        for shard in self.manifest["shards"]:
            file = self.path / "images" / shard["file"]
            changed = f"{file.name} has changed since it was written" if sha256(file) != shard["sha256"] else None
            if changed is None:
                try:
                    read_index(file, shard.get("index"))
                except (OSError, ValueError, EOFError) as error:
                    changed = str(error)
            yield changed

    def concepts(self, i: int) -> np.ndarray:
        """Labels of record i (uint16, rising): the concept words its captions contain."""
        return self._concept_ids[self._concept_offsets[i] : self._concept_offsets[i + 1]]

    def tokens(self, config: TokenizerConfig) -> Tokens:
        """Its captions as `config` tokenises them, made on the first call and kept beside the store.

        A vocabulary is learned from the training captions only; captions end at `config.max_tokens`.
        """
        caption_splits = np.repeat(self._record_splits, np.diff(self._record_captions))
        splits = self.manifest["splits"]
        train = np.flatnonzero(caption_splits == (splits.index("train") if "train" in splits else -1))
        return tokens_in(self.path / "tokens", self.hash, config, self._captions, train)

    def encode(self, tokenizer: Tokenizer, max_tokens: int) -> Tokens:
        """Its captions by a tokenizer that exists already (a checkpoint's); also kept beside the store."""
        return encoded_in(self.path / "tokens", self.hash, tokenizer, max_tokens, self._captions)


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of the store at `path`, None if it has none (yet).

    UserError if it is damaged, or somebody else's.
    """
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        manifest = None
    if not _is_manifest(manifest):
        raise UserError(
            f"{path} is not a store of velm, or its {MANIFEST} is damaged: name another folder with dataset.store=..., "
            "or preprocess again with fresh=true"
        )
    try:
        if "crc32_of" in manifest and SEAL not in manifest:
            raise ValueError("its own checksum is gone")
        return unsealed(manifest)
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}); preprocess again with fresh=true") from error


def _is_manifest(value: Any) -> bool:
    """Whether a JSON value has what is read of every store's manifest, of the types that are expected."""
    try:
        stream = value.get("stream")
        shards = value["shards"] if stream is None else stream["shards"]
        of_shard = {"file": str, "bytes": int, "sha256": str} if stream is None else {
            "number": int, "url": str, "train": int, "first": int, "crc32": int,
        }  # fmt: skip
        counts = value["counts"]["splits"].values()
        return (
            all(isinstance(value[key], kind) for key, kind in (("format", int), ("hash", str), ("splits", list)))
            and all(isinstance(count["records"], int) and isinstance(count["captions"], int) for count in counts)
            and all(isinstance(shard[key], kind) for shard in shards for key, kind in of_shard.items())
            and isinstance(value["options"]["images"], bool)
            and isinstance(value["options"]["image_size"], int)
            and (stream is None or isinstance(stream["most_captions"], int))
        )
    except (KeyError, TypeError, AttributeError):
        return False
