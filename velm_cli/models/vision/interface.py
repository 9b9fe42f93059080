"""What every vision encoder is: image_BCHW -> tokens_BSD and pooled_BD.

Shapes: B images, C channels, H x W pixels, S image positions (or regions), D width. Where examples share images: X
images, B examples, I images of an example.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from velm_cli.data.resizing import CENTRE_CROP, Resizing
from velm_cli.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """What an encoder says of a batch of images; with `context.py` also of the text that goes in with them."""

    tokens_BSD: Tensor
    pooled_BD: Tensor
    visible_BS: Tensor | None = None  # False where a row has fewer positions than others; None: all have S
    of_image: int | None = None  # so many positions, the first ones, are the image's, the others a text's; None: all
    images: int = 0  # images side by side, which need no places any more; 0: a row is as the encoder says it

    def select(self, index: Tensor) -> ImageFeatures:
        visible_BS = None if self.visible_BS is None else self.visible_BS[index]
        return replace(self, tokens_BSD=self.tokens_BSD[index], pooled_BD=self.pooled_BD[index], visible_BS=visible_BS)

    def of_examples(self, image_of_BI: Tensor) -> ImageFeatures:
        """From X images to B examples: row `image_of` of X for each.

        Several images of an example stand side by side along S, and `pooled` is their mean. There -1 is no image, whose
        positions are not visible; of an example without any, one position of zeros is. Where I = 1 every example has
        its image: -1 raises IndexError.
        """
        B, images = image_of_BI.shape
        rows = image_of_BI.flatten()
        there_BI = image_of_BI >= 0
        if images > 1:
            rows = rows.clamp(min=0)
        tokens_RSD, pooled_RD = self.tokens_BSD.index_select(0, rows), self.pooled_BD.index_select(0, rows)
        visible_RS = None if self.visible_BS is None else self.visible_BS.index_select(0, rows)
        if images == 1:
            return ImageFeatures(tokens_RSD, pooled_RD, visible_RS)
        tokens_BSD = (tokens_RSD * there_BI.view(-1, 1, 1)).view(B, -1, tokens_RSD.shape[-1])
        pooled_BD = (pooled_RD.view(B, images, -1) * there_BI[:, :, None]).sum(1) / there_BI.sum(1).clamp(min=1)[
            :, None
        ]
        visible_BIS = there_BI[:, :, None].expand(-1, -1, tokens_RSD.shape[1])
        if visible_RS is not None:
            visible_BIS = visible_BIS & visible_RS.view_as(visible_BIS)
        visible_BS = visible_BIS.flatten(1)
        nothing_B1 = ~visible_BS.any(dim=1, keepdim=True)
        visible_BS = torch.cat([visible_BS[:, :1] | nothing_B1, visible_BS[:, 1:]], 1)
        return ImageFeatures(tokens_BSD, pooled_BD, visible_BS, images=images)

    @staticmethod
    def joined(parts: list[ImageFeatures]) -> ImageFeatures:
        """Of all the parts' images."""
        if len(parts) == 1:
            return parts[0]
        assert all(part.visible_BS is None for part in parts), "encoders give every image the same number of tokens"
        return ImageFeatures(
            torch.cat([part.tokens_BSD for part in parts]), torch.cat([part.pooled_BD for part in parts])
        )

    def packed(self) -> Tensor:
        """[B, S + 1, D]: the tokens and, last, pooled; `unpacked` takes them apart."""
        return torch.cat([self.tokens_BSD, self.pooled_BD[:, None]], dim=1)

    @staticmethod
    def unpacked(packed_BSD: Tensor) -> ImageFeatures:
        return ImageFeatures(packed_BSD[:, :-1], packed_BSD[:, -1])


class VisionEncoder(nn.Module):
    """Says how its input is made (`mean`, `std`, `resizing`) and how wide its tokens are (`width`)."""

    width: int
    mean: tuple[float, float, float] = HALF
    std: tuple[float, float, float] = HALF
    resizing: Resizing = CENTRE_CROP
    tokens_only: tuple[str, ...] = ()  # its parts and parameters of which `pooled` knows nothing
    pooled_only: tuple[str, ...] = ()  # ... of which `tokens` know nothing
    no_decay: tuple[str, ...] = ()  # ... that are no matrices of a product: positions, class tokens, queries
    joined: tuple[int, ...] = ()  # blocks before the last one whose states stand beside its own
    notes: tuple[str, ...] = ()  # lines about the weights that it was given
    images_at_once: int = 16  # on a CPU that keeps nothing for gradients: more gain nothing, their memory is new

    def forward(self, image_BCHW: Tensor) -> ImageFeatures:
        return self.finish(self.begin(image_BCHW, 1), 1)

    def begin(self, image_BCHW: Tensor, stages: int) -> Tensor:
        """(B, S, D): what comes out of the first so many stages; what no gradient has to pass if they are frozen."""
        raise NotImplementedError

    def finish(self, hidden_BSD: Tensor, stages: int) -> ImageFeatures:
        """What the encoder says of images that have passed so many stages."""
        raise NotImplementedError

    def stages(self) -> list[nn.Module]:
        """The parts in the order in which the image passes them, as `freeze=first:n` counts them."""
        raise NotImplementedError

    def entrance(self) -> list[nn.Module | nn.Parameter]:
        """What the image passes before the second stage beside the first: positions, a class token, a norm."""
        return []


def as_rows(x_BDhw: Tensor) -> Tensor:
    """(B, h * w, D), a view: a grid's positions in a row."""
    return x_BDhw.flatten(2).transpose(1, 2)


def as_grid(x_BSD: Tensor) -> Tensor:
    """(B, D, h, w), a view: the square grid that `as_rows` has put in a row."""
    return x_BSD.transpose(1, 2).unflatten(2, (math.isqrt(x_BSD.shape[1]), -1))


def averaged(features: ImageFeatures, side: int) -> ImageFeatures:
    """The square grid of the tokens averaged to `side` x `side`; tokens before it (a class token) and pooled stay.

    UserError where the grid has fewer positions a side.
    """
    positions = features.tokens_BSD.shape[1]
    found = math.isqrt(positions)
    if side > found:
        raise UserError(f"vision.grid={side}: the encoder's grid has {found} x {found} positions")
    first_BSD, grid_BSD = features.tokens_BSD.split((positions - found**2, found**2), dim=1)
    if side == found:
        return features
    averaged_BSD = as_rows(functional.adaptive_avg_pool2d(as_grid(grid_BSD), side))
    return replace(features, tokens_BSD=torch.cat([first_BSD, averaged_BSD], dim=1))


def of_grid(x_BDhw: Tensor) -> ImageFeatures:
    """tokens = the grid's positions, pooled = their mean."""
    x_BSD = as_rows(x_BDhw)
    return ImageFeatures(x_BSD, x_BSD.mean(dim=1))
