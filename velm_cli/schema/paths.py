"""Which options are paths: said beside their default, so that `~` is a home in each and Tab completes files."""

import dataclasses
import os
from typing import Any

MARK = {"path": True}


def path(default: Any) -> Any:
    """A field of a config that takes a path (or a name, or a list of paths)."""
    return dataclasses.field(default=default, metadata=MARK)


def is_path(node: type, name: str) -> bool:
    """Of an option of a dataclass; one that only gives another default is what the class below it says."""
    own = (getattr(cls, "__dataclass_fields__", {}).get(name) for cls in node.__mro__)
    return any("path" in field.metadata for field in own if field is not None)


def expand_homes(config: Any) -> None:
    """`~` and `~user` at the beginning of every path of a config, and of the groups in it, as a shell reads them."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            expand_homes(value)
        elif value and is_path(type(config), field.name):
            several = isinstance(value, list)
            setattr(config, field.name, [expand_home(one) for one in value] if several else expand_home(value))


def expand_home(value: Any) -> Any:
    """A path with its home; where there is no such user, `~x` is the folder of that name here."""
    if not isinstance(value, str) or not value.startswith("~"):
        return value
    expanded = os.path.expanduser(value)
    return os.path.abspath(value) if expanded.startswith("~") else expanded
