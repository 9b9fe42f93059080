"""Image shards: plain WebDataset tars with an index beside each, so that any row is one slice away.

`shard-00000.tar` holds `KEY.jpg` and `KEY.json` for each image (KEY: the number of its record), for any
other trainer to read. `shard-00000.idx.npy` says where each JPEG lies and what its sha256 is, and
`shard-00000.json` sums up the shard and keeps the refusals met on the way. The tar gets its name last: a
shard that exists is whole. Its summary has the sha256 of the tar, of the index and of itself, so decay is
found, and so is a mixture of two writers' files (`check_shard`).
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from velm_cli.data.arrays import map_array, read_array
from velm_cli.data.images import ImageRefused, NormalisedImage
from velm_cli.files import NO_HANDLES, whole_file, write_json
from velm_cli.files import sha256 as sha256_of
from velm_cli.surroundings import open_files_limit

# The sha256 names the content; the CRC-32 is checked at each reading, in 1 % of the time that decoding takes.
INDEX = np.dtype([("record", "<i8"), ("offset", "<i8"), ("length", "<i8"), ("sha256", "u1", 32), ("crc32", "<u4")])
MOST = 1 << 30  # bytes of a JPEG that an index may claim
# At least, where the system lets a process open so many; opening one again for every image of a random order costs 40
# times the reading.
OPEN_SHARDS = 256


def shard_path(folder: Path, shard: int) -> Path:
    """The tar of shard number `shard`."""
    return folder / f"shard-{shard:05d}.tar"


def write_shard(
    folder: Path, shard: int, samples: Iterable[tuple[int, dict[str, Any], NormalisedImage | ImageRefused]], plan: str
) -> None:
    """Write one shard from (record number, what its JSON says beside the size, image or refusal).

    `plan` names what the samples were made from. The bytes depend on these arguments alone. Refused images
    leave no row.
    """
    rows: list[tuple[int, int, int, np.ndarray, int]] = []
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
            rows.append((record, tar.tell() + tarfile.BLOCKSIZE, len(image.jpeg), sha256, zlib.crc32(image.jpeg)))
            put(_member(f"{record:09d}.jpg", image.jpeg))
            put(_member(f"{record:09d}.json", json.dumps(about).encode()))
        put(bytes(2 * tarfile.BLOCKSIZE))
        put(bytes(-tar.tell() % tarfile.RECORDSIZE))
        index = io.BytesIO()
        np.save(index, np.array(rows, INDEX), allow_pickle=False)
        with whole_file(index_path(tar_path)) as file:
            file.write(index.getvalue())
        summary = {
            "plan": plan,
            "rows": len(rows),
            "bytes": tar.tell(),
            "sha256": digest.hexdigest(),
            "index": hashlib.sha256(index.getvalue()).hexdigest(),
            "refused": refused,
        }
        write_json(summary_path(tar_path), {**summary, "summary": _digest_of(summary)})


def index_path(tar_path: Path) -> Path:
    """The index that belongs to a tar."""
    return tar_path.with_suffix(".idx.npy")


def summary_path(tar_path: Path) -> Path:
    """The summary that belongs to a tar."""
    return tar_path.with_suffix(".json")


def _digest_of(summary: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(summary).encode()).hexdigest()


def check_shard(folder: Path, shard: int, records: range, plan: str) -> dict[str, Any]:
    """Read shard number `shard` wholly: its summary if all of it is as it was written from `plan`.

    `records` are those that it must hold or refuse. Raises ValueError with what is wrong.
    """
    path = shard_path(folder, shard)
    try:
        summary = json.loads(summary_path(path).read_bytes())
        digest = summary.pop("summary")
        if digest != _digest_of(summary):
            raise ValueError("is not what was written")
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{summary_path(path).name} is absent or damaged ({error})") from None
    if summary["plan"] != plan:
        raise ValueError(f"{path.name} was made from something else")
    for file, expected in ((index_path(path), summary["index"]), (path, summary["sha256"])):
        try:
            found = sha256_of(file)
        except FileNotFoundError:
            raise ValueError(f"{file.name} is absent") from None
        if found != expected:
            raise ValueError(f"the sha256 of {file.name} is not the one in its summary")
    index = read_array(index_path(path))
    named = sorted([*index["record"].tolist(), *(record for record, _ in summary["refused"])])
    if len(index) != summary["rows"] or named != list(records):
        raise ValueError(f"{path.name} holds other records")
    return summary


def read_index(tar_path: Path, sha256: str | None) -> np.ndarray:
    """The index of a shard, array of dtype INDEX, mapped; ValueError when it is not the one with this sha256."""
    path = index_path(tar_path)
    if sha256 is not None and sha256_of(path) != sha256:
        raise ValueError(f"{path.name} has changed since it was written")
    return map_array(path)


def _member(name: str, payload: bytes) -> bytes:
    info = tarfile.TarInfo(name)  # mode 0644, time 0, owner 0 without a name: nothing of this machine
    info.size = len(payload)
    return info.tobuf(tarfile.USTAR_FORMAT) + payload + bytes(-len(payload) % tarfile.BLOCKSIZE)


def _room_for_files() -> int:
    """How many shards may be open: a file and a map hold descriptors, and others need some, too."""
    limit = open_files_limit()
    return max(OPEN_SHARDS, limit // 4) if limit >= 4 * OPEN_SHARDS else max(1, limit // 4)


class _Tar:
    """A descriptor that is closed with its last user; a file would warn of that (PYTHONWARNINGS=error)."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class ShardReader:
    """Random access to the JPEGs of a folder of shards.

    Shards are opened when first read. Their bytes are asked for, not mapped: a shard that is cut short under a map, or
    whose disk fails, would end the process without a word. A copy sent to another process opens its own.
    """

    def __init__(self, folder: Path, indexes: Sequence[str | None] = ()) -> None:
        """`indexes`: sha256 of each shard's index; none, or None for a shard of an older velm: not checked."""
        self.folder = folder
        self.indexes = indexes
        self._shard = functools.lru_cache(maxsize=_room_for_files())(self._open)

    def read(self, shard: int, row: int) -> bytes:
        """The JPEG in row `row` of shard number `shard`; ValueError when its bytes are not those that were written."""
        file, index = self._shard(shard)
        offset, length = int(index["offset"][row]), int(index["length"][row])
        if not 0 <= length <= MOST:
            raise ValueError(f"its index in {index_path(shard_path(self.folder, shard)).name} says {length} bytes")
        jpeg = os.pread(file.descriptor, length, offset)
        if "crc32" in (index.dtype.names or ()):
            whole = zlib.crc32(jpeg) == int(index["crc32"][row])
        else:  # an older velm's
            whole = hashlib.sha256(jpeg).digest() == index["sha256"][row].tobytes()
        if not whole:
            raise ValueError(f"its bytes in {shard_path(self.folder, shard).name} have changed since it was stored")
        return jpeg

    def index(self, shard: int) -> np.ndarray:
        """The rows of a shard, as an array of dtype INDEX."""
        return self._shard(shard)[1]

    def _open(self, shard: int) -> tuple[_Tar, np.ndarray]:
        path = shard_path(self.folder, shard)
        try:
            index = read_index(path, self.indexes[shard] if self.indexes else None)
            return _Tar(path), index  # closed when the cache lets go of it
        except OSError as error:
            if error.errno not in NO_HANDLES or not self._shard.cache_info().currsize:
                raise
        self._shard.cache_clear()  # others hold more than was thought: those that are in use stay open
        return self._open(shard)

    def __reduce__(self) -> tuple[type[ShardReader], tuple[Path, Sequence[str | None]]]:
        return ShardReader, (self.folder, self.indexes)
