"""One short file a stage: build, run, return a number.

`run` is the boundary: a composed Hydra config comes in, dataclasses go further.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from velm_cli import compose, console
from velm_cli.engine.folder import best_figure, is_complete, run_path
from velm_cli.engine.sources import refuse_other_sources
from velm_cli.errors import UserError
from velm_cli.place import place
from velm_cli.quiet import quiet
from velm_cli.validate import validate


def run(config: DictConfig) -> float | None:
    """Run the stage that `config` belongs to; its figure (for sweepers)."""
    stage = config.stage
    typed = settle(config, one_of_many=HydraConfig.get().mode == RunMode.MULTIRUN)
    validate(typed)
    if stage in ("preprocess", "train", "finetune", "evaluate") and not typed.dry_run:
        console.work_is_in_files()
    if stage in ("train", "finetune") and not typed.dry_run and is_complete(path := run_path(typed), typed):
        refuse_other_sources(path, typed)
        print(f"complete    {path}  (fresh=true trains again)")
        return best_figure(path)
    # Threads that wait for each other spin before they sleep; on a machine that has anything else to do, the
    # default spins away the very core that the other thread needs (docs/log.md). Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    if place().world > 1:
        # Or each process is told once that the search for unused parameters (engine/parallel.py) is not free.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if os.environ.get("VELM_TRACEBACK", "") in ("", "0"):
        quiet()
    # Imported here, so that a command pays only for what it uses (torch takes seconds).
    from velm_cli.data.arrays import end_in_a_line_when_cut_short

    end_in_a_line_when_cut_short()
    name = "train" if stage == "finetune" else stage
    return importlib.import_module(f"velm_cli.stages.{name}").run(typed)


def settle(config: DictConfig, *, one_of_many: bool) -> Any:
    """The dataclass of a composed config; train and finetune get their name here, where the command is known.

    `one_of_many`: it is a point of a sweep, so a name that was given is only the beginning of its name.
    """
    stage = config.stage
    if stage in compose.STAGES_FROM_CHECKPOINT and OmegaConf.is_missing(config, "checkpoint"):
        raise UserError(f"checkpoint is not set: velm {stage} checkpoint=runs/train/NAME")
    if stage == "score":
        for key in ("predictions", "references"):
            if OmegaConf.is_missing(config, key):
                raise UserError(f"{key} is not set: velm score predictions=FILE references=FILE")
    typed = compose.to_dataclass(config)
    if stage not in ("train", "finetune"):
        return typed
    hydra = HydraConfig.get()
    overrides, choices = list(hydra.overrides.task), dict(hydra.runtime.choices)
    if typed.name is None:
        typed.name = compose.default_name(typed, overrides, choices)
    elif one_of_many:
        typed.name = compose.slug(f"{typed.name}-{compose.default_name(typed, overrides, choices)}")
    return typed
