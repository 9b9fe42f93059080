"""NumPy arrays in files: written whole or not at all, in pieces when they are large, and read from any thread."""

from __future__ import annotations

import ctypes
import io
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from velm_cli.files import whole_file

# numpy reads an array's header with Python's own parser, which fails at times where two threads are in it at once
# ("AST constructor recursion depth mismatch", cpython issue 106905; seen in Python 3.11.7).
_one_header_at_a_time = threading.Lock()


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _say_and_end(_: int) -> None:
    os.write(
        2,
        b"velm: a file in memory has been cut short, or its disk fails (a store's captions, tokens or features): see "
        b"velm doctor store=PATH; the same command goes on from the last checkpoint\n",
    )
    os._exit(1)


def end_in_a_line_when_cut_short() -> None:
    """From now on touching a mapped array whose file is cut short ends this process with a line.

    Without this SIGBUS ends it without one. A handler of Python's own would never run: the access is repeated for ever.
    """
    set_handler = ctypes.CDLL(None).signal
    set_handler.argtypes, set_handler.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    set_handler(signal.SIGBUS, ctypes.cast(_say_and_end, ctypes.c_void_p))


def read_array(path: Path) -> np.ndarray:
    """The array in a .npy file, in memory. Raises OSError or ValueError, and on damaged headers nearly anything."""
    with _one_header_at_a_time:
        array: np.ndarray = np.load(path, allow_pickle=False)
    return array


def map_array(path: Path) -> np.ndarray:
    """The same, read-only and fetched from disk where it is touched."""
    with _one_header_at_a_time:
        mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return np.asarray(mapped)  # slicing a memmap takes several times as long


def write_array(path: Path, array: np.ndarray) -> None:
    """`array` as .npy under `path`, whole or not at all."""
    write_pieces(path, array.dtype, [array], array.shape[1:])


def write_pieces(
    path: Path, dtype: np.typing.DTypeLike, pieces: Iterable[np.ndarray], row: tuple[int, ...] = ()
) -> None:
    """The concatenated `pieces`, each [any, *row] of `dtype`, as .npy under `path`, whole or not at all."""
    rows = 0
    with whole_file(path) as file:  # not np.save, which hides why a disk refuses
        file.write(_array_header(dtype, (0, *row)))
        for piece in pieces:
            assert piece.dtype == dtype and piece.shape[1:] == row
            file.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
            rows += len(piece)
        file.seek(0)
        file.write(_array_header(dtype, (rows, *row)))  # of the same length: numpy leaves room for a growing count


def _array_header(dtype: np.typing.DTypeLike, shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    about = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, about)
    return header.getvalue()


def read_pieces(path: Path) -> tuple[np.dtype, tuple[int, ...], Iterator[bytes]]:
    """Type and shape of the array in a .npy file, and its bytes in pieces."""
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        with _one_header_at_a_time:
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        start = file.tell()

    def pieces() -> Iterator[bytes]:
        with path.open("rb") as file:
            file.seek(start)
            while data := file.read(1 << 20):
                yield data

    return dtype, shape, pieces()
