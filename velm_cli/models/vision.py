"""Vision encoders: image_BCHW -> tokens_BSD and pooled_BD.

Each encoder says how its input is normalised (`mean`, `std`), how wide its tokens are (`width`) and
which parts `freeze=first:n` counts (`stages`). Shapes: B images, C channels, S image positions, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from velm_cli.errors import UserError
from velm_cli.models.layers import Block, initialise
from velm_cli.models.weights import load_state
from velm_cli.schema import ConvFeaturesConfig, ConvNetConfig, NoVisionConfig, ResNetConfig, VisionConfig, ViTConfig

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """What an encoder says of a batch of images."""

    tokens_BSD: Tensor
    pooled_BD: Tensor

    def select(self, index: Tensor) -> ImageFeatures:
        return ImageFeatures(self.tokens_BSD[index], self.pooled_BD[index])


class VisionEncoder(nn.Module):
    """The interface of every vision encoder."""

    width: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def forward(self, image_BCHW: Tensor) -> ImageFeatures:
        raise NotImplementedError

    def stages(self) -> list[nn.Module]:
        """The parts in the order in which the image passes them."""
        raise NotImplementedError


class ViT(VisionEncoder):
    """Small vision transformer (Dosovitskiy et al. 2021) trained from scratch.

    pooled = maximum over the positions, see `ConvNet`. With `conv_stem` the patches come out of stride-2
    3x3 convolutions instead of one large one, which makes training from scratch faster and steadier
    (Xiao et al. 2021).
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.width = config.width
        grid = config.image_size // config.patch_size
        self.stem = (
            _conv_stem(config.patch_size, config.width)
            if config.conv_stem
            else nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)
        )
        self.position = nn.Parameter(torch.empty(1, grid * grid, config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        initialise(self, config.layers)
        nn.init.normal_(self.position, std=0.02)

    def forward(self, image_BCHW: Tensor) -> ImageFeatures:
        x_BSD = self.stem(image_BCHW).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x_BSD, _ = block(x_BSD, causal=False)
        x_BSD = self.norm(x_BSD)
        return ImageFeatures(x_BSD, x_BSD.amax(dim=1))

    def stages(self) -> list[nn.Module]:
        return [self.stem, *self.blocks, self.norm]


def _conv_stem(patch_size: int, width: int) -> nn.Sequential:
    """3x3 convolutions that halve the sides until one position stands for patch_size pixels."""
    halvings = patch_size.bit_length() - 1
    layers: list[nn.Module] = []
    channels = 3
    for step in reversed(range(halvings)):
        out = max(16, width >> step)
        layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1), nn.GroupNorm(1, out), nn.GELU()]
        channels = out
    return nn.Sequential(*layers, nn.Conv2d(channels, width, 1))


