"""Vision encoders from transformers: ViT, DINOv2, CLIP, SigLIP by hub name or local folder.

Shapes as in `interface.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from velm_cli.errors import UserError
from velm_cli.models.hub import load_config, load_pretrained
from velm_cli.models.vision.interface import HALF, IMAGENET_MEAN, IMAGENET_STD, ImageFeatures, VisionEncoder
from velm_cli.schema import TransformersVisionConfig

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# By model_type: the class that is the image half, and how its images are normalised when no file says so.
FAMILIES: dict[str, tuple[str, tuple, tuple]] = {
    "clip": ("CLIPVisionModel", CLIP_MEAN, CLIP_STD),
    "clip_vision_model": ("CLIPVisionModel", CLIP_MEAN, CLIP_STD),
    "siglip": ("SiglipVisionModel", HALF, HALF),
    "siglip_vision_model": ("SiglipVisionModel", HALF, HALF),
    "dinov2": ("Dinov2Model", IMAGENET_MEAN, IMAGENET_STD),
    "vit": ("ViTModel", HALF, HALF),
}


class TransformersVision(VisionEncoder):
    """tokens = last_hidden_state; pooled = pooler_output, or the class token where a net has no pooler.

    `layer=n` drops the blocks after the n-th, so the net's own last norm, where it has one, follows block n.
    Image sizes other than the weights' own get interpolated positions.
    """

    def __init__(self, config: TransformersVisionConfig) -> None:
        super().__init__()
        family = load_config("vision", config.name).model_type
        if family not in FAMILIES:
            raise UserError(f"vision.name={config.name} is a {family}, not one of {', '.join(sorted(FAMILIES))}")
        class_name, mean, std = FAMILIES[family]
        plain = {"add_pooling_layer": False} if class_name == "ViTModel" else {}
        self.net: Any = load_pretrained("vision", config.name, config.weights, class_name, **plain)
        self.mean, self.std = _normalisation(config.name) or (mean, std)
        self.width = self.net.config.hidden_size
        self.blocks = _blocks(self.net)
        if config.layer > len(self.blocks):
            raise UserError(f"vision.layer={config.layer}: {config.name} has {len(self.blocks)} blocks")
        if config.layer:
            del self.blocks[config.layer :]
        self.resized = class_name != "Dinov2Model"  # which always interpolates and takes no such argument
        for name, parameter in self.net.named_parameters():
            if name.endswith("mask_token"):  # of its pretraining
                parameter.requires_grad_(False)
        self.pooled_only = (
            tuple(f"net.{name}" for name, _ in self.net.named_modules() if name.endswith(("post_layernorm", "head")))
            if class_name in ("CLIPVisionModel", "SiglipVisionModel")
            else ()
        )
        if class_name == "SiglipVisionModel":  # its tokens pass post_layernorm too
            self.pooled_only = tuple(name for name in self.pooled_only if name.endswith("head"))

    def forward(self, image_BCHW: Tensor) -> ImageFeatures:
        out = self.net(image_BCHW, interpolate_pos_encoding=True) if self.resized else self.net(image_BCHW)
        tokens_BSD = out.last_hidden_state
        pooled = getattr(out, "pooler_output", None)
        return ImageFeatures(tokens_BSD, tokens_BSD[:, 0] if pooled is None else pooled)

    def stages(self) -> list[nn.Module]:
        embeddings = next(m for name, m in self.net.named_modules() if name.endswith("embeddings"))
        return [embeddings, *self.blocks]


def _blocks(net: nn.Module) -> nn.ModuleList:
    return max((m for m in net.modules() if isinstance(m, nn.ModuleList)), key=len)


def _normalisation(name: str) -> tuple[tuple, tuple] | None:
    """(mean, std) as the folder's preprocessor_config.json says; None where there is no such file."""
    try:
        options = json.loads((Path(name) / "preprocessor_config.json").read_text("utf-8"))
        return tuple(map(float, options["image_mean"])), tuple(map(float, options["image_std"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
