"""The folder of an evaluation: a new one where another evaluation has its name, the scores again where it is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from velm_cli import configs
from velm_cli.engine.folder import run_path
from velm_cli.errors import UserError
from velm_cli.files import read_sealed
from velm_cli.metrics.scores import read_summary, scores_of_summary, table
from velm_cli.schema import EvaluateRoot


def result_path(config: EvaluateRoot, about: dict[str, str]) -> Path:
    """The evaluation's folder; a new one where the old is of other weights, data or options: nothing is overwritten."""
    path = run_path(config)
    number = 2
    while (path / "DONE").exists() and _holds_another(path, config, about):
        path = path.with_name(f"{config.name}.{number}")
        number += 1
    return path


def _holds_another(path: Path, config: EvaluateRoot, about: dict[str, str]) -> bool:
    """Whether the finished evaluation in `path` is of other weights, data, decoding or metrics."""
    before = _read(path, lambda: read_sealed(path / "weights.json"))
    saved = OmegaConf.to_container(configs.read_config(path / "config.yaml"))
    assert isinstance(saved, dict)
    options = ("split", "limit", "seed", "dataset", "task", "decode", "metrics", "eval")
    differs = any(key in saved and _differs(saved[key], getattr(config, key)) for key in options)
    # An older velm's does not say of which data it is.
    other_data = any(before.get(key, about.get(key)) != about.get(key) for key in ("data", "df", "allowed"))
    return before.get("sha256") != about["sha256"] or other_data or differs


def _differs(saved: Any, asked: Any) -> bool:
    """Whether an option, or one of a group's, is another one. What an older velm did not know was as by default."""
    if not is_dataclass(asked):
        return bool(saved != asked)
    defaults = _plain(cast(Any, type(asked))())
    return not isinstance(saved, dict) or bool(defaults | saved != defaults | _plain(asked))


def _plain(options: Any) -> dict[str, Any]:
    """The options of a group as a config.yaml holds them."""
    plain = OmegaConf.to_container(OmegaConf.create(configs.to_yaml(options)))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def report_again(path: Path) -> float | None:
    """The scores of a finished evaluation once more; its primary score."""
    if not (path / "scores.json").exists():
        print(f"{path} is complete (fresh=true predicts again): {path / 'predictions.json'}")
        return None
    saved = _read(path, lambda: read_summary(path))
    scores = scores_of_summary(saved)
    print(f"{path} is complete (fresh=true evaluates again)\n{table(scores)}")
    return scores.headline


def _read(path: Path, read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return read()
    except PermissionError as error:  # nothing is wrong with what may not be read
        raise UserError(f"{error.filename}: {error.strerror}; make it readable") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); evaluate again with fresh=true") from error
