"""What a file that was given as weights is instead, by its first bytes: its name says little, and torch less."""

from __future__ import annotations

import zipfile
from pathlib import Path

HEAD = 512  # bytes, of which a tar archive needs 262

# First bytes -> what the file is, and what to do.
KINDS = (
    (b"version https://git-lfs", "is a git-lfs pointer and not the file itself: run git lfs pull where it was cloned"),
    (b"\x1f\x8b", "is compressed by gzip: unpack it first"),
    (b"BZh", "is compressed by bzip2: unpack it first"),
    (b"\xfd7zXZ", "is compressed by xz: unpack it first"),
    (b"7z\xbc\xaf", "is a 7-Zip archive: unpack it first"),
    (b"Rar!", "is a RAR archive: unpack it first"),
    (b"\x89HDF", "is an HDF5 file (of Keras or TensorFlow): convert it to PyTorch first"),
    (b"GGUF", "is a GGUF file, for inference with llama.cpp: take the original weights"),
    (b"\x93NUMPY", "is a NumPy array: save the tensors by name, as .safetensors"),
    (b"%PDF", "is a PDF file"),
    (b"<?xml", "is an XML page: a download that went wrong; fetch it again"),
)


def kind_of(path: Path) -> str | None:
    """What `path` is, as the end of a sentence; None where it may be weights, or cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError:
        return None
    if not head:
        return "is empty: a download that went wrong; fetch it again"
    for start, meaning in KINDS:
        if head.startswith(start):
            return meaning
    if head.lstrip()[:15].lower().startswith((b"<!doctype", b"<html", b"<head")):
        return "is a web page: a download that went wrong, or needs a login; fetch it again"
    if head[257:262] == b"ustar":
        return "is a tar archive: unpack it first"
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    if b"onnx" in head[:64].lower() or (head[:1] == b"\x08" and b"pytorch" in head[:64].lower()):
        return "is an ONNX file: export the PyTorch weights, as .safetensors"
    return None


def _kind_of_zip(path: Path) -> str | None:
    """The same of a zip archive, as torch's own files are."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile):
        return "is cut short: a download that went wrong; fetch it again"
    if any(name.endswith("/constants.pkl") for name in names):
        return "is a TorchScript program: save its state_dict() alone, best as .safetensors"
    if all(name.endswith(".npy") for name in names):
        return "is an archive of NumPy arrays: save the tensors by name, as .safetensors"
    return None if any(name.endswith("data.pkl") for name in names) else "is a zip archive: unpack it first"


def is_safetensors(path: Path) -> bool:
    """Whether the file begins as safetensors do, whatever its name: eight bytes of a length, then JSON."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"
