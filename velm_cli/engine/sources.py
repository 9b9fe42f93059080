"""The weights that a run starts from: which file they are, and whether it is still the same one. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from velm_cli import compose
from velm_cli.errors import UserError
from velm_cli.files import read_sealed, sealed, sha256, write_json

FILE = "sources.json"  # in a run folder: option -> file and sha256 of what was loaded; the store's hash


def weight_file(source: str | Path) -> Path:
    """The weights that a run folder stands for: the best if there are any, else the last."""
    path = Path(source)
    if path.suffix == ".safetensors":
        return path
    folder = compose.run_folder_of(source)
    for name in ("best.safetensors", "model.safetensors"):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} has no weights yet (neither best.safetensors nor model.safetensors)")


def sources_of(config: Any) -> dict[str, str]:
    """The options that name weights to start from, and their values."""
    named = {
        "checkpoint": getattr(config, "checkpoint", None),
        "init.vision": config.init.vision,
        "init.text": config.init.text,
    }
    return {key: source for key, source in named.items() if source is not None}


def write_sources(path: Path, loaded: dict[str, dict[str, str]], store: str) -> None:
    """Note in the run folder which weights it has begun with, and the hash of its store."""
    write_json(path / FILE, sealed({**loaded, "store": store}))


def other_store(path: Path, store: str) -> Iterator[str]:
    """A line about a store that holds other data than when the run in `path` began."""
    if (path / FILE).exists() and read_sealed(path / FILE).get("store", store) != store:
        yield "note: the store has other data than when this run began; what it learns and scores is of both"


def refuse_other_sources(path: Path, config: Any) -> None:
    """UserError when the run in `path` began with other weights than those that its options name now.

    An older velm's run folder does not say; weights that are gone cannot be others.
    """
    if not (path / FILE).exists():
        return
    try:
        before = read_sealed(path / FILE)
        digests = {key: str(before[key]["sha256"]) for key in sources_of(config) if key in before}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path / FILE} cannot be read ({error}): remove it if the weights that the run began with have not changed"
        ) from error
    for key, source in sources_of(config).items():
        if key in digests and (file := weight_file(source)).is_file() and sha256(file) != digests[key]:
            raise UserError(
                f"{path} began with other weights: {file} ({key}) has changed since then; give another name=, "
                "or fresh=true"
            )
