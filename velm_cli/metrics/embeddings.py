"""Embeddings of images and captions in a file that anybody's NumPy reads: `embeddings.npz`.

    image_ids, text_ids   JSON lists in uint8
    images, texts         float32 [I, E] and [C, E], unit vectors
    image_of_text         int64 [C], rows of `images`

Shapes: I images, C captions, E width of the shared space.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from velm_cli.errors import UserError
from velm_cli.files import whole_file

EPOCH = (1980, 1, 1, 0, 0, 0)  # instead of the time: equal embeddings are equal files
NEARLY = 1e-2  # how far from 1 the length of a unit vector may be: one in half precision is nearer


@dataclass(frozen=True, slots=True)
class Embeddings:
    image_ids: list[int | str]
    text_ids: list[str]  # `IMAGE#0`, `IMAGE#1` ... where velm has named them
    image_IE: np.ndarray
    text_CE: np.ndarray
    image_of_C: np.ndarray


def write_embeddings(path: Path, found: Embeddings) -> None:
    """Whole or not at all, and the same bytes for the same embeddings."""
    arrays = {
        "image_ids": _packed(found.image_ids),
        "text_ids": _packed(found.text_ids),
        "images": found.image_IE.astype(np.float32, copy=False),
        "texts": found.text_CE.astype(np.float32, copy=False),
        "image_of_text": found.image_of_C.astype(np.int64, copy=False),
    }
    with whole_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy", EPOCH), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)


def read_embeddings(path: Path) -> Embeddings:
    """UserError with what is wrong where it is no such file."""
    try:
        with zipfile.ZipFile(path) as archive:
            image_ids, text_ids = _ids(archive, "image_ids"), _ids(archive, "text_ids")
            found = Embeddings(
                image_ids,
                [str(each) for each in text_ids],
                _unit(archive, "images", len(image_ids)),
                _unit(archive, "texts", len(text_ids)),
                _array(archive, "image_of_text", np.integer, (len(text_ids),)).astype(np.int64),
            )
        if found.image_IE.shape[1] != found.text_CE.shape[1]:
            raise ValueError(f"images have width {found.image_IE.shape[1]} and texts {found.text_CE.shape[1]}")
        if ((found.image_of_C < 0) | (found.image_of_C >= len(image_ids))).any():
            raise ValueError("image_of_text names an image that is not there")
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        raise UserError(
            f"{path} holds no embeddings ({_said(error)}); a file of them has image_ids and text_ids (JSON lists in "
            "uint8), images and texts (float32 unit vectors), image_of_text (int64)"
        ) from error
    return found


def _packed(ids: list[int | str] | list[str]) -> np.ndarray:
    return np.frombuffer(json.dumps(ids).encode(), np.uint8)


def _ids(archive: zipfile.ZipFile, name: str) -> list[int | str]:
    ids = json.loads(_array(archive, name, np.uint8, (None,)).tobytes())
    if not isinstance(ids, list) or not all(type(each) in (int, str) for each in ids):
        raise ValueError(f"{name} is no list of numbers and names")
    if len(set(ids)) < len(ids):
        raise ValueError(f"{name} has one of them twice")
    return ids


def _unit(archive: zipfile.ZipFile, name: str, rows: int) -> np.ndarray:
    array = _array(archive, name, np.floating, (rows, None)).astype(np.float32, copy=False)
    lengths = np.linalg.norm(array, axis=1)
    if not (np.abs(lengths - 1) < NEARLY).all():  # NaN neither
        raise ValueError(f"{name} are not unit vectors: divide them by their lengths")
    return array


def _array(archive: zipfile.ZipFile, name: str, kind: type, shape: tuple[int | None, ...]) -> np.ndarray:
    info = archive.getinfo(f"{name}.npy")
    if info.file_size > 100 * max(1, info.compress_size):  # numbers are hardly ever packed so tightly
        raise ValueError(f"{name} would unpack into {info.file_size:,} bytes")
    array: np.ndarray = np.lib.format.read_array(io.BytesIO(archive.read(info)), allow_pickle=False)
    fits = array.ndim == len(shape) and all(size in (None, has) for size, has in zip(shape, array.shape, strict=True))
    if not fits or not np.issubdtype(array.dtype, kind):
        raise ValueError(f"{name} is {array.dtype} {array.shape}")
    return array


def _said(error: BaseException) -> str:
    return f"{error.args[0]}" if error.args else type(error).__name__
