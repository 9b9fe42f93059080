"""What a training run is made of besides its numbers: moments and random states as named tensors, and back.

`engine/checkpoint.py` writes them as files; whether they fit the model at hand is decided here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from velm_cli.engine.optim import Ema
from velm_cli.engine.parallel import slice_like
from velm_cli.engine.ranks import Ranks

Files = dict[str, dict[str, Tensor]]  # file name -> its tensors
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's state of a parameter


def misfit(tensors: Files, moments: Any, task: nn.Module, ema: Ema | None) -> str | None:
    """What keeps these tensors from being restored; None if nothing does. `moments`: how many there should be."""
    if moments is not None and moments != len(tensors["optimizer"]):  # an older velm's checkpoint does not say
        return f"optimizer: {len(tensors['optimizer'])} tensors, not {moments}"
    parameters, buffers = dict(task.named_parameters()), {name for name, _ in task.named_buffers()}
    if line := _other_tensors("task", tensors["task"], task.state_dict()):
        return line
    if ema is not None:
        # An older velm's may hold more: what it trained then and what is frozen now.
        averaged = {name: tensor for name, tensor in tensors["ema"].items() if name in ema.average}
        if line := _other_tensors("ema", averaged, ema.average):
            return line
    for full_name, tensor in tensors["optimizer"].items():
        name, _, key = full_name.rpartition("/")
        if name in buffers:
            continue
        shape = () if key == "step" else parameters[name].shape if name in parameters else None
        if key not in MOMENTS or tensor.shape != shape:
            return f"optimizer: {full_name}"
    held = {full_name.rpartition("/")[0] for full_name in tensors["optimizer"]} - buffers
    if missing := [f"{name}/{key}" for name in held for key in MOMENTS if f"{name}/{key}" not in tensors["optimizer"]]:
        return f"optimizer: {min(missing)} is missing"
    state = torch.get_rng_state()
    if not all(t.dtype == torch.uint8 and t.ndim == 1 for t in tensors["random"].values()):
        return "random states are not bytes"
    if (cpu := tensors["random"].get("cpu")) is None or cpu.shape != state.shape:
        return "its random state has another length"
    return None


def _other_tensors(group: str, saved: dict[str, Tensor], own: Mapping[str, Tensor]) -> str | None:
    if saved.keys() != own.keys():
        return f"{group}: {min(saved.keys() ^ own.keys())} is in one of them only"
    for name, tensor in own.items():
        if saved[name].shape != tensor.shape or saved[name].is_floating_point() != tensor.is_floating_point():
            return f"{group}: {name} has another shape or type"
    return None


def optimizer_tensors(task: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state by parameter name: `model.text.embedding.weight/exp_avg` and so on."""
    names = {id(parameter): name for name, parameter in task.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": torch.as_tensor(value)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_optimizer(task: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters, buffers = dict(task.named_parameters()), {name for name, _ in task.named_buffers()}
    optimizer.state.clear()
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition("/")
        if name in buffers:  # gains of a detector's norms, which an older velm trained
            continue
        own = parameters[name]
        # Beside moments, shaped as their parameter, there is the number of steps.
        optimizer.state[own][key] = slice_like(own, tensor) if tensor.shape == own.shape else tensor.to(own.device)


def random_states(ranks: Ranks) -> dict[str, Tensor]:
    """The states of all ranks' generators: `cpu` and `cuda`, from the second rank on with its number."""
    own = {"cpu": torch.get_rng_state()}
    if ranks.device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state()
    states = ranks.of_all({name: state.numpy() for name, state in own.items()})
    return {
        f"{name}.{rank}" if rank else name: torch.from_numpy(state)
        for rank, of_rank in enumerate(states)
        for name, state in of_rank.items()
    }


def restore_random_state(states: dict[str, Tensor], ranks: Ranks, step: int) -> None:
    """Go on with this rank's random numbers; a rank that there was not begins with its own."""
    own = {kind: states.get(f"{kind}.{ranks.rank}" if ranks.rank else kind) for kind in ("cpu", "cuda")}
    if own["cpu"] is None:
        torch.manual_seed(seed_of(step, ranks.rank))
        return
    torch.set_rng_state(own["cpu"])
    if own["cuda"] is not None and ranks.device.type == "cuda":
        torch.cuda.set_rng_state(own["cuda"])


def seed_of(*numbers: int) -> int:
    """A seed for what the numbers name."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
