"""What a frozen vision encoder says of the images: computed once, mapped into memory ever after.

`STORE/features/KEY/part-00003.npy` holds the features of records 3 * PART to 4 * PART - 1. KEY is a hash of
all that they depend on (encoder, weights, transform, precision), so other weights or another image size
find a folder of their own, and nothing stale is ever read. A part appears when it is whole; a run that was
killed goes on with the next, and runs that start together wait for the one that computes.

Suffixes: B images, S image positions, D width.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from velm_cli.data.shards import write_array
from velm_cli.errors import UserError
from velm_cli.files import write_json
from velm_cli.schema import FeatureCaching

PART = 256  # records; what a kill can cost, and what lies in memory while features are computed
OPEN_PARTS = 256  # an open map holds a file descriptor
ROOM_LEFT = 1 << 30  # bytes that stay free on the disk
LOCK = ".writing"

Encode = Callable[[np.ndarray], Iterator[Tensor]]  # records -> their features, in order, in pieces of any size


class FeatureCache:
    """Features of the records of one store by one encoder: [S, D] each, in bfloat16 or float32.

    What the rows mean is the encoder's business; here they are numbers.
    """

    def __init__(self, store: Path, records: int, kind: FeatureCaching, about: Mapping[str, Any]) -> None:
        """`about`: everything that the features depend on beside the store, as plain JSON values."""
        assert kind is not FeatureCaching.none
        self.records = records
        self.dtype = torch.bfloat16 if kind is FeatureCaching.bf16 else torch.float32
        self.about = {**about, "dtype": kind.value, "part": PART}
        key = hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = store / "features" / key
        self._part = functools.lru_cache(maxsize=OPEN_PARTS)(self._map)

    @functools.cached_property
    def shape(self) -> tuple[int, int]:
        """(S, D), the same for all records."""
        positions, width = json.loads((self.folder / "about.json").read_text(encoding="utf-8"))["shape"]
        return positions, width

    def empty(self, images: int) -> Tensor:
        """Room for the features of so many images."""
        return torch.empty((images, *self.shape), dtype=self.dtype, pin_memory=torch.cuda.is_available())

    def read_into(self, record: int, out_SD: Tensor) -> None:
        """Copy the features of a record."""
        part, row = divmod(record, PART)
        _bits(out_SD)[...] = self._part(part)[row]

    def fill(self, records: np.ndarray, encode: Encode) -> int:
        """Compute whatever is missing of `records`; how many records that were. Shows its progress."""
        parts = sorted(set((np.asarray(records) // PART).tolist()))
        if not self._missing(parts):
            return 0
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._sole_writer():
            for left_by_a_kill in self.folder.glob(".*.tmp"):
                left_by_a_kill.unlink()
            missing = self._missing(parts)  # another process may have written some meanwhile
            wanted = [np.arange(part * PART, min((part + 1) * PART, self.records)) for part in missing]
            count = sum(map(len, wanted))
            with tqdm(total=count, desc="features", unit="image", disable=None, mininterval=0.5) as bar:
                for part, numbers in zip(missing, wanted, strict=True):
                    self._write(part, len(parts), encode(numbers), bar)
        return count

    def _missing(self, parts: Sequence[int]) -> list[int]:
        return [part for part in parts if not self._path(part).exists()]

    def _path(self, part: int) -> Path:
        return self.folder / f"part-{part:05d}.npy"

    def _write(self, part: int, parts: int, pieces: Iterator[Tensor], bar: tqdm[Any]) -> None:
        rows = []
        for piece_BSD in pieces:
            rows.append(_bits(piece_BSD.to("cpu", self.dtype).contiguous()))
            bar.update(len(piece_BSD))
        array = np.concatenate(rows)
        if not (self.folder / "about.json").exists():
            write_json(self.folder / "about.json", {**self.about, "shape": array.shape[1:]})
        free = shutil.disk_usage(self.folder).free
        if free < array.nbytes + ROOM_LEFT:
            raise UserError(
                f"data.cache: features take {array[0].nbytes / 1e6:.1f} MB an image ({parts} parts of "
                f"{array.nbytes / 1e6:,.0f} MB in {self.folder.parent}) and {free / 1e9:.1f} GB are free; "
                "make room, or use data.cache=none"
            )
        write_array(self._path(part), array)

    def _map(self, part: int) -> np.ndarray:
        try:
            return np.asarray(np.load(self._path(part), mmap_mode="r"))
        except (OSError, ValueError) as error:
            raise UserError(f"{self._path(part)} cannot be read ({error}): delete it, and it is made again") from error

    @contextmanager
    def _sole_writer(self) -> Iterator[None]:
        """Runs of a sweep that start together need the same features: one computes, the others wait."""
        with (self.folder / LOCK).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"another run computes the features in {self.folder}: waiting for it", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _bits(tensor: Tensor) -> np.ndarray:
    """The memory of a contiguous tensor as numpy can hold it, which knows no bfloat16."""
    return (tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor).numpy()
