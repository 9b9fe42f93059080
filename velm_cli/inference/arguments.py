"""What callers in Python give, checked: a mistake gets one line, as on the command line."""

from __future__ import annotations

from typing import Any

import torch

from velm_cli.engine.device import pick_device
from velm_cli.errors import UserError
from velm_cli.schema import Device


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