class ConvNet(VisionEncoder):
    """Plain convolutions with batch normalisation: what learns drawn scenes in a minute on a laptop.

    Each stage is a stride-2 3x3 convolution; one more at the last size. pooled = a linear map of the
    maximum and the mean over the positions: the maximum says what is there however small it is, the mean
    how much of it (L_image learns several times more slowly from the mean alone; docs/log.md). tokens =
    pooled and the last grid, plus a learned position each, since attention could not tell left from right
    otherwise.
    """

    def __init__(self, config: ConvNetConfig) -> None:
        super().__init__()
        self.width = config.width
        channels = [3, *(max(16, config.width >> step) for step in reversed(range(config.stages)))]
        self.convolutions = nn.ModuleList(_convolution(before, after, stride=2) for before, after in pairwise(channels))
        self.convolutions.append(_convolution(config.width, config.width, stride=1))
        self.pool = nn.Sequential(nn.BatchNorm1d(2 * config.width), nn.Linear(2 * config.width, config.width))
        side = -(-config.image_size // 2**config.stages)
        self.position = nn.Parameter(0.5 * torch.randn(1, 1 + side * side, config.width))

    def forward(self, image_BCHW: Tensor) -> ImageFeatures:
        x_BDhw = image_BCHW
        for convolution in self.convolutions:
            x_BDhw = convolution(x_BDhw)
        x_BSD = x_BDhw.flatten(2).transpose(1, 2)
        pooled_BD = self.pool(torch.cat([x_BSD.amax(dim=1), x_BSD.mean(dim=1)], dim=-1))
        tokens_BSD = torch.cat([pooled_BD[:, None], x_BSD], dim=1) + self.position
        return ImageFeatures(tokens_BSD, pooled_BD)

    def stages(self) -> list[nn.Module]:
        return [*self.convolutions, self.pool]


def _convolution(channels: int, out: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()
    )


class ResNet(VisionEncoder):
    """torchvision's ResNet (He et al. 2016) without its classifier; tokens = the last stage's grid."""

    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        import torchvision

        net = torchvision.models.get_model(f"resnet{config.depth}", weights=None)
        self.width = net.fc.in_features
        self.stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        if config.weights != "none" and not _on_meta():
            # The layers above are the classifier's own modules, so loading it fills them.
            _fill(net, load_state(config.weights, f"resnet{config.depth}"), config.weights)

    def forward(self, image_BCHW: Tensor) -> ImageFeatures:
        x_BDhw = self.stem(image_BCHW)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x_BDhw = layer(x_BDhw)
        x_BSD = x_BDhw.flatten(2).transpose(1, 2)
        return ImageFeatures(x_BSD, x_BSD.mean(dim=1))

    def stages(self) -> list[nn.Module]:
        return [self.stem, self.layer1, self.layer2, self.layer3, self.layer4]


class ConvFeatures(VisionEncoder):
    """torchvision's SqueezeNet (Iandola et al. 2016) or VGG (Simonyan & Zisserman 2015): `features` only.

    tokens = the last grid; pooled = its mean. A weight file may hold the whole classifier or only the
    convolutions, under the whole model's names.
    """

    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(self, config: ConvFeaturesConfig) -> None:
        super().__init__()
        import torchvision

        self.features = torchvision.models.get_model(config.net, weights=None).features
        self.width = next(m.out_channels for m in reversed(list(self.modules())) if isinstance(m, nn.Conv2d))
        if config.net.startswith("squeezenet"):
            self.width *= 2  # the last module joins two convolutions side by side
        if config.weights != "none" and not _on_meta():
            state = load_state(config.weights, config.net)
            _fill(self, {k: v for k, v in state.items() if k.startswith("features.")}, config.weights)

    def forward(self, image_BCHW: Tensor) -> ImageFeatures:
        x_BSD = self.features(image_BCHW).flatten(2).transpose(1, 2)
        return ImageFeatures(x_BSD, x_BSD.mean(dim=1))

    def stages(self) -> list[nn.Module]:
        return list(self.features)


def _fill(net: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load all of `state`, which must be exactly what `net` has; UserError with the first difference."""
    try:
        net.load_state_dict(state, strict=True)
    except RuntimeError as error:
        difference = " ".join(str(error).splitlines()[1:2]).strip()[:160]
        raise UserError(f"vision.weights={source} are of another network: {difference}") from error


def _on_meta() -> bool:
    return torch.empty(0).device.type == "meta"


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
        case ResNetConfig():
            encoder = ResNet(config)
        case ConvFeaturesConfig():
            encoder = ConvFeatures(config)
        case _:
            raise AssertionError(f"no vision encoder for {type(config).__name__}")
    for stage in frozen_stages(encoder, config.freeze):
        stage.requires_grad_(False)
    return encoder


def frozen_stages(encoder: VisionEncoder, freeze: str) -> list[nn.Module]:
    """The parts that `freeze` (none | all | first:n) keeps from training."""
    if freeze == "none":
        return []
    if freeze == "all":
        return [encoder]
    count = int(freeze.removeprefix("first:"))
    stages = encoder.stages()
    if count > len(stages):
        raise UserError(f"vision.freeze={freeze}: this encoder has only {len(stages)} stages")
    return stages[:count]
