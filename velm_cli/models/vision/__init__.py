"""Vision encoders: image -> tokens. `build_vision` makes the one that a config describes."""

from __future__ import annotations

from torch import nn

from velm_cli.data.resizing import Resizing
from velm_cli.errors import UserError
from velm_cli.models.freezing import count_frozen
from velm_cli.models.vision.interface import ImageFeatures, VisionEncoder
from velm_cli.models.vision.regions import Regions
from velm_cli.models.vision.scratch import ConvNet, ViT
from velm_cli.models.vision.torchvision_nets import ConvClassifier, TorchvisionViT
from velm_cli.models.vision.transformers_nets import TransformersVision
from velm_cli.schema import (
    ConvNetConfig,
    NoVisionConfig,
    RegionsConfig,
    Resize,
    TorchvisionConfig,
    TransformersVisionConfig,
    VisionConfig,
    ViTConfig,
)

__all__ = ["ImageFeatures", "VisionEncoder", "build_vision", "frozen_stages"]


def build_vision(config: VisionConfig) -> VisionEncoder | None:
    """The encoder that `config` describes, with its weights and frozen parts; None for vision=none."""
    encoder: VisionEncoder
    match config:
        case NoVisionConfig():
            return None
        case ViTConfig():
            encoder = ViT(config)
        case ConvNetConfig():
            encoder = ConvNet(config)
        case TorchvisionConfig():
            encoder = TorchvisionViT(config) if config.net.startswith("vit_") else ConvClassifier(config)
        case TransformersVisionConfig():
            encoder = TransformersVision(config)
        case RegionsConfig():
            encoder = Regions(config)
        case _:
            raise AssertionError(f"no vision encoder for {type(config).__name__}")
    if config.resize is not Resize.auto:
        encoder.resizing = Resizing(whole=config.resize is Resize.whole)
    for stage in frozen_stages(encoder, config.freeze):
        stage.requires_grad_(False)
    return encoder


def frozen_stages(encoder: VisionEncoder, freeze: str) -> list[nn.Module | nn.Parameter]:
    """The parts that `freeze` (none | all | first:n) keeps from training: all that comes before the stage after."""
    if freeze == "all":
        return [encoder]
    count = count_frozen(freeze)
    stages = encoder.stages()
    if count > len(stages):
        raise UserError(f"vision.freeze={freeze}: this encoder has only {len(stages)} stages")
    return [*encoder.entrance(), *stages[:count]] if count else []
