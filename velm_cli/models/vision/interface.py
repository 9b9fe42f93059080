"""What every vision encoder is: image_BCHW -> tokens_BSD and pooled_BD.

Shapes: B images, C channels, H x W pixels, S image positions (or regions), D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """What an encoder says of a batch of images."""

    tokens_BSD: Tensor
    pooled_BD: Tensor

    def select(self, index: Tensor) -> ImageFeatures:
        return ImageFeatures(self.tokens_BSD[index], self.pooled_BD[index])

    def packed(self) -> Tensor:
        """[B, S + 1, D]: the tokens and, last, pooled; `unpacked` takes them apart."""
        return torch.cat([self.tokens_BSD, self.pooled_BD[:, None]], dim=1)

    @staticmethod
    def unpacked(packed_BSD: Tensor) -> ImageFeatures:
        return ImageFeatures(packed_BSD[:, :-1], packed_BSD[:, -1])


class VisionEncoder(nn.Module):
    """Says how its input is normalised (`mean`, `std`) and how wide its tokens are (`width`)."""

    width: int
    mean: tuple[float, float, float] = HALF
    std: tuple[float, float, float] = HALF
    tokens_only: tuple[str, ...] = ()  # its parts and parameters of which `pooled` knows nothing
    pooled_only: tuple[str, ...] = ()  # ... of which `tokens` know nothing

    def forward(self, image_BCHW: Tensor) -> ImageFeatures:
        raise NotImplementedError

    def stages(self) -> list[nn.Module]:
        """The parts in the order in which the image passes them, as `freeze=first:n` counts them."""
        raise NotImplementedError


def of_grid(x_BDhw: Tensor) -> ImageFeatures:
    """tokens = the grid's positions, pooled = their mean."""
    x_BSD = x_BDhw.flatten(2).transpose(1, 2)
    return ImageFeatures(x_BSD, x_BSD.mean(dim=1))
