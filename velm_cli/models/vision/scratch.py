"""Vision encoders that are trained from scratch: a small ViT and a small ConvNet. Shapes as in `interface.py`."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from velm_cli.models.layers import Block, initialise
from velm_cli.models.vision.interface import ImageFeatures, VisionEncoder, as_grid, as_rows
from velm_cli.schema import ConvNetConfig, ViTConfig


class ViT(VisionEncoder):
    """Small vision transformer (Dosovitskiy et al. 2021) trained from scratch.

    pooled = maximum over the positions, see `ConvNet`. With `conv_stem` the patches come out of stride-2
    3x3 convolutions instead of one large one, which makes training from scratch faster and steadier
    (Xiao et al. 2021).
    """

    no_decay = ("position",)

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.width = config.width
        grid = config.image_size // config.patch_size
        self.stem = (
            _conv_stem(config.patch_size, config.width)
            if config.conv_stem
            else nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)
        )
        self.position = nn.Parameter(torch.empty(1, grid * grid, config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        initialise(self, config.layers)
        nn.init.normal_(self.position, std=0.02)

    def begin(self, image_BCHW: Tensor, stages: int) -> Tensor:
        # Position by position in memory: else every norm would lay it out anew, and every sum run across the grid.
        x_BSD = as_rows(self.stem(image_BCHW)).contiguous() + self.position
        return self._through(x_BSD, list(self.blocks)[: stages - 1])

    def finish(self, hidden_BSD: Tensor, stages: int) -> ImageFeatures:
        x_BSD = self.norm(self._through(hidden_BSD, list(self.blocks)[stages - 1 :]))
        return ImageFeatures(x_BSD, x_BSD.amax(dim=1))

    def _through(self, x_BSD: Tensor, blocks: list[nn.Module]) -> Tensor:
        for block in blocks:
            x_BSD, _ = block(x_BSD, causal=False)
        return x_BSD

    def stages(self) -> list[nn.Module]:
        return [self.stem, *self.blocks, self.norm]

    def entrance(self) -> list[nn.Module | nn.Parameter]:
        return [self.position]


def _conv_stem(patch_size: int, width: int) -> nn.Sequential:
    """3x3 convolutions that halve the sides until one position stands for patch_size pixels."""
    halvings = patch_size.bit_length() - 1
    layers: list[nn.Module] = []
    channels = 3
    for step in reversed(range(halvings)):
        out = max(16, width >> step)
        layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1), nn.GroupNorm(1, out), nn.GELU()]
        channels = out
    return nn.Sequential(*layers, nn.Conv2d(channels, width, 1))


class ConvNet(VisionEncoder):
    """Plain convolutions with batch normalisation: what learns drawn scenes in a minute on a laptop.

    Each stage is a stride-2 3x3 convolution; one more at the last size. pooled = a linear map of the
    maximum and the mean over the positions: the maximum says what is there however small it is, the mean
    how much of it (L_image learns several times more slowly from the mean alone; docs/log.md). tokens =
    pooled and the last grid, plus a learned position each, since attention could not tell left from right
    otherwise.
    """

    tokens_only = no_decay = ("position",)

    def __init__(self, config: ConvNetConfig) -> None:
        super().__init__()
        self.width = config.width
        channels = [3, *(max(16, config.width >> step) for step in reversed(range(config.stages)))]
        self.convolutions = nn.ModuleList(_convolution(before, after, stride=2) for before, after in pairwise(channels))
        self.convolutions.append(_convolution(config.width, config.width, stride=1))
        self.pool = nn.Sequential(nn.BatchNorm1d(2 * config.width), nn.Linear(2 * config.width, config.width))
        side = -(-config.image_size // 2**config.stages)
        self.position = nn.Parameter(0.5 * torch.randn(1, 1 + side * side, config.width))

    def begin(self, image_BCHW: Tensor, stages: int) -> Tensor:
        x_BDhw = image_BCHW
        for convolution in list(self.convolutions)[:stages]:
            x_BDhw = convolution(x_BDhw)
        return as_rows(x_BDhw)

    def finish(self, hidden_BSD: Tensor, stages: int) -> ImageFeatures:
        x_BDhw = as_grid(hidden_BSD)
        for convolution in list(self.convolutions)[stages:]:
            x_BDhw = convolution(x_BDhw)
        x_BSD = as_rows(x_BDhw)
        pooled_BD = self.pool(torch.cat([x_BSD.amax(dim=1), x_BSD.mean(dim=1)], dim=-1))
        tokens_BSD = torch.cat([pooled_BD[:, None], x_BSD], dim=1) + self.position
        return ImageFeatures(tokens_BSD, pooled_BD)

    def stages(self) -> list[nn.Module]:
        return [*self.convolutions, self.pool]


def _convolution(channels: int, out: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()
    )
