"""Image shards: plain WebDataset tars with an index beside each, so that any row is one slice away.

`shard-00000.tar` holds `KEY.jpg` and `KEY.json` for each image (KEY: the number of its record), for any
other trainer to read. `shard-00000.idx.npy` says where each JPEG lies and what its sha256 is, and
`shard-00000.json` sums up the shard and keeps the refusals met on the way. The tar gets its name last: a
shard that exists is whole.
"""

from __future__ import annotations

import functools
import hashlib
import json
import mmap
import os
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from velm_cli.data.images import ImageRefused, NormalisedImage
from velm_cli.errors import UserError
from velm_cli.files import write_json

INDEX = np.dtype([("record", "<i8"), ("offset", "<i8"), ("length", "<i8"), ("sha256", "u1", 32)])
OPEN_SHARDS = 256  # an open map holds a file descriptor, and 1,024 are common as a process's limit


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under `path` when the block ends well, and not at all otherwise."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_array(path: Path, array: np.ndarray) -> None:
    """`array` as .npy under `path`, whole or not at all."""
    with whole_file(path) as file:
        np.save(file, array, allow_pickle=False)


def shard_path(folder: Path, shard: int) -> Path:
    """The tar of shard number `shard`."""
    return folder / f"shard-{shard:05d}.tar"


def write_shard(
    folder: Path, shard: int, samples: Iterable[tuple[int, dict[str, Any], NormalisedImage | ImageRefused]]
) -> None:
    """Write one shard from (record number, what its JSON says beside the size, image or refusal).

    The bytes depend on the samples alone. Refused images leave no row.
    """
    rows: list[tuple[int, int, int, np.ndarray]] = []
    refused: list[tuple[int, str]] = []
    digest = hashlib.sha256()
    tar_path = shard_path(folder, shard)
    with whole_file(tar_path) as tar:

        def put(data: bytes) -> None:
            tar.write(data)
            digest.update(data)

        for record, about, image in samples:
            if isinstance(image, ImageRefused):
                refused.append((record, str(image)))
                continue
            about = {**about, "width": image.width, "height": image.height}
            sha256 = np.frombuffer(hashlib.sha256(image.jpeg).digest(), np.uint8)
            rows.append((record, tar.tell() + tarfile.BLOCKSIZE, len(image.jpeg), sha256))
            put(_member(f"{record:09d}.jpg", image.jpeg))
            put(_member(f"{record:09d}.json", json.dumps(about).encode()))
        put(bytes(2 * tarfile.BLOCKSIZE))
        put(bytes(-tar.tell() % tarfile.RECORDSIZE))
        write_array(index_path(tar_path), np.array(rows, INDEX))
        summary = {"rows": len(rows), "bytes": tar.tell(), "sha256": digest.hexdigest(), "refused": refused}
        write_json(tar_path.with_suffix(".json"), summary)


def index_path(tar_path: Path) -> Path:
    """The index that belongs to a tar."""
    return tar_path.with_suffix(".idx.npy")


def _member(name: str, payload: bytes) -> bytes:
    info = tarfile.TarInfo(name)  # mode 0644, time 0, owner 0 without a name: nothing of this machine
    info.size = len(payload)
    return info.tobuf(tarfile.USTAR_FORMAT) + payload + bytes(-len(payload) % tarfile.BLOCKSIZE)


class ShardReader:
    """Random access to the JPEGs of a folder of shards.

    Shards are mapped when first read; nothing but read-only maps is shared with forked workers, and a
    copy sent to a spawned one opens its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shard = functools.lru_cache(maxsize=OPEN_SHARDS)(self._map)

    def read(self, shard: int, row: int) -> bytes:
        """The JPEG in row `row` of shard number `shard`."""
        data, index = self._shard(shard)
        offset, length = int(index["offset"][row]), int(index["length"][row])
        return data[offset : offset + length]

    def index(self, shard: int) -> np.ndarray:
        """The rows of a shard, as an array of dtype INDEX."""
        return self._shard(shard)[1]

    def _map(self, shard: int) -> tuple[mmap.mmap, np.ndarray]:
        path = shard_path(self.folder, shard)
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.load(index_path(path))

    def __reduce__(self) -> tuple[type[ShardReader], tuple[Path]]:
        return ShardReader, (self.folder,)
