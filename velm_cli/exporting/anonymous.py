"""A run's options without what names the machine: paths, addresses, the runs before it. What is left still loads.

An exported folder is given away. Where a path named a pretrained model its last part stays, for it says which one it
was; data sets are found by whoever uses the model.
"""

from __future__ import annotations

import copy
import os
import re
import shlex
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING as UNSET

from velm_cli.schema import DatasetConfig, TrainRoot
from velm_cli.schema.paths import is_path

CHOICES = ("none", "pretrained")  # values of `weights` that are no paths


def without_places(config: TrainRoot) -> TrainRoot:
    """The options as of a train run; a finetuning's `checkpoint` and the runs of `init` are left out."""
    plain = TrainRoot(**{field.name: copy.deepcopy(getattr(config, field.name)) for field in fields(TrainRoot)})
    plain.stage, plain.name = "train", None
    plain.experiment = plain.debug = None
    _clear(plain)
    return plain


def _clear(node: Any) -> None:
    for field in fields(node):
        value = getattr(node, field.name)
        if is_dataclass(value):
            _clear(value)
        elif value is not None and is_path(type(node), field.name):
            setattr(node, field.name, _placeless(node, field, value))


def _placeless(node: Any, field: Field[Any], value: Any) -> Any:
    if isinstance(node, DatasetConfig):
        return _default(field)
    if field.name == "name":
        return model_name(value)
    if field.name == "weights":
        return value if value in CHOICES else "none"
    return _default(field)


def _default(field: Field[Any]) -> Any:
    if field.default is not MISSING:
        return field.default
    return UNSET if field.default_factory is MISSING else field.default_factory()


def model_name(name: str) -> str:
    """What a pretrained model is called elsewhere: a hub name as it is, of a local folder its last part."""
    local = name.startswith(("/", "~", ".")) or name.count("/") > 1 or os.path.exists(name)
    return Path(name).name if local else name


def command_without_places(command: str) -> str:
    """A line of command.txt with every path cut to its last part, and without addresses."""
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    out = []
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if "://" in value or value.startswith("pipe:"):
            value = "..."
        elif "/" in value or value.startswith("~"):
            value = re.sub(r"[^,\[\]{}:\"']*/", ".../", value)
        out.append(shlex.quote(f"{key}{equals}{value}") if equals else word.rpartition("/")[2])
    return " ".join(["velm", *out])
