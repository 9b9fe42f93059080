"""AdamW, its parameter groups and its learning rate, a pure function of the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from velm_cli.engine.parallel import is_slice, slice_like
from velm_cli.learners.interface import Learner
from velm_cli.schema import LrSchedule, OptimConfig


def _plain(method: Any) -> Any:
    return getattr(method, "__wrapped__", method)


class AdamW(torch.optim.AdamW):
    """torch's own, but for wrappers that import the whole of torch's compiler (2 of a run's first 5 seconds).

    They keep the compiler out of these methods where a step is compiled, and velm's is not.
    """

    add_param_group = _plain(torch.optim.Optimizer.add_param_group)
    zero_grad = _plain(torch.optim.Optimizer.zero_grad)
    state_dict = _plain(torch.optim.Optimizer.state_dict)
    load_state_dict = _plain(torch.optim.Optimizer.load_state_dict)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        return _plain(torch.optim.AdamW.step)(self, closure)


def build_optimizer(learner: Learner, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) over what is trainable.

    Matrices decay, embeddings of words among them; biases, gains and other vectors do not, nor what modules name in
    `no_decay`. Parts of the learner may learn at a rate of their own (`Learner.rates`). Each group carries its `scale`
    of the rate.
    """
    undecayed = _undecayed(learner)
    # Parts at the full rate share a group: the order of the groups decides about the last bit of the gradients' norm,
    # and vision had a group of its own before the others could.
    scaled_by = {
        parameter: option
        for option, part in learner.rates()
        if option == "vision_lr_scale" or getattr(config, option) != 1
        for parameter in part
    }
    groups: dict[tuple[str, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in learner.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 and name not in undecayed
            # Slices and whole tensors (fsdp) cannot be updated in one call.
            key = (scaled_by.get(parameter, ""), decays, is_slice(parameter))
            groups.setdefault(key, []).append(parameter)
    return AdamW(
        [
            {
                "params": parameters,
                "scale": getattr(config, option) if option else 1.0,
                "weight_decay": config.weight_decay if decay else 0.0,
            }
            for (option, decay, _), parameters in sorted(groups.items())
        ],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def _undecayed(task: nn.Module) -> set[str]:
    """The names of the parameters that the `no_decay` of any module names, or of which it names a module above them.

    Any module may have one, those of external fusions too: names below it, of parameters and of modules, such as
    `position` or `net.embeddings.cls_token`.
    """
    heads = {
        f"{path}.{own}".lstrip(".") for path, module in task.named_modules() for own in getattr(module, "no_decay", ())
    }
    names = {name for name, _ in task.named_parameters()}
    return {name for name in names if any(name == head or name.startswith(f"{head}.") for head in heads)}


def learning_rate(config: OptimConfig, step: int, max_steps: int) -> float:
    """The rate of optimiser step `step` (the first is 0): linear warm-up, then the schedule.

    inverse_sqrt falls as sqrt(warm-up / step) and depends on no end (Vaswani et al. 2017, 5.3).
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule is LrSchedule.constant:
        return config.lr
    if config.schedule is LrSchedule.inverse_sqrt:
        return config.lr * math.sqrt(max(1, config.warmup_steps) / max(1, step + 1))
    progress = min(1.0, (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps))
    left = 1 - progress if config.schedule is LrSchedule.linear else 0.5 + 0.5 * math.cos(math.pi * progress)
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * left)


class Ema:
    """Exponential moving average of the trainable parameters (Polyak & Juditsky 1992).

    The decay grows to its full value as (1 + n) / (10 + n) after n steps (TensorFlow's `num_updates`): else more than a
    third of the average would be the initial weights for the first 1 / (1 - decay) steps.
    """

    def __init__(self, task: nn.Module, decay: float) -> None:
        self.decay = decay
        self.live = {name: p for name, p in task.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.live.items()}

    def update(self, steps: int) -> None:
        """Take in the weights as they are now; `steps` were done before the last one."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.live.values()], 1 - decay)

    def swap(self) -> None:
        """Exchange the live weights and the average; call it again to change back."""
        with torch.no_grad():
            for name, parameter in self.live.items():
                held = parameter.detach().clone()
                parameter.copy_(self.average[name])
                self.average[name].copy_(held)

    def load(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self.average.items():
            tensor.copy_(slice_like(tensor, state[name]))
