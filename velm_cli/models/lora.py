"""Low-rank updates of frozen weights (LoRA; Hu et al. 2022) in an encoder of transformers, by peft.

W x + (alpha / rank) B A x: W is frozen, A is drawn, B begins at 0. peft's layers stand around the linear ones, whose
weights are then called `base_layer.weight`; what one run has trained so, another may go on with, or take as weights.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from velm_cli.errors import UserError
from velm_cli.schema import LowRank, TextConfig, VisionConfig

BASE, DOWN, UP = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"


def add_lora(net: nn.Module, config: LowRank, group: str) -> None:
    """Freeze `net` and give its linear layers trainable updates, as the options of `group` say.

    UserError where `lora_targets` names no layer.
    """
    if not config.lora_rank:
        return
    try:
        with no_fetched_kernels():
            from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError(f"{group}.lora_rank needs peft: pip install peft") from None
    names = _targets(net, config, group)
    net.requires_grad_(False)
    alpha = config.lora_alpha or 2 * config.lora_rank
    transposed = isinstance(net.get_submodule(names[0]), conv1d())
    inject_adapter_in_model(
        LoraConfig(r=config.lora_rank, lora_alpha=alpha, target_modules=names, fan_in_fan_out=transposed), net
    )


def scale_of(config: LowRank) -> float:
    """What the product of the two matrices is multiplied with."""
    return (config.lora_alpha or 2 * config.lora_rank) / config.lora_rank


def _targets(net: nn.Module, config: LowRank, group: str) -> list[str]:
    """The paths of the linear layers in `net` that get updates. torch's attention reads its weights past the layer."""
    past = {f"{path}." for path, part in net.named_modules() if isinstance(part, nn.MultiheadAttention)}
    kinds = (nn.Linear, conv1d())
    paths = [path for path, part in net.named_modules() if isinstance(part, kinds) and not path.startswith(tuple(past))]
    wanted = list(config.lora_targets)
    for name in wanted:
        if not any(_is(path, name) for path in paths):
            known = ", ".join(sorted({path.rpartition(".")[2] for path in paths}))
            raise UserError(f"{group}.lora_targets: no linear layer is called {name}; there are {known}")
    return [path for path in paths if not wanted or any(_is(path, name) for name in wanted)]


def _is(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def conv1d() -> type[nn.Module]:
    """GPT-2's linear layer, whose matrix lies the other way round."""
    from transformers.pytorch_utils import Conv1D

    return Conv1D


def merge(module: nn.Module) -> None:
    """Add all updates in `module` to the weights that they update; the layers are then as without them.

    ValueError where a sum is not finite.
    """
    with no_fetched_kernels():
        from peft.tuners.tuners_utils import BaseTunerLayer
    for path, part in list(module.named_modules()):
        if isinstance(part, BaseTunerLayer):
            part.merge(safe_merge=True)
            parent, _, name = path.rpartition(".")
            setattr(module.get_submodule(parent), name, part.get_base_layer())


@contextlib.contextmanager
def no_fetched_kernels() -> Iterator[None]:
    """Within it bitsandbytes, which peft imports where it is installed, finds no package that fetches its kernels.

    It would run code from the hub with it, which velm never does, and tells of it where there is none.
    """
    log, before = logging.getLogger("bitsandbytes"), sys.modules.get("kernels")
    level = log.level
    log.setLevel(logging.ERROR)
    sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        log.setLevel(level)
        del sys.modules["kernels"]
        if before is not None:
            sys.modules["kernels"] = before


def carried_over(
    state: Mapping[str, Tensor], model: nn.Module, trained: Mapping[str, float], now: Mapping[str, float]
) -> tuple[dict[str, Tensor], list[str]]:
    """A run's tensors under the names, and with the updates, of a learner with this `model`; lines about it.

    Updates of the same rank and scale go on. Others are added to the weights; the learner's own, where it has any, then
    begin at 0. `trained`, `now`: the scales of updates in the run and here, by the beginnings of names.
    """
    out = dict(state)
    own = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    ranks: dict[str, set[int]] = {"go on": set(), "are added to the weights": set()}
    for layer in [name.removesuffix(DOWN) for name in state if name.endswith(DOWN)]:
        part = next((part for part in trained if layer.startswith(part)), None)
        if part is None:  # the run's config, changed by hand, knows of no updates
            continue
        down, up = state[layer + DOWN], state[layer + UP]
        same = all(name in own and own[name].shape == state[name].shape for name in (layer + DOWN, layer + UP))
        if same and trained[part] == now.get(part):
            ranks["go on"].add(len(down))
            continue
        ranks["are added to the weights"].add(len(down))
        del out[layer + DOWN], out[layer + UP]
        weight = out[f"{layer}{BASE}weight"]
        update = trained[part] * (up.float() @ down.float())
        out[f"{layer}{BASE}weight"] = weight + (update.T if _lies_transposed(model, layer, weight, update) else update)
    for name in list(out):
        if name not in own and (other := _renamed(name, own)) is not None:
            out[other] = out.pop(name)
    lines = [
        f"LoRA        updates of rank {', '.join(map(str, sorted(of)))} {what}" for what, of in ranks.items() if of
    ]
    return out, lines


def _renamed(name: str, own: Mapping[str, Tensor]) -> str | None:
    """What the learner calls a layer's weight or bias, with updates around the layer or without."""
    layer, _, end = name.rpartition(".")
    others = (name.replace(BASE, "."), f"{layer}{BASE}{end}")
    return next((other for other in others if other in own), None)


def _lies_transposed(model: nn.Module, layer: str, weight: Tensor, update: Tensor) -> bool:
    if weight.shape[0] != weight.shape[1]:
        return weight.shape != update.shape
    try:
        part: Any = model.get_submodule(layer.removeprefix("model."))
    except AttributeError:  # the learner has no such layer, and no use for its weight
        return False
    return isinstance(getattr(part, "base_layer", part), conv1d())


def scales(vision: VisionConfig, text: TextConfig) -> dict[str, float]:
    """The scale of updates by the beginning of a learner's names; the source's encoder is of the text's kind."""

    def found() -> Iterator[tuple[str, float]]:
        for part, config in (("model.vision.", vision), ("model.text.", text), ("model.source.", text)):
            if isinstance(config, LowRank) and config.lora_rank:
                yield part, scale_of(config)

    return dict(found())
