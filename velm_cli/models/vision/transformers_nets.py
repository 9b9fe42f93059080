"""Vision encoders from transformers: ViT, DINOv2, CLIP, SigLIP by hub name or local folder.

Shapes as in `interface.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from velm_cli.errors import UserError
from velm_cli.models.hub import load_config, load_pretrained
from velm_cli.models.vision.interface import HALF, IMAGENET_MEAN, IMAGENET_STD, ImageFeatures, VisionEncoder
from velm_cli.schema import TransformersVisionConfig

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Family(NamedTuple):
    """The image half of a model_type: its class, how its images are normalised when no file says so, and the
    part that only its pooled output passes."""

    class_name: str
    mean: tuple
    std: tuple
    pooled_part: str | None = None


CLIP = Family("CLIPVisionModel", CLIP_MEAN, CLIP_STD, "post_layernorm")
SIGLIP = Family("SiglipVisionModel", HALF, HALF, "head")
FAMILIES = {
    "clip": CLIP,
    "clip_vision_model": CLIP,
    "siglip": SIGLIP,
    "siglip_vision_model": SIGLIP,
    "dinov2": Family("Dinov2Model", IMAGENET_MEAN, IMAGENET_STD),
    "vit": Family("ViTModel", HALF, HALF),
}


class TransformersVision(VisionEncoder):
    """tokens = last_hidden_state; pooled = pooler_output, or the class token where a net has no pooler.

    `layer=n` drops the blocks after the n-th, so the net's own last norm, where it has one, follows block n.
    Image sizes other than the weights' own get interpolated positions.
    """

    def __init__(self, config: TransformersVisionConfig) -> None:
        super().__init__()
        model_type = load_config("vision", config.name).model_type
        if model_type not in FAMILIES:
            raise UserError(f"vision.name={config.name} is a {model_type}, not one of {', '.join(sorted(FAMILIES))}")
        family = FAMILIES[model_type]
        plain: dict[str, Any] = {"add_pooling_layer": False} if family.class_name == "ViTModel" else {}
        self.net: Any = load_pretrained("vision", config.name, config.weights, family.class_name, **plain)
        self.mean, self.std = _normalisation(config.name) or (family.mean, family.std)
        self.width = self.net.config.hidden_size
        if config.layer > len(self.blocks):
            raise UserError(f"vision.layer={config.layer}: {config.name} has {len(self.blocks)} blocks")
        if config.layer:
            del self.blocks[config.layer :]
        self.interpolates = family.class_name == "Dinov2Model"  # always, and takes no argument that says so
        for name, parameter in self.net.named_parameters():
            if name.endswith("mask_token"):  # of its pretraining
                parameter.requires_grad_(False)
        if family.pooled_part:
            parts = [name for name, _ in self.net.named_modules() if name.endswith(family.pooled_part)]
            self.pooled_only = tuple(f"net.{name}" for name in parts)

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer's blocks: the longest list of modules that there is."""
        return max((m for m in self.net.modules() if isinstance(m, nn.ModuleList)), key=len)

    def forward(self, image_BCHW: Tensor) -> ImageFeatures:
        out = self.net(image_BCHW) if self.interpolates else self.net(image_BCHW, interpolate_pos_encoding=True)
        tokens_BSD = out.last_hidden_state
        pooled = getattr(out, "pooler_output", None)
        return ImageFeatures(tokens_BSD, tokens_BSD[:, 0] if pooled is None else pooled)

    def stages(self) -> list[nn.Module]:
        embeddings = next(m for name, m in self.net.named_modules() if name.endswith("embeddings"))
        return [embeddings, *self.blocks]


def _normalisation(name: str) -> tuple[tuple, tuple] | None:
    """(mean, std) as the folder's preprocessor_config.json says; None where there is no such file."""
    try:
        options = json.loads((Path(name) / "preprocessor_config.json").read_text("utf-8"))
        return tuple(map(float, options["image_mean"])), tuple(map(float, options["image_std"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
