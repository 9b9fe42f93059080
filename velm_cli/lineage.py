"""What a run is made from: weights, tokenizer and store, and whether they are still the same. Imports no torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from velm_cli import configs
from velm_cli.errors import UserError
from velm_cli.files import read_sealed, sealed, sha256, write_json
from velm_cli.relocating import store_path
from velm_cli.schema import PretrainedTextConfig, TokenizerKind

FILE = "sources.json"  # in a run folder: option -> file and sha256 of what was loaded; the store's and tokenizer's hash


def weight_file(source: str | Path) -> Path:
    """The weights that a run folder (the best if there are any, else the last) or a kept checkpoint stands for."""
    path, step = Path(source), configs.step_folder_of(source)
    if step is not None and path.name not in (step.name, "task.safetensors"):
        raise UserError(f"{path} is not the model's weights: give the checkpoint's folder, {step}")
    if step is not None:
        return step / "task.safetensors"
    if path.name == "frozen.safetensors":  # models/frozen.py, which imports torch
        raise UserError(f"{path} holds only what its run never changed: give the run folder, {path.parent}")
    if path.suffix == ".safetensors":
        return path
    folder = configs.run_folder_of(source)
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


def vocabulary_source(config: Any) -> str | None:
    """What names the run whose vocabulary this one begins with; None where it learns its own, or the text's model has
    one."""
    if isinstance(config.text, PretrainedTextConfig):
        return None
    source: str | None = config.init.text or getattr(config, "checkpoint", None)
    return source


def vocabulary_grows(config: Any) -> bool:
    """Whether that vocabulary gets further words: those of another task, where it is one of words."""
    if (source := vocabulary_source(config)) is None:
        return False
    of_run = configs.load_run_config(source)
    words = of_run.tokenizer.kind is TokenizerKind.word and not isinstance(of_run.text, PretrainedTextConfig)
    return words and of_run.task.kind != config.task.kind


def identity_of(path: Path, config: Any) -> str:
    """What the checkpoints and weights of the run in `path` say that they are of: a digest of its experiment.

    It stays what it was when the run began: a later velm has options that this one did not know.
    """
    new = hashlib.sha256(json.dumps(configs.experiment_of(config), sort_keys=True, default=str).encode()).hexdigest()
    return str(_noted(path).get("run", new))


def noted_identity(path: Path) -> str | None:
    """The same of a run folder as it is; None where an older velm wrote none."""
    noted = _noted(path).get("run")
    return None if noted is None else str(noted)


def averaged(file: Path) -> Path | None:
    """The file of a kept checkpoint's averaged weights, which take the others' place, as in best.safetensors."""
    average = file.with_name("ema.safetensors")
    return average if configs.step_folder_of(file) is not None and average.is_file() else None


def digest_of(file: Path) -> str:
    """sha256 of a weight file, and of what is read with it."""
    average = averaged(file)
    return sha256(file) if average is None else joined([sha256(file), sha256(average)])


def joined(digests: Iterable[str]) -> str:
    """One digest of several."""
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def write_sources(path: Path, loaded: dict[str, dict[str, str]], store: str, tokenizer: str, run: str) -> None:
    """Note in the run folder which weights it began with, its store's hash, its tokenizer's digest and what it is."""
    write_json(path / FILE, sealed({**loaded, "store": store, "tokenizer": tokenizer, "run": run}))


def complete_sources(path: Path, loaded: dict[str, dict[str, str]], store: str, tokenizer: str, run: str) -> None:
    """`write_sources` for a run that goes on: what an older velm did not note."""
    noted = _noted(path)
    known = {**loaded, "store": store, "tokenizer": tokenizer, "run": run}
    if not known.keys() <= noted.keys():
        write_json(path / FILE, sealed(known | noted))


def refuse_other_tokenizer(run: Path, tokenizer: str, cure: str) -> None:
    """UserError when the weights of a run were trained with another tokenizer than the one of this digest."""
    trained_with = str(_noted(run).get("tokenizer", tokenizer))  # an older velm's run does not say
    if trained_with != tokenizer:
        raise UserError(
            f"{run} was trained with another tokenizer ({trained_with[:12]}) than this one ({tokenizer[:12]}), "
            f"so its words would be others: {cure}"
        )


def _noted(run: Path) -> dict[str, Any]:
    """What is in the run's file; nothing where an older velm wrote none. UserError when it is damaged."""
    if not (run / FILE).exists():
        return {}
    try:
        return read_sealed(run / FILE)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{run / FILE} cannot be read ({error}): remove it if what the run began with has not changed"
        ) from error


def noted_store(run: Path) -> str | None:
    """The hash of the store that a run was trained on; None where an older velm's does not say."""
    noted = _noted(run).get("store")
    return None if noted is None else str(noted)


def refuse_other_store(path: Path, store: Path, now: str) -> None:
    """UserError when the run in `path` was begun on another store than the one at `store`, of the hash `now`.

    A store that was built again from the same data has the same hash, and is no other.
    """
    then = noted_store(path)
    if then in (None, now):
        return
    where = store
    with contextlib.suppress(UserError):
        where = store_path(configs.load_dataset(path))
    raise UserError(
        f"{path} was begun on other data: the store {where} of hash {str(then)[:12]}, and {store} now has {now[:12]}; "
        f"go on with it by velm finetune checkpoint={path}, or give another name=, or fresh=true"
    )


def refuse_other_sources(path: Path, config: Any) -> None:
    """UserError when the run in `path` began with other weights than those that its options name now.

    An older velm's run folder does not say; weights that are gone cannot be others.
    """
    noted = _noted(path)
    digests = {key: loaded.get("sha256") for key in sources_of(config) if isinstance(loaded := noted.get(key), dict)}
    for key, source in sources_of(config).items():
        if key in digests and (file := weight_file(source)).is_file() and digest_of(file) != digests[key]:
            raise UserError(
                f"{path} began with other weights: {file} ({key}) has changed since then; give another name=, "
                "or fresh=true"
            )
