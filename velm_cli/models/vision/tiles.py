"""`vision.tiles=N`: a picture as N x N tiles and as a whole, each an image of the encoder's own size.

An encoder of 224 pixels then sees small things and letters in the tile that holds them, and in the whole how the tiles
hang together (UReader; Ye et al. 2023. LLaVA-NeXT; Liu et al. 2024. Idefics3; Laurençon et al. 2024). Only the model
knows of it: stores, loaders and augmentations have pictures of N times the side.

Shapes: B images of H x W pixels, N tiles a side, V = 1 + N * N views of an image: the whole, then the tiles row by row;
S positions of a view, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from velm_cli.models.vision.interface import ImageFeatures, VisionEncoder


def views_of(tiles: int) -> int:
    """V: how many views an image has; 1 where it is not cut."""
    return 1 + tiles * tiles if tiles > 1 else 1


def cut(image_BCHW: Tensor, tiles: int) -> Tensor:
    """(B * V, C, H / N, W / N): the views of each image side by side. The whole is the mean of N x N pixels each."""
    whole_BChw = F.avg_pool2d(image_BCHW, tiles)
    split_BCNhNw = image_BCHW.unflatten(3, (tiles, -1)).unflatten(2, (tiles, -1))
    tiles_BVChw = split_BCNhNw.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    return torch.cat([whole_BChw[:, None], tiles_BVChw], dim=1).flatten(0, 1)


class Tiled:
    """A vision encoder as pictures pass it that are cut: it says of an image what it says of the views, side by side.

    tokens: V * S of them; pooled: that of the whole.
    """

    def __init__(self, encoder: VisionEncoder, tiles: int) -> None:
        self.encoder, self.tiles = encoder, tiles

    def __call__(self, image_BCHW: Tensor) -> ImageFeatures:
        return self._said(self.encoder(cut(image_BCHW, self.tiles)))

    def begin(self, image_BCHW: Tensor, stages: int) -> Tensor:
        """(B, V * S, D)"""
        return _together(self.encoder.begin(cut(image_BCHW, self.tiles), stages), self.tiles)

    def finish(self, hidden_BSD: Tensor, stages: int) -> ImageFeatures:
        return self._said(self.encoder.finish(_apart(hidden_BSD, self.tiles), stages))

    def stages(self) -> list[nn.Module]:
        return self.encoder.stages()

    def _said(self, of_views: ImageFeatures) -> ImageFeatures:
        pooled_BVD = of_views.pooled_BD.unflatten(0, (-1, views_of(self.tiles)))
        return ImageFeatures(_together(of_views.tokens_BSD, self.tiles), pooled_BVD[:, 0])


def each_view(features: ImageFeatures, tiles: int, change: Callable[[ImageFeatures], ImageFeatures]) -> ImageFeatures:
    """The features with the tokens of each view as `change` makes them, which gives all views the same number."""
    apart_RSD = _apart(features.tokens_BSD, tiles)
    changed_RSD = change(ImageFeatures(apart_RSD, apart_RSD[:, 0])).tokens_BSD
    return replace(features, tokens_BSD=_together(changed_RSD, tiles))


def _apart(x_BSD: Tensor, tiles: int) -> Tensor:
    """(B * V, S, D) of (B, V * S, D)."""
    return x_BSD.unflatten(1, (views_of(tiles), -1)).flatten(0, 1)


def _together(x_RSD: Tensor, tiles: int) -> Tensor:
    """(B, V * S, D) of (B * V, S, D)."""
    return x_RSD.unflatten(0, (-1, views_of(tiles))).flatten(1, 2)


def on_picture(values_NTS: Tensor, tiles: int) -> Tensor:
    """(N, T, h, w): values of the positions of all views where these lie in the picture.

    What a position of the whole has is spread evenly over what it shows. Tokens before a view's grid are left out.
    """
    values_NTVS = values_NTS.unflatten(-1, (views_of(tiles), -1))
    side = math.isqrt(values_NTVS.shape[-1])
    grid_NTVss = values_NTVS[..., values_NTVS.shape[-1] - side * side :].unflatten(-1, (side, side))
    of_whole_NThw = grid_NTVss[:, :, 0].repeat_interleave(tiles, -1).repeat_interleave(tiles, -2) / tiles**2
    of_tiles_NThw = grid_NTVss[:, :, 1:].unflatten(2, (tiles, tiles)).transpose(3, 4).flatten(4, 5).flatten(2, 3)
    return of_whole_NThw + of_tiles_NThw


class TileMarks(nn.Module):
    """(V, D), learned: what says which view a token is of, e_whole or e_row + e_column of a tile."""

    no_decay = ("whole_D", "row_ND", "column_ND")

    def __init__(self, tiles: int, width: int, std: float) -> None:
        super().__init__()
        self.views = views_of(tiles)
        self.whole_D = nn.Parameter(std * torch.randn(width))
        self.row_ND, self.column_ND = (nn.Parameter(std * 0.5**0.5 * torch.randn(tiles, width)) for _ in range(2))

    def forward(self) -> Tensor:
        tiles_ND = (self.row_ND[:, None] + self.column_ND[None]).flatten(0, 1)
        return torch.cat([self.whole_D[None], tiles_ND])

    def before(self, x_BVSD: Tensor) -> Tensor:
        """(B, V, 1 + S, D): the tokens of each view behind the one that says which it is. V: of several images, too."""
        B, V, _, _ = x_BVSD.shape
        marks_VD = self().repeat(V // self.views, 1)
        return torch.cat([marks_VD[None, :, None].expand(B, -1, -1, -1).to(x_BVSD.dtype), x_BVSD], dim=2)

    def beside(self, features: ImageFeatures) -> ImageFeatures:
        """tokens_vs = norm(tokens_vs) + e_v, for what attends to tokens in any order. `norm` as in `places.py`."""
        normalised_BSD = F.layer_norm(features.tokens_BSD, features.tokens_BSD.shape[-1:])
        tokens_BVSD = normalised_BSD.unflatten(1, (self.views, -1)) + self()[:, None]
        return replace(features, tokens_BSD=tokens_BVSD.flatten(1, 2))
