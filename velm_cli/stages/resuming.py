"""What a run that goes on is refused for, and what it says: other data, another length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from velm_cli import compose
from velm_cli.engine.optim import learning_rate
from velm_cli.errors import UserError


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
        then = compose.load_run_config(path).run.max_steps
    except UserError:
        return []
    if then == now:
        return []
    rates = [learning_rate(config.optim, done, steps) for steps in (then, now)]
    changes = f"; optim.lr {rates[0]:.2g} -> {rates[1]:.2g} at step {done}" if rates[0] != rates[1] else ""
    return [f"note: run.max_steps {then} -> {now}: the schedule is laid anew{changes}"]
