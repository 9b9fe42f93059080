"""How many positions a language model reads of an image."""

from __future__ import annotations

import torch

from velm_cli.models.fusion.entering import Prefix
from velm_cli.models.velm import VelmModel


def image_positions(model: VelmModel) -> int:
    """Positions of one image that stand before a text (fusion=prefix), else tokens that the fusion takes of it.

    UserError where its grid does not fit its options.
    """
    side = model.image_size
    with model.output_bias.device, torch.no_grad():
        features = model.encode_image(torch.empty(2, 3, side, side))  # of one image batches have no statistics
        assert features is not None
        if isinstance(model.fusion, Prefix):
            positions: int = model.fusion.memory(features)[0].shape[1]
            return positions
        return features.tokens_BSD.shape[1] if model.fusion.uses != {"pooled"} else 1
