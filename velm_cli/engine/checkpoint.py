"""Checkpoints: a folder of safetensors and JSON a step, whole or absent, that brings a run back exactly.

    checkpoints/step-00000200/  task.safetensors  optimizer.safetensors  ema.safetensors
                                random.safetensors  state.json

`state.json` is written last and carries the SHA-256 of the other files, so a torn or damaged checkpoint
is recognised and the one before it is used. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from velm_cli.engine.optim import Ema
from velm_cli.models.weights import save_state


@dataclass(slots=True)
class Progress:
    """What the loop knows besides tensors. The sampler's cursor follows from `step`."""

    step: int = 0  # optimiser steps done
    best: float | None = None  # best validation CIDEr so far
    best_step: int | None = None
    bad_validations: int = 0  # validations since the best one
    validated_step: int = 0  # the last step whose validation was completed
    seconds: float = 0.0  # training time so far, over all sessions
    stopped_early: bool = False


def save_checkpoint(
    folder: Path,
    *,
    task: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: Ema | None,
    progress: Progress,
    keep: int,
) -> Path:
    """Write the checkpoint of `progress.step` under `folder`, then remove all but the newest `keep`."""
    final = folder / f"step-{progress.step:08d}"
    part = folder / f".part-{progress.step:08d}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_state(task.state_dict(), part / "task.safetensors")
    save_state(_optimizer_tensors(task, optimizer), part / "optimizer.safetensors")
    if ema is not None:
        save_state(ema.average, part / "ema.safetensors")
    save_state(_random_state(), part / "random.safetensors")
    state = {"progress": asdict(progress), "sha256": {f.name: _sha256(f) for f in sorted(part.iterdir())}}
    with open(part / "state.json", "w", encoding="utf-8") as file:
        json.dump(state, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    if final.exists():  # the same step again, after a resume: the two are equal
        shutil.rmtree(final)
    os.replace(part, final)
    _fsync_folder(folder)
    for old in _steps(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_newest(
    folder: Path, *, task: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None
) -> tuple[Progress | None, list[str]]:
    """Restore the newest whole checkpoint; None if there is none. Also lines about damaged ones."""
    notes = []
    for checkpoint in reversed(_steps(folder)):
        problem = _damage(checkpoint)
        if problem:
            notes.append(f"checkpoint {checkpoint.name} is damaged ({problem}); using the one before it")
            continue
        task.load_state_dict(load_file(checkpoint / "task.safetensors"))
        _restore_optimizer(task, optimizer, load_file(checkpoint / "optimizer.safetensors"))
        if ema is not None:
            ema.load(load_file(checkpoint / "ema.safetensors"))
        _restore_random_state(load_file(checkpoint / "random.safetensors"))
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        return Progress(**state["progress"]), notes
    return None, notes


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _damage(checkpoint: Path) -> str | None:
    try:
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        for name, digest in state["sha256"].items():
            if _sha256(checkpoint / name) != digest:
                return f"{name} has changed"
        Progress(**state["progress"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return None


def _optimizer_tensors(task: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state by parameter name: `model.text.embedding.weight/exp_avg` and so on."""
    names = {id(parameter): name for name, parameter in task.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": torch.as_tensor(value)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def _restore_optimizer(task: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = dict(task.named_parameters())
    optimizer.state.clear()
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition("/")
        optimizer.state[parameters[name]][key] = tensor.to(parameters[name].device)


def _random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_random_state(state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
