"""What velm doctor says of memory."""

import ctypes.util

import pytest
import torch

from velm_cli.stages import doctor


@pytest.fixture
def mapped(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "pick_device", lambda _: torch.device("cpu"))
    monkeypatch.setattr(doctor, "MAPS", tmp_path / "maps")
    return tmp_path / "maps"


def test_another_allocator_is_named(mapped):
    mapped.write_text("7f00-7f01 r-xp 0 fe:00 1 /usr/lib/libtcmalloc_minimal.so.4.5.10\n")
    assert doctor._allocator() == (True, "tcmalloc")


@pytest.mark.parametrize(
    ("library", "advice"),
    [
        ("libtcmalloc_minimal.so.4", "LD_PRELOAD=libtcmalloc_minimal.so.4 velm train"),
        (None, "install libtcmalloc-minimal4"),
    ],
)
def test_a_faster_one_is_recommended(mapped, monkeypatch, library, advice):
    mapped.write_text("7f00-7f01 r-xp 0 fe:00 1 /usr/lib/libc.so.6\n")
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: library if name == "tcmalloc_minimal" else None)
    works, text = doctor._allocator()
    assert works and advice in text


def test_no_matter_on_a_gpu(mapped, monkeypatch):
    monkeypatch.setattr(doctor, "pick_device", lambda _: torch.device("cuda"))
    assert doctor._allocator() == (True, "no matter")
