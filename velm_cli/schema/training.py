"""Options of the task, its losses, the optimiser, a run, decoding and metrics."""

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING


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


class Parallel(Enum):
    ddp = "ddp"
    fsdp = "fsdp"


class LrSchedule(Enum):
    cosine = "cosine"
    linear = "linear"
    constant = "constant"


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


class DecodeMethod(Enum):
    beam = "beam"  # beams=1 is greedy
    nucleus = "nucleus"


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
    beta: str = "0"  # weight of L_image: nats per image, tens where L_text has a few per token (docs/losses.md)
    gamma: str = "0"  # weight of L_joint
    text: TextLoss = (
        TextLoss.next_token
    )  # next_token | masked (hidden words; generates nothing) | self_critical (CIDEr)
    samples: int = 5  # L_text self_critical: captions drawn an image and step
    label_smoothing: float = 0.0  # L_text, in training only: validation's loss is without it
    scheduled_sampling: str = "0"  # L_text: probability that an input word is the model's own: a number or a schedule
    masked_words: float = 0.15  # L_text masked: share of the words that are hidden
    chunk: int = 0  # L_text: positions whose logits exist at once; 0 = by the vocabulary and the device
    image: ImageLoss = ImageLoss.concepts  # L_image: concepts | masked_patches (hidden squares are painted in)
    image_reduction: Reduction = Reduction.sum  # L_image concepts, per image: sum | mean over the concepts
    masked_patches: float = 0.6  # L_image masked_patches: share of the image that is hidden
    patch_size: int = 16  # L_image masked_patches: side of a hidden square, pixels
    joint: JointLoss = JointLoss.contrastive  # contrastive | sigmoid | matching (adds hard negatives, of one process)
    num_concepts: int = 1000  # L_image: the most frequent content words that are predicted
    joint_width: int = 128  # L_joint: size of the shared embedding
    temperature: float = 0.07  # L_joint contrastive, matching: its starting value (it is learned), at least 0.01


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
    accumulation: int = 1  # micro-batches per step; L_joint's negatives are those of one (docs/losses.md)
    log_every: int = 20  # steps
    checkpoint_every: int = 200  # steps
    keep_checkpoints: int = 2  # the newest so many stay
    keep_every: int = 0  # steps; checkpoints of their multiples stay, too; 0 = none
    async_checkpoints: bool = False  # write them beside training; costs a copy of the weights and the optimiser's state
    validate_every: int = 200  # steps; 0 = only at the end
    validate_images: int = 200  # images decoded and scored at a validation; 0 = all
    patience: int = 0  # stop after N validations without a better CIDEr, counted once no schedule moves; 0 = never
    ema_decay: float = 0.0  # average of weights, validated and exported; (1+n)/(10+n) while that is less; 0 = off
    device: Device = Device.auto  # auto | cpu | cuda | mps
    precision: Precision = Precision.auto  # auto | fp32 | bf16 (autocast; weights stay float32)
    overfit_images: int = 0  # train and validate on the first so many images only; 0 = all
    compile: Compile = Compile.off  # off | block | model: torch.compile for training steps (docs/performance.md)
    parallel: Parallel = (
        Parallel.ddp
    )  # several processes (torchrun, srun): ddp | fsdp (each holds a slice of the weights)
    threads: int = 0  # CPU threads; 0 = as torch decides
    deterministic: bool = False  # kernels that give the same bits every time, where torch has them (it warns elsewhere)
    tensorboard: bool = False  # also write TensorBoard events (extra `tensorboard`)
    profile: bool = False  # watch ten steps after the fifth: RUN/profile/summary.txt and trace.json.gz


@dataclass
class InitConfig:
    vision: str | None = None  # run folder or .safetensors to take the vision encoder's weights from
    text: str | None = None  # run folder or .safetensors to take the text encoder's weights from


@dataclass
class DecodeConfig:
    method: DecodeMethod = DecodeMethod.beam  # beam | nucleus
    beams: int = 1  # beam: prefixes kept; 1 is greedy. p is of words that may be written (renormalize_logits=True)
    max_length: int = 30  # tokens, without the start token
    length_penalty: float = 1.0  # scores of two or more beams are divided by length ** this; 0 favours short captions
    top_p: float = 0.9  # nucleus; a sample depends on `seed` and its image alone
    temperature: float = 1.0  # nucleus: logits are divided by it, in float32
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
