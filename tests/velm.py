"""Runs the command line: in a process of its own as users do, or in this one, which is quicker."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

# Training small enough for a test: a second or two of steps on two dozen images.
TINY = [
    "dataset.num_train=24", "dataset.num_val=8", "dataset.num_test=8", "tokenizer.min_count=1",
]  # fmt: skip
TINY_MODEL = [
    "vision=vit", "vision.width=32", "vision.layers=1", "vision.heads=2", "text.width=32", "text.layers=1", "text.heads=2",
    "fusion.layers=1", "fusion.heads=2", "run.batch_size=4", "run.log_every=1",
]  # fmt: skip


def velm(*args: str, cwd: Path, env: dict[str, str] | None = None, timeout: float = 600) -> subprocess.CompletedProcess:
    """`velm ARGS` in `cwd`; stdout and stderr are text."""
    return subprocess.run(
        [sys.executable, "-m", "velm_cli", *args],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def call(*args: str) -> int:
    """`velm ARGS` in this process and in its working directory; the exit code."""
    from velm_cli.cli import main

    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    return int(stop.value.code or 0)
