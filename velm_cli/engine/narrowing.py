"""run.frozen_dtype=auto: frozen matrices lie in memory as autocast multiplies them, in half the room.

Autocast rounds a matrix to bfloat16 (float16) for each product. What never changes is rounded once: losses, gradients
and the words that are written stay the same to the bit, since all that else looks at a matrix is left in float32. Files
are not concerned: `frozen.safetensors` has been written before, and a model is loaded from it as ever.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from velm_cli.models.velm import VelmModel

PREFIX = "model."  # of the model's tensors in the learner's


def narrow_frozen(model: VelmModel, kept: Mapping[str, torch.dtype], dtype: torch.dtype) -> int:
    """Keep frozen matrices of the encoders in `dtype`, that of autocast's products; the bytes that are saved.

    `kept`: names of the learner's tensors that lie in the run's file of frozen ones, and the types that hold them
    exactly there. The table of words is kept so if that is exact: what is looked up is then converted back.
    """
    found: dict[int, tuple[str, Tensor]] = {
        id(parameter): (name, parameter) for name, parameter in model.named_parameters()
    }
    saved = 0
    for part in _products(model):
        for own in (part.weight, part.bias):
            if own is None or id(own) not in found:
                continue
            name, parameter = found.pop(id(own))
            if PREFIX + name in kept and not parameter.requires_grad:
                saved += _narrow(parameter, dtype)
    for table in _tables(model):
        name, parameter = found.get(id(table.weight), ("", table.weight))
        if kept.get(PREFIX + name) is dtype and not parameter.requires_grad:
            saved += _narrow(parameter, dtype)
            table.register_forward_hook(_as_float32)
    return saved


def _products(model: VelmModel) -> Iterator[nn.Module]:
    """The layers that are a product and nothing else: a subclass may do more with its weight."""
    conv1d = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", nn.Linear)  # GPT-2's
    for part in filter(None, (model.vision, model.text, model.source)):
        for layer in part.modules():
            if type(layer) in (nn.Linear, nn.Conv2d, conv1d):
                yield layer


def _tables(model: VelmModel) -> Iterator[nn.Embedding]:
    """The tables of words of the language models of transformers, which publish them in half precision."""
    for part in (model.text, model.source.encoder if model.source is not None else None):
        net = getattr(part, "net", None)
        table = net.get_input_embeddings() if net is not None else None
        if type(table) is nn.Embedding:
            yield table


def _narrow(parameter: Tensor, dtype: torch.dtype) -> int:
    if parameter.dtype is not torch.float32:
        return 0
    parameter.data = parameter.data.to(dtype)
    return parameter.numel() * (4 - dtype.itemsize)


def _as_float32(_: nn.Module, __: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
    return embedded.float()
