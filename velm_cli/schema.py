"""Every option of velm: its type, its default and its meaning in one line. Imports no torch.

YAML in `conf/` only holds values; these dataclasses are the config. Hydra validates each override
against them, `to_object` turns the composed config into them once, at the boundary, and everything
further in takes dataclasses. A component is chosen by its `kind`, never by a `_target_` string, so a
config from a stranger cannot run code. (No `from __future__ import annotations` here: annotations that are
strings would be compiled again at every start.)
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

# ---------------------------------------------------------------------------------------- choices


class Missing(Enum):
    """What to do with an annotated image whose file is absent (it is counted in any case)."""

    auto = "auto"  # error, but skip where the captions come from the complete official set in the jar
    error = "error"
    skip = "skip"


class Mismatch(Enum):
    """What to do with images that two files do not both have exactly once."""

    error = "error"
    ignore = "ignore"


class CocoSplit(Enum):
    karpathy = "karpathy"
    official2014 = "official2014"
    official2017 = "official2017"


class TokenizerKind(Enum):
    word = "word"
    bpe = "bpe"
    wordpiece = "wordpiece"
    pretrained = "pretrained"


class Device(Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Precision(Enum):
    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


class Compile(Enum):
    off = "off"
    block = "block"
    model = "model"


class LrSchedule(Enum):
    cosine = "cosine"
    linear = "linear"
    constant = "constant"


class VisionOutput(Enum):
    grid = "grid"
    pooled = "pooled"


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
    tokens = "tokens"


class FeatureCaching(Enum):
    none = "none"
    bf16 = "bf16"
    fp32 = "fp32"


class TextLoss(Enum):
    next_token = "next_token"
    masked = "masked"
    self_critical = "self_critical"


class ImageLoss(Enum):
    concepts = "concepts"
    masked_patches = "masked_patches"


class JointLoss(Enum):
    contrastive = "contrastive"
    sigmoid = "sigmoid"
    matching = "matching"


class Submission(Enum):
    none = "none"
    coco = "coco"
    nocaps = "nocaps"


class DecodeMethod(Enum):
    beam = "beam"  # beams=1 is greedy
    nucleus = "nucleus"


# ---------------------------------------------------------------------------------------- data


@dataclass
class DatasetConfig:
    kind: str = MISSING  # which reader
    root: str | None = None  # folder with the images and annotations
    store: str | None = None  # folder of the preprocessed store; null = stores/<dataset>
    images: bool = True  # false: captions only, for language-model training
    missing: Missing = Missing.auto  # annotated images that are absent: error | skip | auto
    image_size: int = 256  # shorter side of the stored images, pixels
    image_quality: int = 90  # JPEG quality of the stored images
    max_pixels: int = 178_956_970  # refuse images with more pixels than this (decompression bombs)


@dataclass
class ShapesConfig(DatasetConfig):
    kind: str = "shapes"
    root: str | None = "data/shapes"  # where the drawn scenes are written
    image_size: int = 64  # shorter side of the stored images, pixels
    image_quality: int = 95  # JPEG quality of the stored images
    num_train: int = 5000  # scenes to train on
    num_val: int = 100  # scenes to validate on
    num_test: int = 100  # scenes with kinds of objects (size, colour, shape) that training never shows
    draw_seed: int = 0  # the scenes are a pure function of this and the numbers above


@dataclass
class CocoConfig(DatasetConfig):
    kind: str = "coco"
    split: CocoSplit = CocoSplit.karpathy  # karpathy | official2014 | official2017
    split_file: str | None = None  # dataset_coco.json, or a json(.gz) of image ids by part


@dataclass
class FlickrConfig(DatasetConfig):
    kind: str = "flickr"
    release: str = "flickr8k"  # flickr8k | flickr30k: names the store
    split_file: str | None = None  # Karpathy's dataset_flickr*.json, if not found in root


@dataclass
class ManifestConfig(DatasetConfig):
    kind: str = "manifest"
    file: str | None = None  # JSON lines {"image": path, "captions": [...], "split": "train"}; COCO's JSON, to test on


@dataclass
class FolderConfig(DatasetConfig):
    kind: str = "folder"
    val_fraction: float = 0.05  # share of images held out for validation where no folder says so
    test_fraction: float = 0.05  # share held out for testing


@dataclass
class TokenizerConfig:
    kind: TokenizerKind = TokenizerKind.word
    min_count: int = 5  # word: words seen less often become <unk>
    vocab_size: int = 8000  # bpe, wordpiece: size of the vocabulary
    name: str | None = None  # pretrained: hub name or local folder
    max_tokens: int = 40  # longer captions are cut here when tokenised


@dataclass
class PreprocessConfig:
    workers: int = 0  # processes; 0 = one a core
    shard_images: int = 1000  # images a tar shard
    num_concepts: int = 1000  # most frequent content words of the training captions, for L_image


@dataclass
class DataConfig:
    captions_per_image: int = 5  # captions drawn an image and step; the image is encoded once for all
    crop_scale: float = 1.0  # smallest share of the area a random crop keeps; 1 = no random crop
    flip: bool = False  # mirror half of the images (never where captions may say left or right)
    colour_jitter: float = 0.0  # brightness, contrast and saturation change by factors from 1 - this to 1 + this
    workers: int = 0  # threads that read images ahead; the order of samples does not depend on it
    cache: FeatureCaching = FeatureCaching.none  # none | bf16 | fp32: a frozen encoder's features, computed once
    views: int = 1  # of each training image in the cache: the first as it is, the others augmented; an epoch takes one


# ---------------------------------------------------------------------------------------- model


@dataclass
class VisionConfig:
    kind: str = MISSING
    image_size: int = 224  # input side, pixels
    weights: str = "none"  # pretrained | none | path of a state dict (.safetensors)
    freeze: str = "none"  # none | all | first:n (the first n stages or blocks)
    output: VisionOutput = VisionOutput.grid  # grid: every position is a token | pooled: one token an image


@dataclass
class NoVisionConfig(VisionConfig):
    kind: str = "none"


@dataclass
class ViTConfig(VisionConfig):
    kind: str = "vit"
    image_size: int = 64  # input side, pixels
    patch_size: int = 8  # side of the square that becomes one token, pixels
    width: int = 128  # size of the tokens
    layers: int = 4  # transformer blocks
    heads: int = 4  # attention heads
    dropout: float = 0.0  # within the blocks
    conv_stem: bool = True  # 3x3 convolutions before the patches: trains faster from scratch


@dataclass
class ConvNetConfig(VisionConfig):
    kind: str = "convnet"
    image_size: int = 64  # input side, pixels
    width: int = 128  # size of the tokens: channels of the last stage
    stages: int = 3  # each halves the sides: 64 pixels and 3 stages make 8 x 8 tokens


@dataclass
class TorchvisionConfig(VisionConfig):
    kind: str = "torchvision"
    net: str = "resnet50"  # torchvision's name of the classifier
    weights: str = "pretrained"  # pretrained (torchvision's, needs the network) | none | path of a state dict
    layer: int = 0  # stop after so many stages or blocks; 0 = all


@dataclass
class TransformersVisionConfig(VisionConfig):
    kind: str = "transformers"
    name: str = ""  # folder of a transformers model, or a hub name
    weights: str = "pretrained"  # pretrained (those of `name`) | none (its config alone) | another folder
    layer: int = 0  # stop after so many blocks; 0 = all


@dataclass
class RegionsConfig(VisionConfig):
    kind: str = "regions"
    net: str = "fasterrcnn_resnet50_fpn"  # torchvision's name of the detector
    weights: str = "pretrained"  # pretrained (torchvision's, needs the network) | none | path of a state dict
    freeze: str = "all"  # none | all | first:n
    regions: int = 36  # boxes an image: the surest


@dataclass
class TextConfig:
    kind: str = MISSING
    freeze: str = "none"  # none | all


@dataclass
class ScratchTextConfig(TextConfig):
    width: int = 128  # size of embeddings and states
    layers: int = 2  # transformer blocks or recurrent layers
    dropout: float = 0.1  # of embeddings and within the layers
    vectors: str | None = None  # word vectors in GloVe's text format, of `width` numbers, to start from


@dataclass
class TransformerConfig(ScratchTextConfig):
    kind: str = "transformer"
    heads: int = 4  # attention heads


@dataclass
class LSTMConfig(ScratchTextConfig):
    kind: str = "lstm"
    layers: int = 1  # recurrent layers


@dataclass
class GRUConfig(ScratchTextConfig):
    kind: str = "gru"
    layers: int = 1  # recurrent layers


@dataclass
class PretrainedTextConfig(TextConfig):
    name: str = ""  # folder of a transformers model, or a hub name; its tokenizer is used too
    weights: str = "pretrained"  # pretrained (those of `name`) | none (its config alone) | another folder
    lora_rank: int = 0  # train low-rank updates of this rank and nothing else of it; 0 = none


@dataclass
class CausalLMConfig(PretrainedTextConfig):
    kind: str = "causal_lm"


@dataclass
class BertConfig(PretrainedTextConfig):
    kind: str = "bert"


@dataclass
class FusionConfig:
    kind: str = MISSING
    dropout: float = 0.1  # within the fusion


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
    heads: int = 4  # attention heads of `dot`
    width: int = 128  # inner width of `additive`


@dataclass
class CrossModalConfig(FusionConfig):
    kind: str = "cross_modal"
    layers: int = 2  # transformer blocks with cross-attention
    heads: int = 4  # attention heads


@dataclass
class CoAttentionConfig(FusionConfig):
    kind: str = "co_attention"
    layers: int = 2  # pairs of transformer blocks, one a stream
    heads: int = 4  # attention heads


@dataclass
class PrefixConfig(FusionConfig):
    kind: str = "prefix"
    mapper: PrefixMapper = PrefixMapper.mlp  # mlp | transformer | tokens (every image token becomes one)
    length: int = 10  # positions before the text, of `mlp` and `transformer`
    layers: int = 2  # blocks of `transformer`
    heads: int = 4  # attention heads of `transformer`


@dataclass
class GatedConfig(FusionConfig):
    kind: str = "gated"
    every: int = 1  # gated cross-attention before every so many layers of the text encoder
    heads: int = 4  # attention heads


@dataclass
class ExternalFusionConfig(FusionConfig):
    kind: str = "external"
    name: str = ""  # entry point of the group velm.fusions, of any installed package
    options: dict[str, Any] = field(default_factory=dict)  # what its class is given


# ---------------------------------------------------------------------------------------- training


@dataclass
class TaskConfig:
    kind: str = MISSING


@dataclass
class CaptionTaskConfig(TaskConfig):
    kind: str = "caption"


@dataclass
class LossConfig:
    """alpha*L_text + beta*L_image + gamma*L_joint; a weight of zero computes nothing."""

    alpha: str = "1"  # weight of L_text: a number, learned, or linear|cosine|step(from,to,500), (from,to,5ep)
    beta: str = "0"  # weight of L_image
    gamma: str = "0"  # weight of L_joint
    text: TextLoss = (
        TextLoss.next_token
    )  # next_token | masked (hidden words; generates nothing) | self_critical (CIDEr)
    samples: int = 5  # L_text self_critical: captions drawn an image and step
    label_smoothing: float = 0.0  # L_text
    scheduled_sampling: str = "0"  # L_text: probability that an input word is the model's own: a number or a schedule
    masked_words: float = 0.15  # L_text masked: share of the words that are hidden
    chunk: int = 0  # L_text: positions whose logits exist at once, for large vocabularies; 0 = all
    image: ImageLoss = ImageLoss.concepts  # L_image: concepts | masked_patches (hidden squares are painted in)
    masked_patches: float = 0.6  # L_image masked_patches: share of the image that is hidden
    patch_size: int = 16  # L_image masked_patches: side of a hidden square, pixels
    joint: JointLoss = JointLoss.contrastive  # L_joint: contrastive | sigmoid | matching (contrastive and matching)
    num_concepts: int = 1000  # L_image: the most frequent content words that are predicted
    joint_width: int = 128  # L_joint: size of the shared embedding
    temperature: float = 0.07  # L_joint: its starting value (it is learned)


@dataclass
class OptimConfig:
    lr: float = 1e-3  # highest learning rate
    vision_lr_scale: float = 1.0  # the vision encoder learns at lr times this
    weight_decay: float = 0.05  # of matrices; vectors do not decay
    beta1: float = 0.9  # AdamW's average of gradients
    beta2: float = 0.98  # AdamW's average of squared gradients
    eps: float = 1e-8  # AdamW's denominator
    schedule: LrSchedule = LrSchedule.cosine  # after the warm-up: cosine | linear | constant
    warmup_steps: int = 100  # optimiser steps from 0 to lr
    min_lr_ratio: float = 0.01  # the schedule ends at lr times this
    grad_clip: float = 1.0  # largest global gradient norm; 0 = no clipping


@dataclass
class RunConfig:
    dir: str = "runs"  # parent of every run folder
    max_steps: int = 1000  # optimiser steps
    batch_size: int = 32  # images a step (before accumulation)
    accumulation: int = 1  # micro-batches a step
    log_every: int = 20  # steps
    checkpoint_every: int = 200  # steps
    keep_checkpoints: int = 2  # the newest so many stay
    validate_every: int = 200  # steps; 0 = only at the end
    validate_images: int = 200  # images decoded and scored at a validation; 0 = all
    patience: int = 0  # stop after so many validations without a better CIDEr; 0 = never
    ema_decay: float = 0.0  # moving average of the weights, used for validation and export; 0 = off
    device: Device = Device.auto  # auto | cpu | cuda | mps
    precision: Precision = Precision.auto  # auto | fp32 | bf16 (autocast; weights stay float32)
    overfit_images: int = 0  # train and validate on the first so many images only; 0 = all
    compile: Compile = Compile.off  # off | block | model: torch.compile for training steps (docs/performance.md)
    threads: int = 0  # CPU threads; 0 = as torch decides
    tensorboard: bool = False  # also write TensorBoard events (extra `tensorboard`)
    profile: bool = False  # watch ten steps after the fifth: RUN/profile/summary.txt and trace.json.gz


@dataclass
class InitConfig:
    vision: str | None = None  # run folder or .safetensors to take the vision encoder's weights from
    text: str | None = None  # run folder or .safetensors to take the text encoder's weights from


@dataclass
class DecodeConfig:
    method: DecodeMethod = DecodeMethod.beam  # beam | nucleus
    beams: int = 1  # beam: prefixes kept; 1 is greedy
    max_length: int = 30  # tokens, without the start token
    length_penalty: float = 1.0  # scores of two or more beams are divided by length ** this; 0 favours short captions
    top_p: float = 0.9  # nucleus
    temperature: float = 1.0  # nucleus
    batch_size: int = 64  # images decoded together


METRIC_NAMES = ("bleu", "meteor", "rouge_l", "cider", "spice")


@dataclass
class MetricsConfig:
    names: list[str] = field(default_factory=lambda: [*METRIC_NAMES])  # which metrics to compute
    required: list[str] = field(default_factory=list)  # exit 1 when one of these could not be computed
    clip: str | None = None  # folder of a CLIP-like transformers model: CLIPScore and RefCLIPScore too
    df: str = "corpus"  # CIDEr's document frequencies: corpus (of the references) | coco | file of velm score save_df=
    resamples: int = 1000  # of the images, for 95 % intervals; 0 = none
    java_timeout: float = 7200.0  # seconds before METEOR or SPICE is given up
    spice_memory: str = "auto"  # Java heap of SPICE, such as 4G; auto = by the machine's limit
    spice_threads: int = 0  # 0 = one a core


# ---------------------------------------------------------------------------------------- roots


@dataclass
class PreprocessRoot:
    stage: str = "preprocess"
    fresh: bool = False  # rebuild the store even if it is complete
    dry_run: bool = False  # read and count, write nothing
    dataset: DatasetConfig = MISSING
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    preview: bool = False  # also write preview.png: 16 training samples as the `data` options augment them
    data: DataConfig = field(default_factory=DataConfig)
    experiment: Any = None


@dataclass
class TrainRoot:
    stage: str = "train"
    name: str | None = None  # run folder runs/STAGE/NAME; null = named by the choices made
    seed: int = 0  # of the initial weights, the order of the data, dropout and augmentation
    fresh: bool = False  # start over in a new folder instead of resuming
    dry_run: bool = False  # validate, print sizes and estimates, train nothing
    dataset: DatasetConfig = MISSING
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    data: DataConfig = field(default_factory=DataConfig)
    vision: VisionConfig = MISSING
    text: TextConfig = MISSING
    fusion: FusionConfig = MISSING
    task: TaskConfig = MISSING
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)
    init: InitConfig = field(default_factory=InitConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    experiment: Any = None
    debug: Any = None


@dataclass
class FinetuneRoot(TrainRoot):
    stage: str = "finetune"
    checkpoint: str = MISSING  # run folder (or its .safetensors) whose weights training starts from


@dataclass
class ReportConfig:
    page: bool = True  # write report.html: scores, curves and a gallery of every image
    attention: int = 100  # images that it shows with where the model looked for each word


@dataclass
class EvalConfig:
    submit: Submission = Submission.none  # also write the file that a server takes: none | coco | nocaps
    system: str = "velm"  # the system's name in the name of that file


@dataclass
class EvaluateRoot:
    stage: str = "evaluate"
    checkpoint: str = MISSING  # run folder, or a .safetensors file inside one
    split: str = "test"  # which part of the data set: train | val | test
    limit: int = 0  # evaluate only the first so many images; 0 = all
    name: str | None = None  # folder runs/evaluate/NAME; null = named by the run, split and decoding
    seed: int = 0  # nucleus sampling
    fresh: bool = False  # evaluate again in a new folder
    dry_run: bool = False  # check everything, caption nothing
    dataset: DatasetConfig = MISSING
    run: RunConfig = field(default_factory=RunConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    experiment: Any = None


@dataclass
class ScoreRoot:
    stage: str = "score"
    predictions: str = MISSING  # [{"image_id", "caption"}, ...] in JSON (COCO's results) or JSON lines
    references: str = MISSING  # COCO's captions file, or JSON lines of {"image_id", "captions": [...]}
    vs: str | None = None  # another system's predictions: paired tests against it
    out: str | None = None  # folder for scores.json, per_image.jsonl and report.html
    mismatch: Mismatch = Mismatch.error  # images not exactly once in each file: error | ignore
    training: str | None = None  # captions that the system learned from, as in `references`: how many are new?
    instances: str | None = None  # COCO's instances_*.json: which objects are named but not in the image (CHAIR)?
    images: str | None = None  # folder of the images, for the report
    save_df: str | None = None  # write the references' document frequencies to this .npz (metrics.df=FILE reads it)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)


@dataclass
class DoctorRoot:
    stage: str = "doctor"
    fix: str | None = None  # spice: fetch what SPICE lacks
    folder: str | None = None  # take the files of the fix from this folder instead of the network


ROOTS: dict[str, type] = {
    "preprocess": PreprocessRoot,
    "train": TrainRoot,
    "finetune": FinetuneRoot,
    "evaluate": EvaluateRoot,
    "score": ScoreRoot,
    "doctor": DoctorRoot,
}

# Groups whose dataclass depends on the choice: group -> kind -> dataclass.
KINDS: dict[str, dict[str, type]] = {
    "dataset": {
        "shapes": ShapesConfig,
        "coco": CocoConfig,
        "flickr": FlickrConfig,
        "manifest": ManifestConfig,
        "folder": FolderConfig,
    },
    "vision": {
        "none": NoVisionConfig,
        "convnet": ConvNetConfig,
        "vit": ViTConfig,
        "torchvision": TorchvisionConfig,
        "transformers": TransformersVisionConfig,
        "regions": RegionsConfig,
    },
    "text": {
        "transformer": TransformerConfig,
        "lstm": LSTMConfig,
        "gru": GRUConfig,
        "causal_lm": CausalLMConfig,
        "bert": BertConfig,
    },
    "fusion": {
        "none": NoFusionConfig,
        "concat": ConcatConfig,
        "add": AddConfig,
        "multiply": MultiplyConfig,
        "weighted_sum": WeightedSumConfig,
        "attention": AttentionConfig,
        "cross_modal": CrossModalConfig,
        "co_attention": CoAttentionConfig,
        "prefix": PrefixConfig,
        "gated": GatedConfig,
        "external": ExternalFusionConfig,
    },
    "task": {"caption": CaptionTaskConfig},
}
