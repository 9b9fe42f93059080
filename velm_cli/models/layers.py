"""Transformer layers shared by the vision encoder, the text encoder and the fusions.

Shape legend: B images, N sequences (N = B * K when each image has K captions or beams), T text
positions, S image positions, D width, H heads, d = D / H. What decoding carries along is in `state.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from velm_cli.data.packing import Packing
from velm_cli.models.attention import attend
from velm_cli.models.rows import Seen, attend_rows
from velm_cli.models.state import ImageItself, ImageKeys, KeyValue, Layer


def product_dtype(x: Tensor) -> torch.dtype:
    """In which matrix products take `x`: autocast's where that is on, else its own."""
    device = x.device.type
    # A dry run's meta device knows no autocast, and torch raises where it is asked.
    casts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if casts else x.dtype


@contextmanager
def without_gradients() -> Iterator[None]:
    """`torch.no_grad` for one of several passes within the same autocast.

    Autocast keeps the weights that it has cast, and up to torch 2.9 those of a pass without gradients are used by the
    next pass, whose weights then silently get none (pytorch#105211, #158232). So they are cast again after this one.
    """
    try:
        with torch.no_grad():
            yield
    finally:
        torch.clear_autocast_cache()


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, for losses and probabilities of half-precision logits; float64 stays float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def sinusoids(position: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Positions (...) as sines and cosines (..., width); Vaswani et al. 2017, 3.5."""
    half = width // 2
    rate = torch.exp(torch.arange(half, device=position.device) * (-9.210340371976184 / max(1, half)))  # ln(10000)
    angle = position[..., None] * rate
    return F.pad(torch.cat([angle.sin(), angle.cos()], dim=-1), (0, width % 2)).to(dtype)


def soft_capped(x: Tensor, cap: float) -> Tensor:
    """cap * tanh(x / cap), so within +-cap (Gemma 2; Riviere et al. 2024); x itself where cap is 0."""
    return x if not cap else cap * torch.tanh(x / cap)


class Dropout(nn.Dropout):
    """Dropout (Srivastava et al. 2014); on a CPU its masks are drawn 3 times as fast as torch's.

    Four elements share a draw of 64 bits instead of one each, so the probability is a multiple of 2^-16. What is kept
    is divided by exactly the share that is.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0 or input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        dropped, count = round(self.p * 2**16), input.numel()
        if dropped == 2**16:
            return super().forward(input)
        draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = draws.view(torch.int16)[:count] >= dropped - 2**15
        return input * kept.to(input.dtype).mul_(2**16 / (2**16 - dropped)).view(input.shape)


class SelfAttention(nn.Module):
    """Multi-head self-attention; causal with a past, or bidirectional without one."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x_NTD: Tensor,
        *,
        causal: bool,
        past: Layer | None = None,
        visible_NT: Tensor | None = None,
        packing: Packing | None = None,
        seen: Seen | None = None,
    ) -> tuple[Tensor, KeyValue]:
        """Also keys and values of x's positions. With `packing` or `seen` x and the result are (1, M, D)."""
        if seen is not None:
            q, k, v = self.qkv(x_NTD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            return self.out(attend_rows(q, k, v, seen.visible_Z, seen.rows).flatten(2)), KeyValue(k, v)
        qkv_NTX = self.qkv(x_NTD) if packing is None else packing.pad(self.qkv(x_NTD))
        (N, T, _), D = qkv_NTX.shape, x_NTD.shape[-1]
        q, k, v = qkv_NTX.view(N, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        if past is None:
            mask = None if visible_NT is None else visible_NT[:, None, None]
            y = attend(q, k, v, visible=mask, causal=causal)
        else:
            assert causal, "a past only makes sense for causal attention"
            y = past.attend(q, k, v)
        y_NTD = y.transpose(1, 2).reshape(N, T, D)
        return self.out(y_NTD if packing is None else packing.pack(y_NTD)), KeyValue(k, v)


class CrossAttention(nn.Module):
    """Text attends to the image. Keys and values exist once an image, whatever the number of texts.

    With N = B * K texts the K texts of an image stand side by side as one row of K*T queries, so
    nothing of the image is repeated or copied.
    """

    def __init__(self, width: int, image_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(image_width, 2 * width)
        self.out = nn.Linear(width, width)

    def memory(self, image_BSD: Tensor, visible_BS: Tensor | None = None) -> ImageKeys:
        """Keys and values of the image, each (B, H, S, d). `visible`: where there is anything, at least once a row."""
        B, S, _ = image_BSD.shape
        key, value = self.key_value(image_BSD).view(B, S, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        return ImageKeys(key, value, visible_BS)

    def memory_for(
        self, image_BSD: Tensor, positions: int, visible_BS: Tensor | None = None
    ) -> ImageKeys | ImageItself:
        """What serves `positions` text positions an image in all: on a CPU the image itself, where that is less work.

        Multiplications of an image position: heads * image_width a text position for the image itself (`_look_at`);
        width a text position for keys and values, and width * image_width for making them (all of it twice).
        """
        image_width, width = self.key_value.in_features, self.query.in_features
        by_image = positions * self.heads * image_width
        by_keys = positions * width + width * image_width
        if image_BSD.device.type == "cpu" and by_image < by_keys:
            return ImageItself(image_BSD, visible_BS)
        return self.memory(image_BSD, visible_BS)

    def forward(self, x_NTD: Tensor, memory: ImageKeys | ImageItself, packing: Packing | None = None) -> Tensor:
        """With `packing` x and the result are (1, M, D)."""
        if isinstance(memory, ImageItself):
            assert packing is None, "packed texts have too many positions for it"
            return self._look_at(memory, x_NTD)
        query_NTD = self.query(x_NTD) if packing is None else packing.by_image(self.query(x_NTD))
        N, T, D = query_NTD.shape
        key, value, visible_BS = memory
        B = key.shape[0]
        q = query_NTD.view(B, N // B * T, self.heads, D // self.heads).transpose(1, 2)
        mask = None if visible_BS is None else visible_BS[:, None, None]
        y_NTD = attend(q, key, value, visible=mask).transpose(1, 2).reshape(N, T, D)
        return self.out(y_NTD if packing is None else packing.pack_images(y_NTD))

    def _look_at(self, memory: ImageItself, x_NTD: Tensor) -> Tensor:
        """The same without keys and values: q . (W_k x + b_k) = (W_k^T q) . x + what is the same at every position x.

        So the heads' queries look at the image itself, and W_v takes the mean that each head saw. All layers read the
        same image, which is `2 * layers` times smaller than their keys and values.
        """
        image_BSI, visible_BS = memory
        N, T, D = x_NTD.shape
        B, _, width = image_BSI.shape
        H, d = self.heads, D // self.heads
        key_HdI, value_HdI = self.key_value.weight.view(2, H, d, width)
        query_HXd = self.query(x_NTD).view(N * T, H, d).transpose(0, 1)  # X = N * T
        query_BYI = (query_HXd @ key_HdI).transpose(0, 1).reshape(B, 1, -1, width)  # Y: the image's texts and heads
        image_BSI = image_BSI[:, None]
        mask = None if visible_BS is None else visible_BS[:, None, None]
        seen_BYI = F.scaled_dot_product_attention(query_BYI, image_BSI, image_BSI, attn_mask=mask, scale=d**-0.5)
        y_HXd = seen_BYI.view(N * T, H, width).transpose(0, 1) @ value_HdI.transpose(1, 2)
        return self.out(y_HXd.transpose(0, 1).reshape(N, T, D) + self.key_value.bias[D:])

    def weights(self, x_NTD: Tensor, memory: ImageKeys) -> Tensor:
        """(N, T, S): the share of each image position in what a text position sees, mean over heads."""
        N, T, D = x_NTD.shape
        key, _, visible_BS = memory
        B = key.shape[0]
        q = self.query(x_NTD).view(B, N // B * T, self.heads, D // self.heads).transpose(1, 2)
        scores = q @ key.transpose(2, 3) * (D // self.heads) ** -0.5
        if visible_BS is not None:
            scores = scores.masked_fill(~visible_BS[:, None, None], -torch.inf)
        return scores.softmax(-1).mean(dim=1).view(N, T, -1)


class Block(nn.Module):
    """Pre-norm transformer block: self-attention, cross-attention if `image_width` is given, MLP."""

    def __init__(
        self, width: int, heads: int, dropout: float, image_width: int | None = None, *, mlp_width: int = 0
    ) -> None:
        """`mlp_width`: of the MLP's inner layer; 0 is four times `width`."""
        super().__init__()
        inner = mlp_width or 4 * width
        self.norm_attention = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.cross = CrossAttention(width, image_width, heads) if image_width else None
        self.norm_cross = nn.LayerNorm(width) if image_width else nn.Identity()
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
        self.dropout = Dropout(dropout)

    def image_memory(self, image_BSD: Tensor, visible_BS: Tensor | None = None) -> ImageKeys:
        """What the block's cross-attention needs of the image."""
        assert self.cross is not None
        return self.cross.memory(image_BSD, visible_BS)

    def image_memory_for(
        self, image_BSD: Tensor, positions: int, visible_BS: Tensor | None = None
    ) -> ImageKeys | ImageItself:
        assert self.cross is not None
        return self.cross.memory_for(image_BSD, positions, visible_BS)

    def forward(
        self,
        x_NTD: Tensor,
        *,
        causal: bool,
        past: Layer | None = None,
        memory: ImageKeys | ImageItself | None = None,
        visible_NT: Tensor | None = None,
        packing: Packing | None = None,
        seen: Seen | None = None,
    ) -> tuple[Tensor, KeyValue]:
        """Also self-attention's keys and values. `visible`: True where a position of the text may be looked at, for
        padded rows. With `packing`, or what is `seen` in a layout, x and the result are (1, M, D)."""
        y, own = self.attention(
            self.norm_attention(x_NTD), causal=causal, past=past, visible_NT=visible_NT, packing=packing, seen=seen
        )
        x_NTD = x_NTD + self.dropout(y)
        if self.cross is not None:
            assert memory is not None
            x_NTD = x_NTD + self.dropout(self.cross(self.norm_cross(x_NTD), memory, packing))
        return x_NTD + self.dropout(self.mlp(self.norm_mlp(x_NTD))), own


def within(lengths_N: Tensor | None, T: int) -> Tensor | None:
    """(N, T): True at the first `lengths` of T positions, at least at one; None where every position counts.

    At one, because a softmax over nothing is not a number, if only in an empty row.
    """
    return None if lengths_N is None else torch.arange(T, device=lengths_N.device) < lengths_N[:, None].clamp(min=1)


def initialise(module: nn.Module, layers: int) -> None:
    """N(0, 1 / inputs), residual outputs scaled by 1/sqrt(2 * layers) as in GPT-2.

    GPT-2's own 0.02 suits its width of 768; in a narrow model it leaves attention uniform at first, and
    cross-attention then takes thousands of steps to find anything in the image.
    """
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            residual = name.endswith((".out", "mlp.2"))
            std = part.in_features**-0.5
            nn.init.normal_(part.weight, std=std / (2 * layers) ** 0.5 if residual else std)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=0.02)


def layers_in(part: nn.Module) -> Iterator[nn.Module]:
    """What stands in the lists of a part of the model."""
    return chain.from_iterable(module for module in part.modules() if isinstance(module, nn.ModuleList))
