"""A finished run folder as tables and pages need it: its options, its scores, its size and speed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from velm_cli import configs
from velm_cli.errors import UserError
from velm_cli.metrics.scores import read_images, read_summary
from velm_cli.report.logs import read_figures
from velm_cli.schema import LATER_DECODING, DecodeConfig
from velm_cli.schema.metric_names import CAPTION_COLUMNS, CAPTION_PRIMARY, Column, columns_of_json


@dataclass(frozen=True, slots=True)
class ScoredRun:
    """A finished run folder of train, finetune or evaluate."""

    folder: Path
    options: dict[str, Any]  # every option of the experiment, flat; of the training run if it is an evaluation
    scores: dict[str, float | None]
    per_image: dict[Any, dict[str, float | None]]
    trained: int | None  # parameters that learn
    captions_per_s: float | None  # in training, median over the log lines
    intervals: dict[str, tuple[float, float] | None] = field(default_factory=dict)  # 95 %, of the scores
    task: str = "caption"
    columns: tuple[Column, ...] = CAPTION_COLUMNS
    primary: str = CAPTION_PRIMARY
    floors: dict[str, dict[str, float | None]] = field(default_factory=dict)  # what trivial rules score
    blind: str = "none"  # what was kept from the model (eval.blind)
    twin: str = ""  # equal for evaluations that differ in `blind` alone


def read_run(folder: Path) -> ScoredRun:
    """Raises UserError when `folder` is not a run folder with scores."""
    try:
        scores = read_summary(folder)
        per_image = {image["image_id"]: image["scores"] for image in read_images(folder)}
    except FileNotFoundError as error:
        hint = "" if (folder / "config.yaml").is_file() else "it is not a run folder"
        raise UserError(f"{folder}: {hint or 'it has no scores (yet)'}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: its scores are damaged ({error}); evaluate again with fresh=true") from error
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: it is no run folder but scores of velm score, whose page compares two: vs=OTHER")
    config = _config(folder)
    home, blind = folder, "none"
    if config.get("stage") == "evaluate":
        if not (
            isinstance(config.get("checkpoint"), str) and isinstance(config.get("decode"), dict) and "split" in config
        ):
            raise UserError(f"{folder / 'config.yaml'} is not a config of this version of velm")
        if (model := configs.foreign_model(config["checkpoint"])) is None:
            home = configs.run_folder_of(config["checkpoint"])
            options = configs.experiment_of(_config(home))
        else:  # nobody knows how it was trained
            options = {"model": configs.FOREIGN + Path(model).name}
        decode = _as_by_default() | config["decode"]
        options |= {f"decode.{key}": value for key, value in decode.items() if key != "batch_size"}
        options["split"] = config["split"]
        of_task = config.get("task")  # an older velm's has none, or the same as the run
        options |= {f"task.{key}": value for key, value in (of_task if isinstance(of_task, dict) else {}).items()}
        blind = _blind(config)
        options["eval.blind"] = blind
    else:
        options = configs.experiment_of(config) | {"split": "val"}  # of which the scores at the end of training are
    options.pop("checkpoint", None)
    start: dict[str, Any] = {}
    speeds: list[float] = []
    if (home / "metrics.jsonl").is_file():
        lines = read_figures(home)
        start = next((line for line in reversed(lines) if line["kind"] == "start"), {})
        speeds = [line["captions_per_s"] for line in lines if math.isfinite(line.get("captions_per_s") or math.nan)]
    columns = columns_of_json(scores.get("columns"))
    same = {key: value for key, value in config.items() if key in ("checkpoint", "split", "limit", "dataset", "seed")}
    return ScoredRun(
        folder=folder,
        options=options,
        scores={column.key: scores.get(column.key) for column in columns},
        per_image=per_image,
        trained=start.get("trained"),
        captions_per_s=float(np.median(speeds)) if speeds else None,
        intervals={name: (ends[0], ends[1]) for name, ends in scores.get("intervals", {}).items() if ends},
        task=scores["task"],
        columns=columns,
        primary=scores["primary"],
        floors=scores.get("floors", {}),
        blind=blind,
        twin=json.dumps([options | {"eval.blind": ""}, same, scores.get("weights")], sort_keys=True, default=str),
    )


def _as_by_default() -> dict[str, Any]:
    """The options of decoding that an older velm's evaluation does not name."""
    return {name: getattr(DecodeConfig(), name) for name in LATER_DECODING}


def _blind(config: Mapping[str, Any]) -> str:
    node = config.get("eval")
    return str(node.get("blind", "none")) if isinstance(node, dict) else "none"


def _config(folder: Path) -> dict[str, Any]:
    config = OmegaConf.to_container(configs.read_config(folder / "config.yaml"))
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise UserError(f"{folder / 'config.yaml'} is not a config of this version of velm")
    return {str(key): value for key, value in config.items()}


def names_of(runs: Sequence[ScoredRun]) -> list[str]:
    """What each run is called in a page: `fusion=add seed=0`, as the table's columns; else by its folder."""
    if len(runs) == 1:
        return [runs[0].folder.resolve().name]
    common = set.intersection(*(set(run.options) for run in runs))
    keys = sorted(key for key in common if len({json.dumps(run.options[key], default=str) for run in runs}) > 1)
    keys.sort(key=lambda key: key == "seed")  # last
    names = [" ".join(f"{key.removesuffix('.kind')}={run.options[key]}" for key in keys) for run in runs]
    if len(set(names)) < len(runs):
        names = [run.folder.resolve().name for run in runs]
    return names if len(set(names)) == len(runs) else [str(run.folder) for run in runs]
