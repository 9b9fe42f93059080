"""One short file a stage: build, run, return a number.

`run` is the boundary: a composed Hydra config comes in, dataclasses go further.
"""

from __future__ import annotations

import importlib
import os

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from velm_cli import compose
from velm_cli.errors import UserError
from velm_cli.validate import validate


def run(config: DictConfig) -> float | None:
    """Run the stage that `config` belongs to; its figure (for sweepers)."""
    stage = config.stage
    if stage in compose.STAGES_FROM_CHECKPOINT and OmegaConf.is_missing(config, "checkpoint"):
        raise UserError(f"checkpoint is not set: velm {stage} checkpoint=runs/train/NAME")
    if stage == "score":
        for key in ("predictions", "references"):
            if OmegaConf.is_missing(config, key):
                raise UserError(f"{key} is not set: velm score predictions=FILE references=FILE")
    typed = compose.to_dataclass(config)
    if stage in ("train", "finetune"):
        _name(typed)
    validate(typed)
    # Threads that wait for each other spin before they sleep; on a machine that has anything else to do, the
    # default spins away the very core that the other thread needs (docs/log.md). Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    # Imported here, so that a command pays only for what it uses (torch takes seconds).
    name = "train" if stage == "finetune" else stage
    return importlib.import_module(f"velm_cli.stages.{name}").run(typed)


def _name(config) -> None:
    """Settle the run's name here, where the command is known."""
    hydra = HydraConfig.get()
    overrides, choices = list(hydra.overrides.task), dict(hydra.runtime.choices)
    if config.name is None:
        config.name = compose.default_name(config, overrides, choices)
    elif hydra.mode == RunMode.MULTIRUN:  # one name for many points: each gets its own folder
        config.name = compose.slug(f"{config.name}-{compose.default_name(config, overrides, choices)}")
