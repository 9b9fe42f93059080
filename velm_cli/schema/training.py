"""Options of the task, its losses, the optimiser, a run, decoding and metrics."""

from dataclasses import dataclass, field
from enum import Enum

from velm_cli.schema.bounds import WIDEST, within
from velm_cli.schema.metric_names import METRIC_NAMES, metrics_asked
from velm_cli.schema.paths import path


class Device(Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Precision(Enum):
    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class FrozenDtype(Enum):
    auto = "auto"
    fp32 = "fp32"


class Compile(Enum):
    off = "off"
    block = "block"
    model = "model"


class Parallel(Enum):
    ddp = "ddp"
    fsdp = "fsdp"


class LrSchedule(Enum):
    cosine = "cosine"
    linear = "linear"
    constant = "constant"
    inverse_sqrt = "inverse_sqrt"


class TextLoss(Enum):
    next_token = "next_token"
    masked = "masked"
    self_critical = "self_critical"


class ImageLoss(Enum):
    concepts = "concepts"
    masked_patches = "masked_patches"


class Reduction(Enum):
    sum = "sum"
    mean = "mean"


class JointLoss(Enum):
    contrastive = "contrastive"
    sigmoid = "sigmoid"
    matching = "matching"
    label = "label"


class DecodeMethod(Enum):
    beam = "beam"  # beams=1 is greedy
    nucleus = "nucleus"


@dataclass
class LossConfig:
    """alpha*L_text + beta*L_image + gamma*L_joint; a weight of zero computes nothing."""

    alpha: str = "1"  # weight of L_text: a number, learned, or linear|cosine|step(from,to,500), (from,to,5ep)
    beta: str = "0"  # weight of L_image: nats per image, tens where L_text has a few per token (docs/losses.md)
    gamma: str = "0"  # weight of L_joint
    text: TextLoss = (
        TextLoss.next_token
    )  # next_token | masked (hidden words; generates nothing) | self_critical (CIDEr)
    samples: int = within(5, least=2, most=10**6)  # L_text self_critical: captions drawn an image and step
    label_smoothing: float = within(0.0, least=0, below=1)  # L_text, in training only: validation's loss is without it
    scheduled_sampling: str = "0"  # L_text: probability that an input word is the model's own: a number or a schedule
    masked_words: float = within(0.15, above=0, below=1)  # L_text masked: share of the words that are hidden
    chunk: int = within(
        0, least=0
    )  # L_text: positions whose logits exist at once; 0 = by the vocabulary and the device
    image: ImageLoss = ImageLoss.concepts  # L_image: concepts | masked_patches (hidden squares are painted in)
    image_reduction: Reduction = Reduction.sum  # L_image concepts, per image: sum | mean over the concepts
    masked_patches: float = within(0.6, above=0, below=1)  # L_image masked_patches: share of the image that is hidden
    patch_size: int = within(16, least=1, most=WIDEST)  # L_image masked_patches: side of a hidden square, pixels
    joint: JointLoss = (
        JointLoss.contrastive
    )  # contrastive | sigmoid | matching (adds hard negatives, of one process) | label (of the task)
    num_concepts: int = within(1000, least=1)  # L_image: the most frequent content words that are predicted
    joint_width: int = within(128, least=1, most=WIDEST)  # L_joint: size of the shared embedding
    joint_queries: int = within(
        0, least=0, most=1000
    )  # L_joint: learned queries that look at image positions and words in addition to the pooled ones; 0 = these alone
    joint_dropout: float = within(0.0, least=0, below=1)  # L_joint with joint_queries: of what is mapped into the space
    temperature: float = within(
        0.07, least=0.01, most=100
    )  # L_joint contrastive, matching: its starting value (it is learned; as in CLIP never below 0.01)


@dataclass
class OptimConfig:
    lr: float = within(1e-3, least=0)  # highest learning rate
    vision_lr_scale: float = within(1.0, least=0)  # the vision encoder learns at lr times this
    text_lr_scale: float = within(1.0, least=0)  # the text encoder learns at lr times this; pretrained: 0.01 to 0.1
    fusion_lr_scale: float = within(1.0, least=0)  # the fusion learns at lr times this (docs/training.md)
    weight_decay: float = within(0.05, least=0)  # of matrices; vectors do not decay
    beta1: float = within(0.9, least=0, below=1)  # AdamW's average of gradients
    beta2: float = within(0.98, least=0, below=1)  # AdamW's average of squared gradients
    eps: float = within(1e-8, above=0)  # AdamW's denominator
    schedule: LrSchedule = LrSchedule.cosine  # after the warm-up: cosine | linear | constant | inverse_sqrt
    warmup_steps: int = within(100, least=0)  # optimiser steps from 0 to lr
    min_lr_ratio: float = within(0.01, least=0, most=1)  # cosine, linear: they end at lr times this
    grad_clip: float = within(1.0, least=0)  # largest global gradient norm; 0 = no clipping


@dataclass
class RunConfig:
    dir: str = path("runs")  # parent of every run folder
    max_steps: int = within(1000, least=1)  # optimiser steps
    batch_size: int = within(32, least=1, most=10**9)  # images per step (before accumulation)
    accumulation: int = within(
        1, least=1
    )  # micro-batches per step; L_joint's negatives are those of one (docs/losses.md)
    log_every: int = within(20, least=1)  # steps
    checkpoint_every: int = within(200, least=1)  # steps
    keep_checkpoints: int = within(2, least=1)  # number of most recent checkpoints to keep
    keep_every: int = within(0, least=0)  # steps; checkpoints of their multiples stay, too; 0 = none
    async_checkpoints: bool = False  # write them during training; costs a copy of the weights and the optimiser's state
    validate_every: int = within(200, least=0)  # steps; 0 = only at the end
    validate_images: int = within(
        200, least=0
    )  # examples (images, questions) decoded and scored at a validation; 0 = all
    patience: int = within(
        0, least=0
    )  # stop after N validations without a better CIDEr, counted once no schedule moves; 0 = never
    ema_decay: float = within(
        0.0, least=0, below=1
    )  # average of weights, validated and exported; (1+n)/(10+n) while that is less; 0 = off
    device: Device = Device.auto  # auto | cpu | cuda | mps
    precision: Precision = (
        Precision.auto
    )  # auto | fp32 | bf16 | fp16 (scaled losses, for GPUs without bf16); autocast, and weights that learn are float32
    frozen_dtype: FrozenDtype = (
        FrozenDtype.auto
    )  # in memory: auto (frozen matrices as bf16 and fp16 multiply them: half the memory, the same results) | fp32
    overfit_images: int = within(0, least=0)  # train and validate on the first N images only; 0 = all
    checkpoint_activations: bool = False  # keep blocks' inputs only and compute the rest again: less memory, more time
    compile: Compile = Compile.off  # off | block | model: torch.compile for training steps (docs/performance.md)
    parallel: Parallel = (
        Parallel.ddp
    )  # several processes (torchrun, srun): ddp | fsdp (each holds a slice of the weights)
    threads: int = within(0, least=0)  # CPU threads; 0 = as torch decides
    deterministic: bool = False  # kernels that give the same bits every time, where torch has them (it warns elsewhere)
    tensorboard: bool = False  # also write TensorBoard events (extra `tensorboard`; docs/trackers.md)
    wandb: bool = False  # also record the run with Weights & Biases (extra `wandb`)
    mlflow: bool = False  # also record the run with MLflow (extra `mlflow`)
    profile: bool = False  # watch ten steps after the fifth: RUN/profile/summary.txt and trace.json.gz


@dataclass
class InitConfig:
    vision: str | None = path(None)  # run folder or .safetensors to take the vision encoder's weights from
    text: str | None = path(None)  # run folder or .safetensors to take the text encoder's weights from


@dataclass
class DecodeConfig:
    method: DecodeMethod = DecodeMethod.beam  # beam | nucleus
    beams: int = within(
        1, least=1
    )  # beam: prefixes kept; 1 is greedy. probabilities are those of the allowed words alone
    samples: int = within(
        1, least=1, most=1000
    )  # texts of an example: the best of the beams, or so many drawn; scores are of the first
    max_length: int = within(30, least=1)  # tokens, without the start token
    min_length: int = within(0, least=0)  # tokens before a text may end
    length_penalty: float = within(
        1.0, least=0, most=10
    )  # scores of two or more beams are divided by length ** this; 0 favours short captions
    top_p: float = within(0.9, least=1e-6, most=1)  # nucleus; a sample depends on `seed` and its image alone
    top_k: int = within(0, least=0)  # nucleus: draw among the k likeliest tokens, of which top_p then takes; 0 = all
    temperature: float = within(1.0, least=0.001)  # nucleus: logits are divided by it, in float32
    repetition_penalty: float = within(
        1.0, above=0, most=100
    )  # above 1: tokens that prompt or text have already become less likely
    no_repeat_ngram: int = within(0, least=0)  # no n tokens come twice in prompt and text together; 0 = off
    allowed: str | None = path(None)  # file with one text a line: only these are written
    batch_size: int = within(64, least=1, most=10**9)  # images decoded together


# Options of decoding that configs of older velms do not name; those runs were as by default.
OF_BEAMS, OF_DRAWING = ("length_penalty",), ("top_p", "top_k", "temperature")  # without effect in the other method
LATER_DECODING = ("samples", "min_length", "top_k", "repetition_penalty", "no_repeat_ngram", "allowed")


@dataclass
class MetricsConfig:
    """`names` and `required` are in velm's spelling, whatever they were typed in."""

    names: list[str] = field(
        default_factory=lambda: [*METRIC_NAMES]
    )  # which to compute: bleu, meteor, rouge_l, cider, spice; one or a list, in any spelling (CIDEr, BLEU-4)
    required: list[str] = field(default_factory=list)  # exit 1 when one of these could not be computed
    clip: str | None = path(None)  # folder of a CLIP-like transformers model: CLIPScore and RefCLIPScore too
    df: str = path(
        "corpus"
    )  # CIDEr's document frequencies: corpus (of the references) | coco | file of velm score save_df=
    resamples: int = within(1000, least=0, most=1_000_000)  # of the images, for 95 % intervals; 0 = none
    java_timeout: float = within(7200.0, above=0, most=1e9)  # seconds before METEOR or SPICE is given up
    spice_memory: str = "auto"  # Java heap of SPICE, such as 4G; auto = by the machine's limit
    spice_threads: int = within(0, least=0, most=1024)  # 0 = one per core

    def __post_init__(self) -> None:
        self.names, self.required = metrics_asked(self.names), metrics_asked(self.required)
        if self.clip is not None:  # asks for CLIPScore already
            self.names = [name for name in self.names if name != "clip"]
