"""Arrays in files: NumPy's own bytes, whole or not at all, from any thread."""

import gc
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from velm_cli.data.arrays import map_array, read_array, read_pieces, write_array, write_pieces
from velm_cli.errors import UserError


@pytest.mark.parametrize("values", [np.arange(6.0).reshape(2, 3), np.zeros((0, 2), np.int32), np.zeros(3, np.uint8)])
def test_arrays_are_written_as_numpy_does(tmp_path, values):
    write_array(tmp_path / "ours.npy", values)
    np.save(tmp_path / "theirs.npy", values)
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "theirs.npy").read_bytes()


def test_an_array_is_the_same_in_pieces(tmp_path):
    rng = np.random.default_rng()
    for dtype, row in ((np.int64, ()), (np.uint8, (32,)), (np.int32, (2,))):
        pieces = [rng.integers(0, 100, (int(rows), *row)).astype(dtype) for rows in rng.integers(0, 3000, 40)]
        write_pieces(tmp_path / "pieces.npy", dtype, iter(pieces), row)
        whole = np.concatenate(pieces)
        write_array(tmp_path / "whole.npy", whole)
        assert (tmp_path / "pieces.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
        found, shape, content = read_pieces(tmp_path / "pieces.npy")
        assert (found, shape, b"".join(content)) == (whole.dtype, whole.shape, whole.tobytes())
    write_pieces(tmp_path / "none.npy", np.int64, [])
    assert np.load(tmp_path / "none.npy").shape == (0,)


def test_a_full_disk_is_named(tmp_path):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*x.npy: File too large; make room and run the same"):
            write_array(tmp_path / "x.npy", np.zeros(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_arrays_are_read_in_many_threads(tmp_path):
    """Without the lock, Python 3.11.7 fails here in some of 10,000: a finaliser in the middle lets another thread in."""
    path = tmp_path / "index.npy"
    values = np.arange(6).reshape(2, 3)
    write_array(path, values)

    class Garbage:
        def __init__(self):
            self.itself = self

        def __del__(self):
            sum(range(300))

    def read(number: int) -> bool:
        Garbage()
        if number % 3 == 0:
            return np.array_equal(map_array(path), values)
        if number % 3 == 1:
            return read_pieces(path)[1] == (2, 3)
        return np.array_equal(read_array(path), values)

    interval, threshold = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(30, 5, 5)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(10_000)))
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*threshold)


def test_an_array_that_is_cut_short_under_its_map_ends_in_a_line(tmp_path):
    write_array(tmp_path / "a.npy", np.arange(100_000))
    program = """
import os, sys
from pathlib import Path
from velm_cli.data.arrays import end_in_a_line_when_cut_short, map_array
end_in_a_line_when_cut_short()
array = map_array(Path(sys.argv[1]))
os.truncate(sys.argv[1], 0)
print(array.sum())
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "a.npy"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("velm: a file in memory has been cut short") and done.stderr.count("\n") == 1
