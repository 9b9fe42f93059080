"""Whether a store is of the data that a command names: options of its dataset, against those that it was made with.

A store is all that training and evaluation read. Whoever says dataset.root=newphotos and has a store of other photos
would get results of the wrong data, which look right.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from velm_cli.data.building import differences, plain
from velm_cli.data.store import preprocess_command, read_manifest, store_path
from velm_cli.errors import UserError
from velm_cli.options import choices, kind_of
from velm_cli.schema import DatasetConfig

# Where the store and a stream's shards lie, and how they are read: nothing that decides what is in it.
NOT_OF_THE_CONTENT = frozenset(
    ("kind", "store", "missing", "urls", "val_urls", "shuffle", "lanes", "retries", "damaged", "pipes")
)
PATHS = frozenset(("root", "file", "split_file", "questions", "annotations", "images_root"))


def refuse_other_origin(dataset: DatasetConfig, said: Collection[str]) -> None:
    """UserError where the store of `dataset` was made with other values of the options `said`, which the command names.

    An older velm's store does not know options that are newer than it; a store that is not there is no other.
    """
    path = store_path(dataset)
    manifest = read_manifest(path)
    made_with = (manifest or {}).get("options") or {}
    kind = made_with.get("kind", dataset.kind)
    if "kind" in said and kind != dataset.kind:
        raise UserError(
            f"the store {path} was made from a data set of another kind, {kind} and not {dataset.kind}: say "
            f"{' or '.join(_choices_of(kind))}, or leave out dataset= where a checkpoint or config= says it"
        )
    names = [
        field.name
        for field in fields(dataset)
        if field.name in said and field.name in made_with and field.name not in NOT_OF_THE_CONTENT
    ]
    now = {name: plain(getattr(dataset, name)) for name in names}
    other = [name for name in names if not _same(name, made_with[name], now[name], path)]
    if not other:
        return
    differing = differences(*({f"dataset.{name}": of[name] for name in other} for of in (made_with, now)))
    options = " ".join(f"dataset.{name}=" for name in other)
    store = Path("stores") / _name_for(path, now.get("root") if "root" in other else None)
    unsaid = [name for name in PATHS & made_with.keys() if getattr(dataset, name, "") is None]
    known: dict[str, Any] = {name: made_with[name] for name in unsaid}
    asked = replace(dataset, store=str(store), **known)
    raise UserError(
        f"the store {path} was made from something else: {differing}; leave out {options} to use it as it is, or make "
        f"another and name it with dataset.store=: {preprocess_command(asked)}"
    )


def _choices_of(kind: str) -> list[str]:
    return [f"dataset={choice}" for choice in choices("dataset") if kind_of("dataset", choice) == kind]


def _same(name: str, then: Any, now: Any, store: Path) -> bool:
    if then == now:
        return True
    return name in PATHS and isinstance(then, str) and isinstance(now, str) and _same_path(then, now, store)


def _same_path(then: str, now: str, store: Path) -> bool:
    """Whether both spell one place. A relative one of then is looked for here, and in the folders above the store:
    preprocess mostly ran in one of these."""
    wanted = os.path.realpath(os.path.expanduser(now))
    places = [Path(), *Path(os.path.realpath(store)).parents]
    return any(os.path.realpath(place / os.path.expanduser(then)) == wanted for place in places)


def _name_for(store: Path, root: str | None) -> str:
    """A name for another store, made of its root's."""
    name = re.sub(r"[^\w.-]+", "_", Path(root).name).strip("_.") if root else ""
    return name if name not in ("", store.name) else f"{store.name}-2"
