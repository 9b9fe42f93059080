"""What callers from Python give: one thing or several, numbers, names of devices; with a line for what is neither."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image

from velm_cli.engine.device import pick_device
from velm_cli.errors import UserError
from velm_cli.schema import OF_BEAMS, OF_DRAWING, DecodeConfig, Device
from velm_cli.schema.bounds import out_of_bounds


class Decoding(TypedDict, total=False):
    """The options of `Model.caption`."""

    beams: int
    prompt: str
    max_length: int
    min_length: int
    length_penalty: float
    top_p: float
    top_k: int
    temperature: float
    repetition_penalty: float
    no_repeat_ngram: int
    allowed: Sequence[str] | None
    seed: int
    batch_size: int
    progress: bool


def in_chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    waiting = iter(items)
    while some := list(islice(waiting, size)):
        yield some


def is_one(images: Any) -> bool:
    return isinstance(images, (str, Path, bytes, Image.Image, np.ndarray))


def several(images: Any) -> Iterable[Any]:
    """Of what is not one image. UserError where it is no collection of images either."""
    if hasattr(images, "read"):
        raise UserError("an open file is not taken for an image: give its path, or the bytes of file.read()")
    if not isinstance(images, Iterable):
        raise UserError(f"{type(images).__name__} is no image and no collection of images")
    return images


def text_of(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"{name}: give a text, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name}: {value[:40]!r} is no text that UTF-8 can hold") from None
    return value


def texts_of(name: str, value: Any) -> None:
    """UserError where it is no list of texts: the letters of one text would be taken for several."""
    if isinstance(value, str):
        raise UserError(f"{name}={value[:40]!r}: give a list of texts")
    for each in value or ():
        text_of(name, each)


def whole(name: str, value: Any, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise UserError(f"{name}={value!r}: must be a whole number, at least {least}")
    return int(value)


def decoding(**options: Any) -> DecodeConfig:
    """UserError, with a line for each, for options that are no numbers or out of bounds, as on the command line."""
    for name in ("beams", "max_length", "batch_size"):
        whole(name, options[name])
    for name in ("min_length", "top_k", "no_repeat_ngram"):
        whole(name, options.get(name, 0), least=0)
    for name in ("length_penalty", "top_p", "temperature", "repetition_penalty"):
        value = options.get(name, 1.0)
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
            raise UserError(f"{name}={value!r}: must be a number")
    how = DecodeConfig(**options)
    problems = list(out_of_bounds(how))
    if how.min_length > how.max_length:
        problems.append(f"min_length={how.min_length} is above max_length={how.max_length}")
    if problems:
        raise UserError("\n".join(problems))
    return how


def idle_in_caption(n: int | None, options: Mapping[str, Any]) -> list[str]:
    """A line for each option that was given and changes no caption, drawn (`n`) or searched for by beams."""
    usual, why = DecodeConfig(), "with n: it is of beams" if n else "without n: it is of drawn captions"
    return [
        f"{name}={options[name]} has no effect {why}"
        for name in (OF_BEAMS if n else OF_DRAWING)
        if options[name] != getattr(usual, name)
    ]


def choice(name: str, value: Any, choices: type[Any]) -> Any:
    try:
        return choices(value)
    except ValueError:
        raise UserError(f"{name}={value!r}: one of {', '.join(each.value for each in choices)}") from None


def device_of(name: Any) -> torch.device:
    text_of("device", name)
    if name in {each.value for each in Device}:
        return pick_device(Device(name))
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.zeros(1, device=device)
        return device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name!r} cannot be used: {str(error).splitlines()[0]}") from None
