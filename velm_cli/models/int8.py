"""Matrices as int8 in a weight file: a quarter of the bytes, turned back into float32 where the file is read.

Each row of a matrix (output of a layer, word of a vocabulary) has a scale of its own, its largest value / 127; the
rounding is the only loss. Vectors, tables with few values and everything else stay as they are.

A matrix NAME is stored as NAME (int8) and NAME.int8_scale (float32, a number per row).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SCALE = ".int8_scale"
LEAST = 1024  # values: of smaller tensors int8 would save nothing


def packed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with matrices as int8 and their scales."""
    out = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point() or tensor.dim() < 2 or tensor.numel() < LEAST or len(tensor) == 1:
            out[name] = tensor
            continue
        rows_RX = tensor.float().flatten(1)
        scale_R = rows_RX.abs().amax(dim=1) / 127
        safe_R1 = torch.where(scale_R > 0, scale_R, 1.0)[:, None]
        out[name] = (rows_RX / safe_R1).round().clamp(-127, 127).to(torch.int8).view(tensor.shape)
        out[name + SCALE] = scale_R
    return out


def unpacked(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `packed` made, as float32 again; everything else as it is. ValueError where scales fit no matrix."""
    if not any(name.endswith(SCALE) for name in state):
        return state
    out = {}
    for name, tensor in state.items():
        scale_R = state.get(name + SCALE)
        if name.endswith(SCALE):
            if name.removesuffix(SCALE) not in state:
                raise ValueError(f"{name} is the scale of no matrix")
        elif scale_R is None:
            out[name] = tensor
        elif tensor.is_meta:
            out[name] = tensor.float()
        elif tensor.dtype is not torch.int8 or scale_R.shape != tensor.shape[:1]:
            raise ValueError(f"{name} and its scale do not belong together")
        else:
            out[name] = (tensor.float().flatten(1) * scale_R[:, None]).view(tensor.shape)
    return out
