"""What frozen layers say of the images: computed once, mapped into memory ever after.

`STORE/features/KEY/part-00003.npy` holds the features of images 3 * PART to 4 * PART - 1, and `.crc32.npy` beside it
the CRC-32 of each. KEY is a hash of all that they depend on (images, layers, weights, transform, precision), so other
weights or another image size find a folder of their own, and nothing stale is ever read. A part appears when it is
whole; a run that was killed goes on with the next, and runs that start together wait for the one that computes.

Suffixes: B images, S image positions, D width.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from velm_cli.data.arrays import map_array, read_array, write_array
from velm_cli.errors import UserError
from velm_cli.files import LOCK, locked, read_sealed, refuse_links, remove_temporary, sealed, write_json
from velm_cli.progress import progress_bar
from velm_cli.schema import FeatureCaching

PART = 256  # images; what a kill can cost, and what lies in memory while features are computed
OPEN_PARTS = 256  # an open map holds a file descriptor
ROOM_LEFT = 1 << 30  # bytes that stay free on the disk
NAMED = "rows_named"  # in about.json: checksums say which image a row is of; those of older velms do not

Encode = Callable[[np.ndarray], Iterator[Tensor]]  # images -> their features, in order, in pieces of any size


class Features(Protocol):
    """What stands for the images of a batch."""

    def empty(self, images: int) -> Tensor:
        """Room for the features of so many images."""
        ...

    def read_into(self, image: int, out_SD: Tensor) -> None:
        """Copy the features of an image."""
        ...


class FeatureCache:
    """Features of the images of one store by one encoder: [S, D] each, in bfloat16 or float32.

    What the rows mean is the encoder's business; here they are numbers.
    """

    def __init__(self, store: Path, images: int, kind: FeatureCaching, about: Mapping[str, Any]) -> None:
        """`about`: everything that the features depend on, as plain JSON values; `store` is the hash of its content."""
        assert kind is not FeatureCaching.none
        self.images = images
        self.dtype = torch.bfloat16 if kind is FeatureCaching.bf16 else torch.float32
        self.about = {**about, "dtype": kind.value, "part": PART}
        self.folder = store / "features" / _key(self.about)
        older = store / "features" / _key({name: value for name, value in self.about.items() if name != "store"})
        if not self.folder.exists() and older.exists():  # made by an older velm, whose keys named no store
            self.folder = older
        self._part = functools.lru_cache(maxsize=OPEN_PARTS)(self._map)
        self._checked: dict[int, np.ndarray] = {}  # part -> bool a row: its checksum was right in this process

    @functools.cached_property
    def shape(self) -> tuple[int, int]:
        """(S, D), the same for all images."""
        return self._kept[0]

    @functools.cached_property
    def _kept(self) -> tuple[tuple[int, int], bool]:
        """What about.json says of the parts: (S, D), and whether a row's checksum also says whose it is."""
        try:
            about = read_sealed(self.folder / "about.json")
            (positions, width), named = about.pop("shape"), about.pop(NAMED, False)
            if about != {name: self.about[name] for name in about} or len(about) < len(self.about) - 1:
                raise ValueError("it is of other images or of another encoder")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.folder} is damaged ({error}): delete it, and it is made again") from error
        return (positions, width), bool(named)

    def _sum(self, image: int, row: np.ndarray, named: bool) -> int:
        """CRC-32 of a row, beginning with whose it is: so rows do not pass for those of other images or folders."""
        return zlib.crc32(row.data, zlib.crc32(f"{self.folder.name} {image}".encode()) if named else 0)

    def empty(self, images: int) -> Tensor:
        """Room for the features of so many images."""
        return torch.empty((images, *self.shape), dtype=self.dtype, pin_memory=torch.cuda.is_available())

    def read_into(self, image: int, out_SD: Tensor) -> None:
        """Copy the features of an image; they are checked when they are read for the first time in a process."""
        part, row = divmod(image, PART)
        rows_BSD, sums = self._part(part)
        _bits(out_SD)[...] = rows_BSD[row]
        if sums is None or self._checked[part][row]:
            return
        if self._sum(image, _bits(out_SD), self._kept[1]) != sums[row]:
            raise self._damaged(part, f"the features of image {image} have changed")
        self._checked[part][row] = True

    @contextmanager
    def missing(self, images: np.ndarray) -> Iterator[list[int]]:
        """The parts with `images` that are not there, while no other run writes any."""
        parts = sorted(set((np.asarray(images) // PART).tolist()))
        if not self._absent(parts):
            yield []
            return
        refuse_links(self.folder.parent.parent)
        self.folder.mkdir(parents=True, exist_ok=True)
        # Runs of a sweep that start together need the same features: one computes, the others wait.
        busy = f"another run computes the features in {self.folder}: waiting for it"
        with locked(self.folder / LOCK, busy, wait=True):
            remove_temporary(self.folder)
            yield self._absent(parts)  # another process may have written some meanwhile

    def write(self, parts: Sequence[int], encode: Encode) -> int:
        """Compute these parts; how many images they have. Several processes may share what is `missing`. Shows its
        progress."""
        wanted = [np.arange(part * PART, min((part + 1) * PART, self.images)) for part in parts]
        count = sum(map(len, wanted))
        if count:
            with progress_bar(what="features", total=count, unit="image") as bar:
                for part, numbers in zip(parts, wanted, strict=True):
                    self._write(part, len(parts), encode(numbers), bar)
        return count

    def _absent(self, parts: Sequence[int]) -> list[int]:
        return [part for part in parts if not self._path(part).exists()]

    def _path(self, part: int) -> Path:
        return self.folder / f"part-{part:05d}.npy"

    def _sums(self, part: int) -> Path:
        return self.folder / f"part-{part:05d}.crc32.npy"

    def _write(self, part: int, parts: int, pieces: Iterator[Tensor], bar: tqdm[Any]) -> None:
        rows = []
        for piece_BSD in pieces:
            rows.append(_bits(piece_BSD.to("cpu", self.dtype).contiguous()))
            bar.update(len(piece_BSD))
        array = np.concatenate(rows)
        if not self.folder.exists():
            raise UserError(f"{self.folder} is gone: was the store replaced? give the same command again")
        if not (self.folder / "about.json").exists():
            write_json(self.folder / "about.json", sealed({**self.about, "shape": array.shape[1:], NAMED: True}))
        free = shutil.disk_usage(self.folder).free
        if free < array.nbytes + ROOM_LEFT:
            raise UserError(
                f"data.cache: features take {array[0].nbytes / 1e6:.1f} MB an image ({parts} parts of "
                f"{array.nbytes / 1e6:,.0f} MB in {self.folder.parent}) and {free / 1e9:.1f} GB are free; "
                "make room, or use data.cache=none"
            )
        named = self._kept[1]
        sums = [self._sum(part * PART + number, row, named) for number, row in enumerate(array)]
        write_array(self._sums(part), np.array(sums, np.uint32))
        write_array(self._path(part), array)  # last: a part that exists has its checksums

    def _map(self, part: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The rows of a part and their CRC-32; None for the latter where an older velm wrote none."""
        try:
            rows_BSD = map_array(self._path(part))
            sums = read_array(self._sums(part)) if self._sums(part).exists() else None
        except Exception as error:  # numpy raises nearly every type on a damaged header
            raise self._damaged(part, str(error)) from error
        count = min(PART, self.images - part * PART)
        dtype = _bits(torch.empty(0, dtype=self.dtype)).dtype
        if rows_BSD.shape != (count, *self.shape) or rows_BSD.dtype != dtype or not rows_BSD.flags.c_contiguous:
            raise self._damaged(part, f"it holds {rows_BSD.dtype} {rows_BSD.shape}")
        if sums is not None and sums.shape != (count,):
            raise self._damaged(part, f"its checksums are {sums.dtype} {sums.shape}")
        self._checked.setdefault(part, np.zeros(count, bool))
        return rows_BSD, sums

    def _damaged(self, part: int, why: str) -> UserError:
        return UserError(f"{self._path(part)} cannot be read ({why}): delete it, and it is made again")


def _key(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def _bits(tensor: Tensor) -> np.ndarray:
    """The memory of a contiguous tensor as numpy can hold it, which knows no bfloat16."""
    return (tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor).numpy()
