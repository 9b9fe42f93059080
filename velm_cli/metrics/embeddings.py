"""Embeddings of images and captions in a file that anybody's NumPy reads and writes: `embeddings.npz`.

    image_ids        [I], numbers or names        image  [I, E], float
    text_image_ids   [C], each caption's image    text   [C, E], float
    captions         [C], the texts; may be absent

Nothing in it is ever unpickled.

Shapes: I images, C captions, E width of the shared space.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from velm_cli.errors import UserError, on_one_line
from velm_cli.files import whole_file
from velm_cli.lines import most_unpacked

ARRAYS = ("image_ids", "image", "text_image_ids", "text")
EPOCH = (1980, 1, 1, 0, 0, 0)  # instead of the time: equal embeddings are equal files


@dataclass(frozen=True, slots=True)
class Embeddings:
    """`image_of_C` has each caption's image, a row of `image_IE`; the n-th caption of an image is its n-th from 0."""

    image_ids: list[int | str]
    image_IE: np.ndarray
    text_CE: np.ndarray
    image_of_C: np.ndarray
    captions: list[str] | None = None


def write_embeddings(path: Path, found: Embeddings) -> None:
    """Whole or not at all, and the same bytes for the same embeddings."""
    ids = _as_array(found.image_ids)
    arrays = {
        "image_ids": ids,
        "image": found.image_IE.astype(np.float32, copy=False),
        "text_image_ids": ids[found.image_of_C],
        "text": found.text_CE.astype(np.float32, copy=False),
    }
    if found.captions is not None:
        arrays["captions"] = np.array(found.captions, str)
    with whole_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy", EPOCH), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)


def _as_array(ids: Sequence[int | str]) -> np.ndarray:
    """Numbers as numbers where all are, and fit; else names."""
    numbers = all(isinstance(each, int) and abs(each) < 1 << 63 for each in ids)
    return np.array(ids, np.int64) if numbers else np.array([str(each) for each in ids], str)


def read_embeddings(path: Path, named: str) -> Embeddings:
    """UserError, which begins with `named`, where it is no such file."""
    ids, image_IE, owners, text_CE, captions = _arrays(path, named)
    place = {str(image): number for number, image in enumerate(ids)}
    if len(place) < len(ids):
        raise UserError(f"{named}: an image is there twice")
    unknown = [owner for owner in owners if str(owner) not in place]
    if unknown:
        raise UserError(f"{named}: {len(unknown):,} captions of no image that is there ({unknown[0]}, ...)")
    image_of_C = np.array([place[str(owner)] for owner in owners])
    return Embeddings(ids, image_IE, text_CE, image_of_C, captions)


def unit(vectors_ND: np.ndarray) -> np.ndarray:
    """Each divided by its length; zeros stay, equally near to everything."""
    lengths_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    scaled: np.ndarray = vectors_ND / np.where(lengths_N1 == 0, 1, lengths_N1)
    return scaled


def _arrays(
    path: Path, named: str
) -> tuple[list[int | str], np.ndarray, list[int | str], np.ndarray, list[str] | None]:
    try:
        # numpy reads an array alone too, and takes all else for pickles.
        if path.exists() and not zipfile.is_zipfile(path):
            raise ValueError("it is no .npz archive, as numpy.savez writes one")
        with np.load(path, allow_pickle=False) as file:
            assert file.zip is not None
            if sum(member.file_size for member in file.zip.infolist()) > most_unpacked(path.stat().st_size):
                raise ValueError("it unpacks to many times its size")
            if missing := [name for name in ARRAYS if name not in file]:
                raise ValueError(f"it lacks {', '.join(missing)} and has {on_one_line(', '.join(file.files))[:80]}")
            ids, image_IE, own_ids, text_CE = (file[name] for name in ARRAYS)
            captions = file["captions"] if "captions" in file.files else None
    except FileNotFoundError:
        raise UserError(f"{named} does not exist") from None
    except (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        why = "it holds pickled objects, which velm never reads" if "pickle" in str(error) else error
        raise UserError(f"{named} holds no embeddings: {why}") from error
    arrays = dict(zip(ARRAYS, (ids, image_IE, own_ids, text_CE), strict=True))
    if captions is not None:
        arrays["captions"] = captions
    for name, array in arrays.items():
        kinds, of = ("f", "floats") if name in ("image", "text") else ("iuU", "numbers or text")
        kinds, of = ("U", "text") if name == "captions" else (kinds, of)
        if array.dtype.kind not in kinds:
            raise UserError(f"{named}: {name} must be {of}, not of the type {array.dtype}")
    fits = image_IE.ndim == text_CE.ndim == 2 and image_IE.shape[1] == text_CE.shape[1] > 0
    for names, vectors in ((ids, image_IE), (own_ids, text_CE)):
        fits = fits and names.ndim == 1 and len(names) == len(vectors) > 0
    if not fits or (captions is not None and captions.shape != own_ids.shape):
        shapes = ", ".join(str(array.shape) for array in arrays.values())
        raise UserError(f"{named}: its arrays do not fit together: {', '.join(arrays)} have the shapes {shapes}")
    if not (np.isfinite(image_IE).all() and np.isfinite(text_CE).all()):
        raise UserError(f"{named}: it holds numbers that are not finite")
    image_IE, text_CE = _of_usual_length(image_IE), _of_usual_length(text_CE)
    return ids.tolist(), image_IE, own_ids.tolist(), text_CE, None if captions is None else captions.tolist()


def _of_usual_length(vectors_ND: np.ndarray) -> np.ndarray:
    """In float32, very long and short ones divided by a power of two: their squares would be infinite or 0."""
    _, exponents_N1 = np.frexp(np.abs(vectors_ND).max(axis=1, keepdims=True))
    exponents_N1 = np.where(np.abs(exponents_N1) > 30, exponents_N1, 0)
    scaled: np.ndarray = np.ldexp(vectors_ND, -exponents_N1).astype(np.float32)
    return scaled
