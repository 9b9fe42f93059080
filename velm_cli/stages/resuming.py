"""What a run that goes on is refused for, and what it says: other data, another length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from velm_cli import configs
from velm_cli.data.store import Store
from velm_cli.data.together import Together
from velm_cli.engine.checkpoint import Checkpoints
from velm_cli.engine.folder import (
    has_begun,
    is_complete,
    refuse_foreign,
    refuse_other_experiment,
    refuse_to_restart,
    resize_of,
    run_path,
)
from velm_cli.engine.optim import learning_rate
from velm_cli.engine.ranks import Ranks
from velm_cli.errors import UserError
from velm_cli.lineage import identity_of, refuse_other_sources, refuse_other_store, refuse_other_tokenizer
from velm_cli.place import Place
from velm_cli.stages.task_data import TaskData, made_of


def checked_to_go_on(
    path: Path, config: Any, store: Store | Together, checkpoints: Checkpoints, *, only_look: bool = False
) -> list[str]:
    """Lines about how the run in `path` goes on, if one has begun there; UserError where it cannot."""
    refuse_other_sources(path, config)
    if has_begun(path):
        refuse_other_store(path, store.path, store.hash)
    refuse_other_tokenizer(path, checkpoints.made_of["tokenizer"], "give another name=, or fresh=true")
    if checkpoints.find(only_look=only_look) is not None:
        return resumed_steps(path, config, checkpoints.step)
    refuse_to_restart(path, checkpoints.notes)
    return []


def would_find(config: Any, store: Store | Together, parts: Sequence[TaskData]) -> list[str]:
    """Lines about the run folder that the command without `dry_run` would meet; UserError where it would be refused.

    Nothing in the folder changes.
    """
    config = replace(config, dry_run=False, vision=replace(config.vision))
    path = run_path(config)
    if not path.exists():
        return []
    if is_complete(path, config):
        refuse_other_sources(path, config)
        return [f"note: {path} is complete: the command would change nothing (fresh=true trains again)"]
    refuse_foreign(path)
    config.vision.resize = resize_of(path, config)
    refuse_other_experiment(path, config)
    checkpoints = Checkpoints(
        path / "checkpoints",
        Ranks(Place(), torch.device("cpu")),
        keep=config.run.keep_checkpoints,
        run=identity_of(path, config),
        made_of=made_of(store.hash, parts),
    )
    lines = checked_to_go_on(path, config, store, checkpoints, only_look=True)
    if checkpoints.found is None:
        return lines
    return [f"note: {path} has been trained for {checkpoints.step:,} steps: the command would go on from there", *lines]


def resumed_steps(path: Path, config: Any, done: int) -> list[str]:
    """A line where the run in `path`, of which `done` steps are trained, goes on to another `run.max_steps`.

    UserError where that lies behind it.
    """
    now = config.run.max_steps
    if done > now:
        raise UserError(
            f"run.max_steps={now}: the model in {path} has {done:,} steps already; give at least run.max_steps={done}, "
            "or another name="
        )
    try:
        then = configs.load_run_config(path).run.max_steps
    except UserError:
        return []
    if then == now:
        return []
    rates = [learning_rate(config.optim, done, steps) for steps in (then, now)]
    changes = f"; optim.lr {rates[0]:.2g} -> {rates[1]:.2g} at step {done}" if rates[0] != rates[1] else ""
    return [f"note: run.max_steps {then} -> {now}: the schedule is laid anew{changes}"]
