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
    """The image half of a model_type: its class, how its images are normalised when no file says so, and the names of
    its parts beside embeddings and blocks: a norm before the blocks, one after, what makes the pooled output."""

    class_name: str
    mean: tuple
    std: tuple
    before: str | None = None
    after: str | None = "layernorm"
    pooled: str | None = None


CLIP = Family("CLIPVisionModel", CLIP_MEAN, CLIP_STD, "pre_layrnorm", None, "post_layernorm")
SIGLIP = Family("SiglipVisionModel", HALF, HALF, None, "post_layernorm", "head")
FAMILIES = {
    "clip": CLIP,
    "clip_vision_model": CLIP,
    "siglip": SIGLIP,
    "siglip_vision_model": SIGLIP,
    "dinov2": Family("Dinov2Model", IMAGENET_MEAN, IMAGENET_STD),
    "vit": Family("ViTModel", HALF, HALF),
}


class TransformersVision(VisionEncoder):
    """tokens = the net's last_hidden_state; pooled = its pooler_output, or the class token where it has no pooler.

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
        self.family = family
        for name, parameter in self.net.named_parameters():
            if name.endswith("mask_token"):  # of its pretraining
                parameter.requires_grad_(False)
        paths = [path for path, _ in self.net.named_modules()]
        parts = {path.rpartition(".")[2]: path for path in reversed(paths)}  # of several of a name the first
        self._paths = {name: parts[name] for name in ("embeddings", *family[3:]) if name in parts}
        self.pooled_only = tuple(f"net.{parts[name]}" for name in (family.pooled,) if name in parts)

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer's blocks: the longest list of modules that there is."""
        return max((m for m in self.net.modules() if isinstance(m, nn.ModuleList)), key=len)

    def begin(self, image_BCHW: Tensor, stages: int) -> Tensor:
        always = self.family.class_name == "Dinov2Model"  # positions are interpolated, and no argument says so
        embeddings = self.net.get_submodule(self._paths["embeddings"])
        x_BSD = embeddings(image_BCHW) if always else embeddings(image_BCHW, interpolate_pos_encoding=True)
        return self._through(self._pass(self.family.before, x_BSD), list(self.blocks)[: stages - 1])

    def finish(self, hidden_BSD: Tensor, stages: int) -> ImageFeatures:
        tokens_BSD = self._pass(self.family.after, self._through(hidden_BSD, list(self.blocks)[stages - 1 :]))
        if "head" in self._paths:  # SigLIP's: attention over all positions
            return ImageFeatures(tokens_BSD, self._pass("head", tokens_BSD))
        return ImageFeatures(tokens_BSD, self._pass(self.family.pooled, tokens_BSD[:, 0]))

    def _through(self, x_BSD: Tensor, blocks: list[nn.Module]) -> Tensor:
        for block in blocks:
            x_BSD = block(x_BSD, None)  # without a mask
        return x_BSD

    def _pass(self, part: str | None, x: Tensor) -> Tensor:
        """`x` through the part of this name, if there is one."""
        return self.net.get_submodule(self._paths[part])(x) if part in self._paths else x

    def stages(self) -> list[nn.Module]:
        return [self.net.get_submodule(self._paths["embeddings"]), *self.blocks]

    def entrance(self) -> list[nn.Module | nn.Parameter]:
        before = self.family.before
        return [self.net.get_submodule(self._paths[before])] if before in self._paths else []


def _normalisation(name: str) -> tuple[tuple, tuple] | None:
    """(mean, std) as the folder's preprocessor_config.json says; None where there is no such file."""
    try:
        options = json.loads((Path(name) / "preprocessor_config.json").read_text("utf-8"))
        return tuple(map(float, options["image_mean"])), tuple(map(float, options["image_std"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
