"""Weight files in and out: safetensors always, torch's own files only with `weights_only=True`."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from velm_cli.errors import UserError


def load_state(source: str | Path, torchvision_name: str | None = None) -> dict[str, Tensor]:
    """The tensors by name of a weight file, on the CPU.

    `source` is a path (.safetensors, or .pt/.pth of plain tensors), or `pretrained` for torchvision's
    published weights of the model `torchvision_name`, which need the network or torch's own cache.
    """
    if source == "pretrained":
        return _torchvision_state(torchvision_name)
    path = Path(source)
    if not path.is_file():
        raise UserError(f"weights: {path} does not exist; give a .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise UserError(f"weights: {path} is not a readable weight file ({_first_line(error)})") from error
    except Exception as error:  # pickle.UnpicklingError and whatever a hostile file provokes
        raise UserError(
            f"weights: {path} holds more than plain tensors, and velm runs no code from files; save it as .safetensors"
        ) from error


def save_state(state: dict[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors: whole or not at all. Shared tensors are stored once a name."""
    part = path.with_name(path.name + ".part")
    seen: set[int] = set()
    out = {}
    for name, tensor in state.items():
        tensor = tensor.detach().to("cpu").contiguous()
        if tensor.numel() and tensor.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.data_ptr())
        out[name] = tensor
    save_file(out, part)
    with open(part, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


def on_meta() -> bool:
    """Whether a model is being built without storage, and so without weights."""
    return torch.empty(0).device.type == "meta"


def _torchvision_state(name: str | None) -> dict[str, Tensor]:
    import torchvision

    assert name is not None
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except OSError as error:
        raise UserError(
            f"vision.weights=pretrained: {name} could not be downloaded ({_first_line(error)}); "
            "give a local file with vision.weights=PATH or train from scratch with vision.weights=none"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
