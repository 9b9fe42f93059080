"""Vision encoders from transformers: ViT, DINOv2, CLIP, SigLIP by hub name or local folder.

Shapes as in `interface.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from velm_cli.data.resizing import BICUBIC, BILINEAR, Resizing, colours_of, processor_options, resizing_of
from velm_cli.errors import UserError
from velm_cli.models.hub import load_config, load_pretrained
from velm_cli.models.lora import add_lora
from velm_cli.models.transformers_internals import (
    FAMILIES,
    MASK_TOKEN,
    any_size,
    attends_quickly,
    blocks_of,
    embed,
    parts_of,
    pass_block,
    tables_of,
)
from velm_cli.models.vision.interface import HALF, IMAGENET_MEAN, IMAGENET_STD, ImageFeatures, VisionEncoder
from velm_cli.schema import Resize, TransformersVisionConfig

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# How a family's images are normalised and resized when no file says so: as the published ones' are.
INPUTS = {
    "CLIPVisionModel": (CLIP_MEAN, CLIP_STD, Resizing(resample=BICUBIC, floors=True)),
    "SiglipVisionModel": (HALF, HALF, Resizing(whole=True, resample=BICUBIC, floors=True)),
    "Dinov2Model": (IMAGENET_MEAN, IMAGENET_STD, Resizing(zoom=256 / 224, resample=BICUBIC, floors=True)),
    "ViTModel": (HALF, HALF, Resizing(whole=True, resample=BILINEAR, floors=True)),
}


class TransformersVision(VisionEncoder):
    """tokens = the net's last_hidden_state; pooled = its pooler_output, or the class token where it has no pooler.

    `layer=n` drops the blocks after the n-th, so the net's own last norm, where it has one, follows block n.
    `join` puts what earlier blocks say beside it: tokens and pooled, each as if the net ended there, get wider.
    Image sizes other than the weights' own get interpolated positions. Images are normalised, and with `resize=auto`
    resized, as the image processor does whose file is in the model's folder.
    """

    def __init__(self, config: TransformersVisionConfig) -> None:
        super().__init__()
        model_type = load_config("vision", config.name).model_type
        if model_type not in FAMILIES:
            raise UserError(f"vision.name={config.name} is a {model_type}, not one of {', '.join(sorted(FAMILIES))}")
        self.family = FAMILIES[model_type]
        class_name = self.family.class_name
        plain: dict[str, Any] = {"add_pooling_layer": False} if class_name == "ViTModel" else {}
        self.net: Any = load_pretrained("vision", config.name, config.weights, class_name, **plain)
        attends_quickly(self.net)
        mean, std, resizing = INPUTS[class_name]
        # Without auto only the colours are the file's, as they were before there was auto.
        used = None if config.resize is Resize.auto else {"image_mean", "image_std"}
        options = processor_options(config.name, used)
        self.mean, self.std = colours_of(options) or (mean, std)
        self.resizing = resizing_of(options, resizing)
        self.width = self.net.config.hidden_size
        if config.image_size < (patch := self.net.config.patch_size):
            raise UserError(f"vision.image_size={config.image_size}: {config.name} has patches of {patch} pixels")
        if config.layer > len(self.blocks):
            raise UserError(f"vision.layer={config.layer}: {config.name} has {len(self.blocks)} blocks")
        if config.layer:
            del self.blocks[config.layer :]
        if list(config.join) != sorted({*config.join} & {*range(1, len(self.blocks))}):
            raise UserError(
                f"vision.join={list(config.join)}: name blocks before the last one, {len(self.blocks)}, in their order"
            )
        self.joined = tuple(config.join)
        self.width *= 1 + len(self.joined)
        for name, parameter in self.net.named_parameters():
            if name.endswith(MASK_TOKEN):
                parameter.requires_grad_(False)
        add_lora(self.net, config, "vision")
        self._paths = parts_of(self.net, self.family)
        self.no_decay = tuple(f"net.{path}" for path in tables_of(self.net))
        self.pooled_only = tuple(f"net.{path}" for name, path in self._paths.items() if name == self.family.pooled)

    @property
    def blocks(self) -> nn.ModuleList:
        return blocks_of(self.net)

    def forward(self, image_BCHW: Tensor) -> ImageFeatures:
        if self.joined:
            return self._of_blocks(image_BCHW)
        out = self.net(image_BCHW, **any_size(self.net))
        pooled_BD = out.pooler_output
        return ImageFeatures(out.last_hidden_state, out.last_hidden_state[:, 0] if pooled_BD is None else pooled_BD)

    def begin(self, image_BCHW: Tensor, stages: int) -> Tensor:
        x_BSD = self._pass(self.family.before, embed(self._part("embeddings"), image_BCHW))
        return self._through(x_BSD, list(self.blocks)[: stages - 1])

    def finish(self, hidden_BSD: Tensor, stages: int) -> ImageFeatures:
        return self._said(self._through(hidden_BSD, list(self.blocks)[stages - 1 :]))

    def _of_blocks(self, image_BCHW: Tensor) -> ImageFeatures:
        """What the blocks `joined` and the last one say, side by side."""
        said, hidden_BSD, passed = [], self.begin(image_BCHW, 1), 0
        for stop in (*self.joined, len(self.blocks)):
            hidden_BSD, passed = self._through(hidden_BSD, list(self.blocks)[passed:stop]), stop
            said.append(self._said(hidden_BSD))
        return ImageFeatures(
            torch.cat([one.tokens_BSD for one in said], dim=-1), torch.cat([one.pooled_BD for one in said], dim=-1)
        )

    def _said(self, hidden_BSD: Tensor) -> ImageFeatures:
        """What the net says if its last block has given this."""
        tokens_BSD = self._pass(self.family.after, hidden_BSD)
        whole = "head" in self._paths  # SigLIP's: attention over all positions
        return ImageFeatures(tokens_BSD, self._pass(self.family.pooled, tokens_BSD if whole else tokens_BSD[:, 0]))

    def _through(self, x_BSD: Tensor, blocks: list[nn.Module]) -> Tensor:
        for block in blocks:
            x_BSD = pass_block(block, x_BSD)
        return x_BSD

    def _part(self, name: str) -> nn.Module:
        return self.net.get_submodule(self._paths[name])

    def _pass(self, name: str | None, x: Tensor) -> Tensor:
        """`x` through the part of this name, if there is one."""
        return self._part(name)(x) if name in self._paths else x

    def stages(self) -> list[nn.Module]:
        return [self._part("embeddings"), *self.blocks]

    def entrance(self) -> list[nn.Module | nn.Parameter]:
        return [self._part(name) for name in (self.family.before,) if name in self._paths]
