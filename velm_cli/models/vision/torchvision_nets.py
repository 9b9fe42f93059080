"""Vision encoders from torchvision: its classifiers without the classifier. Shapes as in `interface.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from velm_cli.errors import UserError
from velm_cli.models.foreign import fill, under_own_names
from velm_cli.models.vision.interface import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageFeatures,
    VisionEncoder,
    as_grid,
    as_rows,
    of_grid,
)
from velm_cli.models.weights import download_note, load_state, on_meta, unread
from velm_cli.schema import RegionsConfig, TorchvisionConfig

# What torchvision's own recipes do not decay next to vectors: Swin's table of positions; ConvNeXt's gains, which its
# authors keep as a vector and torchvision as (D, 1, 1).
TABLES = ("relative_position_bias_table", "layer_scale")
HEADS = ("fc.", "classifier.", "head.", "heads.")  # the classifiers, which are not used
POSITIONS = "encoder.pos_embedding"  # of the ViT


class ConvClassifier(VisionEncoder):
    """ResNet, VGG, SqueezeNet, ConvNeXt, EfficientNet, Swin: tokens = the grid after `layer` stages.

    pooled = their mean. A weight file holds the whole classifier or only what comes before it, under the
    whole model's names.
    """

    mean, std = IMAGENET_MEAN, IMAGENET_STD
    images_at_once = 8  # their first grids are large

    def __init__(self, config: TorchvisionConfig) -> None:
        super().__init__()
        loaded = load_weights(config)  # first: a net takes a moment to draw, and is of no use without
        net = _torchvision_net(config)
        self.notes = taken_by(net, loaded, config, HEADS)
        parts = _stages(net)
        if config.layer > len(parts):
            raise UserError(f"vision.layer={config.layer}: {config.net} has {len(parts)} stages")
        self.parts = nn.ModuleList(parts[: config.layer or None])
        self.no_decay = tuple(name for name, _ in self.named_parameters() if name.rpartition(".")[2] in TABLES)
        self.channels_last = config.net.startswith("swin")
        with torch.device("meta"):
            probe = nn.ModuleList(_stages(_torchvision_net(config))[: config.layer or None]).eval()
            try:
                self.width = self._grid(torch.empty(1, 3, config.image_size, config.image_size), probe).shape[1]
            except (RuntimeError, ValueError) as error:
                raise UserError(
                    f"vision.image_size={config.image_size} is too small for {config.net}, which halves the sides "
                    "several times: raise it, or stop earlier with vision.layer=n"
                ) from error

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
        loaded = load_weights(config)
        self.net: Any = _torchvision_net(config)
        self.notes = taken_by(self.net, loaded, config, HEADS, self._resized)
        blocks = self.net.encoder.layers
        if config.layer > len(blocks):
            raise UserError(f"vision.layer={config.layer}: {config.net} has {len(blocks)} blocks")
        if config.layer:
            self.net.encoder.layers = blocks[: config.layer]
        self.net.heads = nn.Identity()
        self.width = self.net.hidden_dim

    def _resized(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights with positions for this image size."""
        from torchvision.models.vision_transformer import interpolate_embeddings

        if POSITIONS not in state:
            return state
        try:
            return dict(interpolate_embeddings(self.net.image_size, self.net.patch_size, state))  # type: ignore
        except (ValueError, RuntimeError) as error:
            raise UserError(f"vision.weights are of another network: {error}") from error

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


def load_weights(config: TorchvisionConfig | RegionsConfig) -> Any:
    """What the file of `vision.weights` holds; None where weights are drawn, or needed by nobody.

    On the meta device a file is opened, so that a dry run finds what does not fit, and nothing is downloaded.
    """
    if config.weights == "none" or unread("vision") or (on_meta() and config.weights == "pretrained"):
        return None
    return load_state(config.weights, config.net)


def taken_by(
    net: nn.Module,
    loaded: Any,
    config: TorchvisionConfig | RegionsConfig,
    heads: tuple[str, ...],
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda state: state,
) -> tuple[str, ...]:
    """Load what `load_weights` returned into `net`, after a `change`; lines about it."""
    if loaded is None:
        note = download_note(config.net) if config.weights == "pretrained" and on_meta() else None
        return (note,) if note else ()
    source = f"vision.weights={config.weights}"
    found = under_own_names(loaded, net.state_dict(), source)
    line = fill(net, found._replace(state=change(found.state)), source, heads)
    return () if config.weights == "pretrained" else (line,)


def _torchvision_net(config: TorchvisionConfig) -> Any:
    import torchvision

    sized = {"image_size": config.image_size} if config.net.startswith("vit_") else {}
    return torchvision.models.get_model(config.net, weights=None, **sized)


def _stages(net: Any) -> list[nn.Module]:
    if hasattr(net, "layer4"):  # ResNet
        stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        return [stem, net.layer1, net.layer2, net.layer3, net.layer4]
    return [*net.features, net.norm] if hasattr(net, "norm") else list(net.features)
