"""Paths in a run's config, found from another folder or machine than the one where it was trained.

A config keeps paths as they were typed, since they tell experiments apart; environment.json keeps the folder in which
they were typed. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

from velm_cli.schema import (
    CocoConfig,
    CocoSplit,
    DatasetConfig,
    Drawn,
    FlickrConfig,
    MixConfig,
    Multi30kConfig,
    ShapesConfig,
    VgConfig,
    VgExamples,
    WebDatasetConfig,
)
from velm_cli.schema.paths import is_path

GROUPS = ("dataset", "tokenizer", "vision", "text", "init")  # whose paths belong to an experiment


def working_folder(run: Path) -> Path | None:
    """The folder in which the run's command was typed last; None where an older velm did not note it."""
    try:
        noted = json.loads((run / "environment.json").read_text(encoding="utf-8")).get("folder")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return Path(noted) if isinstance(noted, str) and os.path.isabs(noted) else None


def relocate(config: Any, folder: Path | None) -> None:
    """Make the paths of `config` absolute that are not found from here and are from `folder`."""
    if folder is None:
        return
    options = [(node, field.name) for group in GROUPS for node in [getattr(config, group)] for field in _fields(node)]
    for node, name in [*options, (config, "checkpoint")]:
        value = getattr(node, name, None)
        if isinstance(value, str) and value and is_path(type(node), name) and (found := _found(value, folder)):
            setattr(node, name, found)
    dataset = config.dataset
    if not isinstance(dataset, DatasetConfig):  # none was chosen
        return
    if dataset.store is None and (found := _found(str(store_path(dataset)), folder)):
        dataset.store = found
    for part in dataset.parts if isinstance(dataset, MixConfig) else ():
        part.store = _found(part.store, folder) or part.store
    if isinstance(dataset, WebDatasetConfig):
        dataset.urls, dataset.val_urls = _found_urls(dataset.urls, folder), _found_urls(dataset.val_urls, folder)


def _fields(node: Any) -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(node) if dataclasses.is_dataclass(node) else ()  # none where nothing was chosen


def _found(value: str, folder: Path) -> str | None:
    """`value` below `folder`, if it is a relative path that is there and not here."""
    path = Path(value)
    if path.is_absolute() or value.startswith("~"):
        return None
    try:
        return str(folder / path) if not path.exists() and (folder / path).exists() else None
    except OSError:  # a name that is too long, or a folder that may not be searched
        return None


def _found_urls(urls: Any, folder: Path) -> Any:
    """The same of shards: of a pattern, the folder before its first sign counts."""
    if isinstance(urls, list):
        return [_found_urls(url, folder) for url in urls]
    if not isinstance(urls, str) or urls.startswith("pipe:") or "://" in urls:
        return urls
    plain = re.split(r"[*?\[{]", urls, maxsplit=1)[0]
    known = plain if plain == urls else os.path.dirname(plain)
    return str(folder / urls) if known and _found(known, folder) else urls


def store_path(dataset: DatasetConfig) -> Path:
    """Where the store of `dataset` lies: `dataset.store`, or a folder in `stores/` by its kind."""
    if dataset.store is not None:
        return Path(dataset.store).expanduser()
    name = dataset.release if isinstance(dataset, FlickrConfig) else dataset.kind
    if isinstance(dataset, CocoConfig) and dataset.split is not CocoSplit.karpathy:
        name += f"-{dataset.split.name}"
    if isinstance(dataset, ShapesConfig) and dataset.drawn is not Drawn.captions:
        name += f"-{dataset.drawn.value}"
    if isinstance(dataset, Multi30kConfig):
        name += f"-{dataset.source_lang}-{dataset.target_lang}"
    if dataset.summarise:
        name += "-summaries"
    if isinstance(dataset, VgConfig) and dataset.examples is not VgExamples.regions:
        name += f"-{dataset.examples.value}"
    return Path("stores") / (name if dataset.images else f"{name}-text")
