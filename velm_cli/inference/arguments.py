"""What callers from Python give: one thing or several, numbers, names of devices; with a line for what is neither."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image

from velm_cli.engine.device import pick_device
from velm_cli.errors import UserError
from velm_cli.schema import Device


class Decoding(TypedDict, total=False):
    """The options of `Model.caption`."""

    beams: int
    prompt: str
    max_length: int
    length_penalty: float
    top_p: float
    temperature: float
    seed: int
    batch_size: int
    progress: bool


def in_chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    waiting = iter(items)
    while some := list(islice(waiting, size)):
        yield some


def is_one(images: Any) -> bool:
    return isinstance(images, (str, Path, bytes, Image.Image, np.ndarray))


def whole(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name}={value!r}: must be a whole number, at least 1")
    return value


def choice(name: str, value: Any, choices: type[Any]) -> Any:
    try:
        return choices(value)
    except ValueError:
        raise UserError(f"{name}={value!r}: one of {', '.join(each.value for each in choices)}") from None


def device_of(name: str) -> torch.device:
    if name in {each.value for each in Device}:
        return pick_device(Device(name))
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
        return device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name!r} cannot be used: {str(error).splitlines()[0]}") from None
