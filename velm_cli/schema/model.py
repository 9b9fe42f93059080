"""Options of vision encoders, text encoders and fusions."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from velm_cli.schema.bounds import DEEPEST, WIDEST, within
from velm_cli.schema.paths import path


class VisionOutput(Enum):
    grid = "grid"
    pooled = "pooled"


class Resize(Enum):
    auto = "auto"
    crop = "crop"
    whole = "whole"


class Quantize(Enum):
    none = "none"
    nf4 = "nf4"


class SumWeights(Enum):
    scalar = "scalar"
    dimension = "dimension"
    gate = "gate"


class AttentionScore(Enum):
    dot = "dot"
    additive = "additive"


class PrefixMapper(Enum):
    mlp = "mlp"
    transformer = "transformer"
    resampler = "resampler"
    tokens = "tokens"


class Projector(Enum):
    linear = "linear"
    mlp = "mlp"


@dataclass
class VisionConfig:
    kind: str = MISSING
    image_size: int = within(224, least=1, most=WIDEST)  # input side, pixels
    resize: Resize = Resize.auto  # auto (as the model's image processor) | crop (the centre) | whole (squeezed)
    weights: str = path("none")  # pretrained | none | path of a state dict (.safetensors)
    freeze: str = "none"  # none | all | first:n (the first n stages or blocks, with positions and norms before them)
    output: VisionOutput = VisionOutput.grid  # grid: every position is a token | pooled: one token per image
    grid: int = within(0, least=0, most=WIDEST)  # average the tokens to a grid of N x N; 0 = all of them
    images: int = within(
        1, least=0, most=1024
    )  # most images of an example, which are told apart by their place; 0 = any number, as a bag
    tiles: int = within(
        1, least=1, most=16
    )  # N: load N x image_size pixels a side, and encode N x N tiles and the whole picture; 1 = the whole alone

    @property
    def side(self) -> int:
        """Pixels a side of the pictures that are loaded."""
        return self.image_size * self.tiles


@dataclass
class NoVisionConfig(VisionConfig):
    kind: str = "none"


@dataclass
class ViTConfig(VisionConfig):
    kind: str = "vit"
    image_size: int = 64  # input side, pixels
    patch_size: int = within(8, least=1, most=WIDEST)  # side of the square that becomes one token, pixels
    width: int = within(128, least=1, most=WIDEST)  # size of the tokens
    layers: int = within(4, least=0, most=DEEPEST)  # transformer blocks
    heads: int = within(4, least=1, most=WIDEST)  # attention heads
    dropout: float = within(0.0, least=0, below=1)  # within the blocks
    conv_stem: bool = True  # 3x3 convolutions before the patches: trains faster from scratch


@dataclass
class ConvNetConfig(VisionConfig):
    kind: str = "convnet"
    image_size: int = 64  # input side, pixels
    width: int = within(128, least=16, most=WIDEST)  # size of the tokens: channels of the last stage
    stages: int = within(3, least=1, most=16)  # each halves the sides: 64 pixels and 3 stages make 8 x 8 tokens


@dataclass
class TorchvisionConfig(VisionConfig):
    kind: str = "torchvision"
    net: str = "resnet50"  # torchvision's name of the classifier
    weights: str = "pretrained"  # pretrained (torchvision's, needs the network) | none | path of a state dict
    layer: int = within(0, least=0)  # stop after N stages or blocks; 0 = all


@dataclass
class LowRank:
    """Updates of a frozen model (LoRA; Hu et al. 2022)."""

    lora_rank: int = within(
        0, least=0, most=WIDEST
    )  # train low-rank updates of this rank and leave the rest of it frozen; 0 = none
    lora_alpha: int = within(0, least=0, most=WIDEST)  # updates count alpha / rank times; 0 = 2 x lora_rank
    lora_targets: list[str] = field(default_factory=list)  # linear layers with updates, [q_proj,v_proj]; [] = all


@dataclass
class TransformersVisionConfig(LowRank, VisionConfig):
    kind: str = "transformers"
    name: str = path("")  # folder of a transformers model, or a hub name
    weights: str = "pretrained"  # pretrained (those of `name`) | none (its config alone) | another folder
    layer: int = within(0, least=0)  # stop after N blocks; 0 = all
    join: list[int] = field(default_factory=list)  # states of these earlier blocks too, next to the last one's: [8,10]


@dataclass
class RegionsConfig(VisionConfig):
    kind: str = "regions"
    net: str = "fasterrcnn_resnet50_fpn"  # torchvision's name of the detector
    weights: str = "pretrained"  # pretrained (torchvision's, needs the network) | none | path of a state dict
    freeze: str = "all"  # none | all | first:n
    regions: int = within(36, least=1)  # boxes per image: those with the highest scores


@dataclass
class TextConfig:
    kind: str = MISSING
    freeze: str = "none"  # none | all | first:n (pretrained: its embeddings and first n layers)


@dataclass
class NoTextConfig(TextConfig):
    kind: str = "none"


@dataclass
class ScratchTextConfig(TextConfig):
    width: int = within(128, least=1, most=WIDEST)  # size of embeddings and states
    layers: int = within(2, least=1, most=DEEPEST)  # transformer blocks or recurrent layers
    dropout: float = within(0.1, least=0, below=1)  # of embeddings and within the layers
    vectors: str | None = path(None)  # word vectors in GloVe's text format, of `width` numbers, to start from


@dataclass
class TransformerConfig(ScratchTextConfig):
    kind: str = "transformer"
    heads: int = within(4, least=1, most=WIDEST)  # attention heads
    mlp_width: int = within(0, least=0, most=WIDEST)  # inner width of the blocks' MLP; 0 = four times the width


@dataclass
class LSTMConfig(ScratchTextConfig):
    kind: str = "lstm"
    layers: int = 1  # recurrent layers


@dataclass
class GRUConfig(ScratchTextConfig):
    kind: str = "gru"
    layers: int = 1  # recurrent layers


@dataclass
class PretrainedTextConfig(LowRank, TextConfig):
    name: str = path("")  # folder of a transformers model, or a hub name; its tokenizer is used too
    weights: str = path("pretrained")  # pretrained (those of `name`) | none (its config alone) | another folder


@dataclass
class CausalLMConfig(PretrainedTextConfig):
    kind: str = "causal_lm"
    quantize: Quantize = Quantize.none  # none | nf4 (frozen matrices in 4 bits while it is trained; needs bitsandbytes)


@dataclass
class BertConfig(PretrainedTextConfig):
    kind: str = "bert"


@dataclass
class FusionConfig:
    kind: str = MISSING
    dropout: float = within(0.1, least=0, below=1)  # within the fusion
    freeze: str = "none"  # none | all


@dataclass
class NoFusionConfig(FusionConfig):
    kind: str = "none"


@dataclass
class ConcatConfig(FusionConfig):
    kind: str = "concat"


@dataclass
class AddConfig(FusionConfig):
    kind: str = "add"


@dataclass
class MultiplyConfig(FusionConfig):
    kind: str = "multiply"


@dataclass
class WeightedSumConfig(FusionConfig):
    kind: str = "weighted_sum"
    weights: SumWeights = SumWeights.dimension  # scalar | dimension | gate (for every token and dimension)


@dataclass
class AttentionConfig(FusionConfig):
    kind: str = "attention"
    score: AttentionScore = AttentionScore.dot  # dot (scaled dot product) | additive
    heads: int = within(4, least=1, most=WIDEST)  # attention heads of `dot`
    width: int = within(128, least=1, most=WIDEST)  # inner width of `additive`


@dataclass
class CrossModalConfig(FusionConfig):
    kind: str = "cross_modal"
    layers: int = within(2, least=1, most=DEEPEST)  # transformer blocks with cross-attention
    heads: int = within(4, least=1, most=WIDEST)  # attention heads
    mlp_width: int = within(0, least=0, most=WIDEST)  # inner width of the blocks' MLP; 0 = four times the text's width
    text_dropout: float = within(
        0.0, least=0, below=1
    )  # of the text's states as they come in: against learning by heart


@dataclass
class CoAttentionConfig(FusionConfig):
    kind: str = "co_attention"
    layers: int = within(2, least=1, most=DEEPEST)  # pairs of transformer blocks, one a stream
    heads: int = within(4, least=1, most=WIDEST)  # attention heads


@dataclass
class PrefixConfig(FusionConfig):
    kind: str = "prefix"
    mapper: PrefixMapper = PrefixMapper.mlp  # mlp (of the pooled image) | transformer | resampler | tokens (of each)
    length: int = within(10, least=1, most=WIDEST)  # positions before the text, but for `tokens`: learned queries
    layers: int = within(2, least=1, most=DEEPEST)  # blocks of `transformer` and `resampler`
    heads: int = within(4, least=1, most=WIDEST)  # attention heads of `transformer` and `resampler`
    shuffle: int = within(1, least=1, most=16)  # N: squares of N x N image tokens become one position, of `tokens`
    projector: Projector = Projector.mlp  # mlp | linear, of `tokens`
    norm: bool = True  # normalise the image's tokens and the prefix | false: neither, as LLaVA (velm export format=hf)


@dataclass
class GatedConfig(FusionConfig):
    kind: str = "gated"
    every: int = within(1, least=1)  # gated cross-attention before every N-th layer of the text encoder
    heads: int = within(4, least=1, most=WIDEST)  # attention heads


@dataclass
class ExternalFusionConfig(FusionConfig):
    kind: str = "external"
    name: str = ""  # entry point of the group velm.fusions, of any installed package
    options: dict[str, Any] = field(default_factory=dict)  # what its class is given
