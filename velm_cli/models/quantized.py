"""text.quantize=nf4: a language model's frozen matrices in 4 bits while it is trained (QLoRA; Dettmers et al. 2023).

By bitsandbytes. The run's files hold the weights as they were: training packs them in memory, and whoever loads the run
gets the values that 4 bits stand for, as ordinary weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from velm_cli.errors import UserError
from velm_cli.models.layers import layers_in, product_dtype
from velm_cli.models.lora import conv1d, no_fetched_kernels
from velm_cli.models.text.interface import TextEncoder
from velm_cli.schema import CausalLMConfig, Quantize, TextConfig

BLOCK = 64  # weights that share a scale


class FourBit(nn.Module):
    """y = x W^T + b, with W in 4 bits and a scale for each 64 weights; no gradient goes to W.

    W is no parameter and in no state dict: it is frozen, and the run keeps what it was made of.
    """

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, *, transposed: bool) -> None:
        super().__init__()
        self.packed, self.scales = _pack(weight)
        self.shape, self.transposed, self.bias = weight.shape, transposed, bias

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FourBit:
        super()._apply(fn, recurse)
        self.packed, self.scales = fn(self.packed), fn(self.scales)
        return self

    @property
    def weight(self) -> Tensor:
        """In float32, as the layer that it stands for has it."""
        return self.unpacked(torch.float32)

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        return _unpack(self.packed, self.scales, self.shape, dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(product_dtype(x))
        y: Tensor = _Product.apply(x, self)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _Product(torch.autograd.Function):
    """x W^T; backward unpacks W again instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FourBit) -> Tensor:
        ctx.layer = layer
        weight = layer.unpacked(x.dtype)
        return x @ weight if layer.transposed else F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        weight = ctx.layer.unpacked(gradients[0].dtype)
        return gradients[0] @ (weight.T if ctx.layer.transposed else weight), None


def is_packed(config: TextConfig) -> bool:
    """Whether a text encoder of these options is trained in 4 bits."""
    return isinstance(config, CausalLMConfig) and config.quantize is Quantize.nf4


def pack_frozen(text: TextEncoder) -> int:
    """Put the frozen matrices of the layers of `text` into 4 bits, in place; how many. Their memory is freed."""
    packed = 0
    for parent, name, layer in list(_frozen_linear(text)):
        four = FourBit(layer.weight.detach(), layer.bias, transposed=isinstance(layer, conv1d()))
        setattr(parent, name, four.train(layer.training))
        packed += layer.weight.numel()
        layer.weight.data = layer.weight.data.new_empty(0)  # whoever else holds it: torch's ddp
    return packed


def packed_bytes(text: TextEncoder) -> int:
    """How many bytes `pack_frozen` would save."""
    frozen = (layer.weight for _, _, layer in _frozen_linear(text))
    return sum(
        weight.numel() * weight.element_size() - weight.numel() // 2 - 4 * weight.numel() // BLOCK for weight in frozen
    )


def rounded(state: Mapping[str, Tensor], text: TextEncoder, prefix: str = "model.text.") -> dict[str, Tensor]:
    """The tensors of a learner that was trained in 4 bits, the matrices of its `text` as what these stand for."""
    names = {layer: name for name, layer in text.named_modules()}
    out = dict(state)
    for parent, name, _ in _linear(text):
        plain = f"{prefix}{names[parent]}.{name}".removesuffix(".base_layer")  # with updates around it, or without
        for path in (plain, f"{plain}.base_layer"):
            if (key := f"{path}.weight") in out:
                weight = out[key]
                out[key] = _unpack(*_pack(weight), weight.shape, torch.float32).to(weight.dtype)
    return out


def _frozen_linear(text: TextEncoder) -> Iterator[tuple[nn.Module, str, Any]]:
    return ((parent, name, layer) for parent, name, layer in _linear(text) if not layer.weight.requires_grad)


def _linear(text: TextEncoder) -> Iterator[tuple[nn.Module, str, Any]]:
    """The linear layers in the layers of `text`, without updates' own: where each is, and what it is called there."""
    for block in dict.fromkeys(layers_in(text)):
        for parent in block.modules():
            for name, layer in parent.named_children():
                if type(layer) in (nn.Linear, conv1d()) and not name.startswith("default"):
                    yield parent, name, layer


def _pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """4 bits of each weight, two in a byte, and the scales. By way of bfloat16, so that types of weights agree.

    In a row of whole blocks: of matrices with other widths bitsandbytes 0.50 returns something else on a CPU.
    """
    library = _library()
    row = weight.to(torch.bfloat16).flatten()
    row = F.pad(row, (0, -row.numel() % BLOCK))
    packed, state = library.quantize_4bit(row, blocksize=BLOCK, quant_type="nf4")
    return packed, state.absmax


def _unpack(packed: Tensor, scales: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    library = _library()
    code = library.get_4bit_type("nf4", device=packed.device)
    row = torch.Size((2 * packed.numel(),))
    state = library.QuantState(absmax=scales, shape=row, code=code, blocksize=BLOCK, quant_type="nf4", dtype=dtype)
    found: Tensor = library.dequantize_4bit(packed, state).reshape(-1)[: shape.numel()].view(shape)
    return found


def _library() -> Any:
    try:
        with no_fetched_kernels():
            import bitsandbytes.functional as library
    except ImportError as error:
        raise UserError(f"text.quantize=nf4 needs bitsandbytes ({error}): pip install bitsandbytes") from None
    return library
