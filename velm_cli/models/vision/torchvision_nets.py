"""Vision encoders from torchvision: its classifiers without the classifier. Shapes as in `interface.py`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from velm_cli.errors import UserError
from velm_cli.models.vision.interface import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageFeatures,
    VisionEncoder,
    as_grid,
    as_rows,
    of_grid,
)
from velm_cli.models.weights import load_state, unfilled
from velm_cli.schema import TorchvisionConfig

# What torchvision's own recipes do not decay next to vectors: Swin's table of positions; ConvNeXt's gains, which its
# authors keep as a vector and torchvision as (D, 1, 1).
TABLES = ("relative_position_bias_table", "layer_scale")


class ConvClassifier(VisionEncoder):
    """ResNet, VGG, SqueezeNet, ConvNeXt, EfficientNet, Swin: tokens = the grid after `layer` stages.

    pooled = their mean. A weight file holds the whole classifier or only what comes before it, under the
    whole model's names.
    """

    mean, std = IMAGENET_MEAN, IMAGENET_STD
    images_at_once = 8  # their first grids are large

    def __init__(self, config: TorchvisionConfig) -> None:
        super().__init__()
        state = _state(config)  # first: a net takes a moment to draw, and is of no use without
        net = _torchvision_net(config)
        if state is not None:
            _fill(net, state, config.weights)
        parts = _stages(net)
        if config.layer > len(parts):
            raise UserError(f"vision.layer={config.layer}: {config.net} has {len(parts)} stages")
        self.parts = nn.ModuleList(parts[: config.layer or None])
        self.no_decay = tuple(name for name, _ in self.named_parameters() if name.rpartition(".")[2] in TABLES)
        self.channels_last = config.net.startswith("swin")
        with torch.device("meta"):
            probe = nn.ModuleList(_stages(_torchvision_net(config))[: config.layer or None]).eval()
            self.width = self._grid(torch.empty(1, 3, config.image_size, config.image_size), probe).shape[1]

    def _grid(self, x: Tensor, parts: Iterable[nn.Module]) -> Tensor:
        for part in parts:
            x = part(x)
        return x.permute(0, 3, 1, 2) if self.channels_last else x

    def begin(self, image_BCHW: Tensor, stages: int) -> Tensor:
        # A pixel's channels side by side in memory: what convolutions want, on CPUs and on tensor cores.
        image_BCHW = image_BCHW.contiguous(memory_format=torch.channels_last)
        return as_rows(self._grid(image_BCHW, list(self.parts)[:stages]))

    def finish(self, hidden_BSD: Tensor, stages: int) -> ImageFeatures:
        x_BDhw = as_grid(hidden_BSD)
        if rest := list(self.parts)[stages:]:
            x_BDhw = self._grid(x_BDhw.permute(0, 2, 3, 1) if self.channels_last else x_BDhw, rest)
        return of_grid(x_BDhw)

    def stages(self) -> list[nn.Module]:
        return list(self.parts)


class TorchvisionViT(VisionEncoder):
    """torchvision's ViT (Dosovitskiy et al. 2021): tokens = class token and patches, pooled = class token.

    Other image sizes than the weights' own get interpolated positions. `layer=n` stops after n blocks.
    """

    mean, std = IMAGENET_MEAN, IMAGENET_STD
    no_decay = ("net.class_token", "net.encoder.pos_embedding")

    def __init__(self, config: TorchvisionConfig) -> None:
        super().__init__()
        state = _state(config)
        self.net: Any = _torchvision_net(config)
        if state is not None:
            from torchvision.models.vision_transformer import interpolate_embeddings

            try:
                state = dict(interpolate_embeddings(config.image_size, self.net.patch_size, state))  # type: ignore
            except (KeyError, ValueError, RuntimeError) as error:
                raise UserError(f"vision.weights={config.weights} are of another network: {error}") from error
            _fill(self.net, state, config.weights)
        blocks = self.net.encoder.layers
        if config.layer > len(blocks):
            raise UserError(f"vision.layer={config.layer}: {config.net} has {len(blocks)} blocks")
        if config.layer:
            self.net.encoder.layers = blocks[: config.layer]
        self.net.heads = nn.Identity()
        self.width = self.net.hidden_dim

    def begin(self, image_BCHW: Tensor, stages: int) -> Tensor:
        x_BSD = self.net._process_input(image_BCHW)
        x_BSD = torch.cat([self.net.class_token.expand(len(x_BSD), -1, -1), x_BSD], dim=1)
        x_BSD = self.net.encoder.dropout(x_BSD + self.net.encoder.pos_embedding)
        for block in list(self.net.encoder.layers)[: stages - 1]:
            x_BSD = block(x_BSD)
        return x_BSD

    def finish(self, hidden_BSD: Tensor, stages: int) -> ImageFeatures:
        x_BSD = hidden_BSD
        for block in list(self.net.encoder.layers)[stages - 1 :]:
            x_BSD = block(x_BSD)
        x_BSD = self.net.encoder.ln(x_BSD)
        return ImageFeatures(x_BSD, x_BSD[:, 0])

    def stages(self) -> list[nn.Module]:
        return [self.net.conv_proj, *self.net.encoder.layers]

    def entrance(self) -> list[nn.Module | nn.Parameter]:
        return [self.net.class_token, self.net.encoder.pos_embedding]


def _state(config: TorchvisionConfig) -> dict[str, Tensor] | None:
    """The weights to start from; None where they are drawn, or needed by nobody."""
    return None if config.weights == "none" or unfilled("vision") else load_state(config.weights, config.net)


def _torchvision_net(config: TorchvisionConfig) -> Any:
    import torchvision

    sized = {"image_size": config.image_size} if config.net.startswith("vit_") else {}
    return torchvision.models.get_model(config.net, weights=None, **sized)


def _stages(net: Any) -> list[nn.Module]:
    if hasattr(net, "layer4"):  # ResNet
        stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        return [stem, net.layer1, net.layer2, net.layer3, net.layer4]
    return [*net.features, net.norm] if hasattr(net, "norm") else list(net.features)


def _fill(net: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load `state`, which must be the net's own but for the classifier; UserError with the first difference."""
    missing, unexpected = [], []
    try:
        missing, unexpected = net.load_state_dict(state, strict=False)
    except RuntimeError as error:  # a shape
        raise UserError(
            f"vision.weights={source} are of another network: {str(error).splitlines()[1].strip()[:160]}"
        ) from error
    heads = ("fc.", "classifier.", "head.", "heads.")
    missing = [name for name in missing if not name.startswith(heads) and not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        what = f"{missing[0]} is missing" if missing else f"{unexpected[0]} is unknown"
        raise UserError(f"vision.weights={source} are of another network: {what}")
