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
from velm_cli.models.vision.regions import Regions


def looks(model: VelmModel, tokens_NT: Tensor, features: ImageFeatures) -> Tensor | None:
    """(N, T, h, w): the weight of each position of the image's grid in what is said after each token.

    The mean over the layers and heads that attend to the image. None where the fusion attends to no grid:
    nothing attends, the image is one token, or its positions are regions.
    """
    if isinstance(model.vision, Regions) or not model.fusion.generates:
        return None
    positions = features.tokens_BSD.shape[1] if features.of_image is None else features.of_image
    side = math.isqrt(positions)
    if side < 2:
        return None
    seen: list[Tensor] = []

    def watch(module: CrossAttention | AdditiveAttention, inputs: tuple, _output: Tensor) -> None:
        seen.append(module.weights(inputs[0], inputs[1]))

    attending = [part for part in model.fusion.modules() if isinstance(part, (CrossAttention, AdditiveAttention))]
    handles = [part.register_forward_hook(watch) for part in attending]
    try:
        with torch.inference_mode():
            model.fusion.read(model.text, tokens_NT, model.memory(features))
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        return None
    weights_NTS = torch.stack(seen).mean(dim=0)
    # Transformers put a token for the whole image (and more) before the grid; behind it may stand a source.
    return weights_NTS[..., positions - side * side : positions].unflatten(-1, (side, side))
