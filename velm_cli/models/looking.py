"""Where a model looks when it writes each word (Xu et al. 2015): for people's eyes, not for training.

The fused attention kernels return no weights, so they are computed here once more from what went into each
attention to the image. Shapes: B images, N = B * K texts, T text and S image positions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from velm_cli.models.fusion.attending import AdditiveAttention
from velm_cli.models.layers import CrossAttention
from velm_cli.models.velm import VelmModel
from velm_cli.models.vision import ImageFeatures
from velm_cli.models.vision.regions import GEOMETRY, Regions
from velm_cli.models.vision.tiles import on_picture, views_of

REGION_GRID = 16  # cells a side of the map that boxes are drawn into


def looks(
    model: VelmModel, tokens_NT: Tensor, features: ImageFeatures, lengths_N: Tensor | None = None
) -> Tensor | None:
    """(N, T, h, w): the weight of each position of the image's grid in what is said after each token.

    Of several images of an example, which `features` then has side by side, (N, T, I * h, w): one below the other.

    The mean over the layers and heads that attend to the image. None where the fusion attends to no grid: nothing
    attends, words know later ones, or the image is one token. `lengths`: as the fusion's `read` takes them.
    """
    positions = features.tokens_BSD.shape[1] if features.of_image is None else features.of_image
    images = max(1, features.images)
    if not attends(model) or not has_grid(model, positions // images):
        return None
    seen: list[Tensor] = []

    def watch(module: CrossAttention | AdditiveAttention, inputs: tuple, _output: Tensor) -> None:
        seen.append(module.weights(inputs[0], inputs[1]))

    handles = [part.register_forward_hook(watch) for part in _attending(model)]
    try:
        with torch.inference_mode():
            model.fusion.read(model.text, tokens_NT, model.memory(features), lengths_N=lengths_N)
    finally:
        for handle in handles:
            handle.remove()
    weights_NTS = torch.stack(seen).mean(dim=0)[..., :positions]  # behind the image may stand a source
    each = zip(weights_NTS.chunk(images, dim=-1), features.tokens_BSD[:, :positions].chunk(images, dim=1), strict=True)
    return torch.cat([on_grid(model, weights, tokens) for weights, tokens in each], dim=2)


def attends(model: VelmModel) -> bool:
    """Whether the words attend to positions that can be found in the image: regions in places have lost theirs."""
    if model.places is not None and isinstance(model.vision, Regions):
        return False
    fusion = model.fusion
    return model.vision is not None and fusion.generates and fusion.words_attend and bool(_attending(model))


def has_grid(model: VelmModel, positions: int) -> bool:
    """Whether so many positions have places in the image."""
    return isinstance(model.vision, Regions) or math.isqrt(positions // views_of(model.tiles)) > 1


def on_grid(model: VelmModel, values_NTS: Tensor, tokens_BSD: Tensor) -> Tensor:
    """(N, T, h, w): values of the image's positions where these lie.

    Transformers put a token for the whole image (and more) before the grid, which are left out. A region's value is
    spread evenly over its box.
    """
    if model.tiles > 1:
        return on_picture(values_NTS, model.tiles)
    if not isinstance(model.vision, Regions):
        side = math.isqrt(values_NTS.shape[-1])
        return values_NTS[..., values_NTS.shape[-1] - side * side :].unflatten(-1, (side, side))
    cover_BShw = _boxes_on_grid(tokens_BSD[..., -GEOMETRY : 4 - GEOMETRY].detach().float())
    cover_NShw = cover_BShw.repeat_interleave(len(values_NTS) // len(cover_BShw), dim=0)
    return torch.einsum("nts,nshw->nthw", values_NTS.float(), cover_NShw)


def _attending(model: VelmModel) -> list[CrossAttention | AdditiveAttention]:
    return [part for part in model.fusion.modules() if isinstance(part, (CrossAttention, AdditiveAttention))]


def _boxes_on_grid(corners_BS4: Tensor) -> Tensor:
    """(B, S, h, w): the share of each box (x0, y0, x1, y1 of the sides) that lies in each cell."""
    edges = torch.arange(REGION_GRID + 1, device=corners_BS4.device) / REGION_GRID

    def overlap(low_BS: Tensor, high_BS: Tensor) -> Tensor:
        ends = torch.minimum(high_BS[..., None], edges[1:])
        return (ends - torch.maximum(low_BS[..., None], edges[:-1])).clamp(min=0)

    left, top, right, bottom = corners_BS4.unbind(-1)
    cover_BShw = overlap(top, bottom)[..., :, None] * overlap(left, right)[..., None, :]
    return cover_BShw / cover_BShw.sum((2, 3), keepdim=True).clamp(min=1e-9)
