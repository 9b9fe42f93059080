"""Opens a store of either kind: the only module that knows which kinds there are."""

from __future__ import annotations

from pathlib import Path

from velm_cli.data.array_store import ArrayStore
from velm_cli.data.manifest import read_manifest
from velm_cli.data.store import Store
from velm_cli.data.stream_store import StreamStore
from velm_cli.schema import DatasetConfig


def open_store(path: Path, dataset: DatasetConfig | None = None) -> Store:
    """The store at `path`; UserError with the command to run where there is no usable one.

    With `dataset` the command is exact; without it, what only the user knows stays in capitals.
    """
    manifest = read_manifest(path)
    if manifest is not None and "stream" in manifest:
        return StreamStore.open(path, dataset)
    return ArrayStore.open(path, dataset)
