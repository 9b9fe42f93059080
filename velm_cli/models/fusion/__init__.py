"""Fusions: how text and image come together. `build_fusion` makes the one that a config describes."""

from __future__ import annotations

from velm_cli.errors import UserError
from velm_cli.models.fusion.attending import Attention, CoAttention, CrossModal
from velm_cli.models.fusion.entering import Gated, Prefix
from velm_cli.models.fusion.external import load_external
from velm_cli.models.fusion.interface import Fusion, NoFusion
from velm_cli.models.fusion.joining import Add, Concat, Multiply, WeightedSum
from velm_cli.models.text.interface import TextEncoder
from velm_cli.schema import (
    AddConfig,
    AttentionConfig,
    CoAttentionConfig,
    ConcatConfig,
    CrossModalConfig,
    ExternalFusionConfig,
    FusionConfig,
    GatedConfig,
    MultiplyConfig,
    NoFusionConfig,
    PrefixConfig,
    WeightedSumConfig,
)


def build_fusion(config: FusionConfig, image_width: int | None, text: TextEncoder, *, tiles: int = 1) -> Fusion:
    """The fusion that `config` describes, from image tokens of `image_width` to the states of `text`, frozen or not.

    `tiles`: a side, that images are cut into besides the whole.
    """
    fusion = _made(config, image_width, text, tiles)
    if config.freeze == "all":
        fusion.requires_grad_(False)
    return fusion


def _made(config: FusionConfig, image_width: int | None, text: TextEncoder, tiles: int) -> Fusion:
    if isinstance(config, NoFusionConfig):
        return NoFusion()
    assert image_width is not None, "validate refuses a fusion without vision"
    if (heads := getattr(config, "heads", 1)) and text.width % heads:  # validate knows the widths of its own encoders
        raise UserError(f"fusion.heads={heads} does not divide the text encoder's width of {text.width}")
    match config:
        case ConcatConfig():
            return Concat(config, image_width, text.width)
        case AddConfig():
            return Add(config, image_width, text.width)
        case MultiplyConfig():
            return Multiply(config, image_width, text.width)
        case WeightedSumConfig():
            return WeightedSum(config, image_width, text.width)
        case AttentionConfig():
            return Attention(config, image_width, text.width)
        case CrossModalConfig():
            return CrossModal(config, image_width, text)
        case CoAttentionConfig():
            return CoAttention(config, image_width, text.width)
        case PrefixConfig():
            return Prefix(config, image_width, text, tiles=tiles)
        case GatedConfig():
            return Gated(config, image_width, text)
        case ExternalFusionConfig():
            return load_external(config, image_width, text)
        case _:
            raise AssertionError(f"no fusion for {type(config).__name__}")
