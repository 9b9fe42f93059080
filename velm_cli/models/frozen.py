"""What a run never changes lies in its folder once: `frozen.safetensors`, beside the weights that it trains.

A small part of a model is often trained beside a large pretrained one. Checkpoints, `best` and `model.safetensors` then
hold what learns, and name the rest by its SHA-256; whoever reads them gets the whole. Fractions are kept in the
smallest type that holds each of them exactly (published models are bfloat16, and velm computes in float32).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from velm_cli.errors import UserError

FILE = "frozen.safetensors"
SMALLER = (torch.bfloat16, torch.float16)


def narrowed(tensor: Tensor) -> Tensor:
    """The tensor in the smallest type that gives back the same bits as float32; itself where there is none."""
    if tensor.dtype is not torch.float32:
        return tensor.float() if tensor.dtype in SMALLER else tensor  # a small type means a narrowed one
    bits = tensor.contiguous().view(torch.int32)
    for dtype in SMALLER:
        small = tensor.to(dtype)
        if torch.equal(small.float().view(torch.int32), bits):
            return small
    return tensor


def file_of(path: Path) -> Path:
    """The file beside the weights or checkpoint `path` of a run. UserError where there is none."""
    file = path.parent / FILE
    if path.parent.parent.name == "checkpoints":  # RUN/checkpoints/step-00000200/task.safetensors
        file = path.parent.parent.parent / FILE
    if not file.exists():
        raise UserError(
            f"{path} holds only what its run trained, and the {FILE} of its run folder is not at {file}: put it "
            "there, or give the whole run folder"
        )
    return file


def put_together(path: Path, trained: Mapping[str, Tensor], digest: str) -> dict[str, Tensor]:
    """The whole weights of which `path` holds what was trained: the rest has the SHA-256 `digest`.

    UserError where that is not in the run folder of `path`, or is another.
    """
    file = file_of(path)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise UserError(
            f"{file} is damaged, or of another run: it is not the one that {path} was trained with; put its own back"
        )
    try:
        frozen = load(content)
    except SafetensorError as error:
        raise UserError(f"{file} is not a readable weight file ({error})") from error
    whole = {name: tensor.float() if tensor.dtype in SMALLER else tensor for name, tensor in frozen.items()}
    whole |= trained  # a later velm may train what was frozen
    return {name: whole[name] for name in sorted(whole)}
