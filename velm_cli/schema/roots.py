"""What each command takes, and which dataclass each choice of a group has."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from velm_cli.schema.bounds import within
from velm_cli.schema.data import (
    ChatConfig,
    CocoConfig,
    DataConfig,
    DatasetConfig,
    DocumentsConfig,
    FlickrConfig,
    FolderConfig,
    FramesConfig,
    ManifestConfig,
    MixConfig,
    Multi30kConfig,
    NlvrConfig,
    PreprocessConfig,
    ShapesConfig,
    TokenizerConfig,
    VgConfig,
    VqaConfig,
    WebDatasetConfig,
)
from velm_cli.schema.model import (
    AddConfig,
    AttentionConfig,
    BertConfig,
    CausalLMConfig,
    CoAttentionConfig,
    ConcatConfig,
    ConvNetConfig,
    CrossModalConfig,
    ExternalFusionConfig,
    FusionConfig,
    GatedConfig,
    GRUConfig,
    LSTMConfig,
    MultiplyConfig,
    NoFusionConfig,
    NoTextConfig,
    NoVisionConfig,
    PrefixConfig,
    RegionsConfig,
    TextConfig,
    TorchvisionConfig,
    TransformerConfig,
    TransformersVisionConfig,
    VisionConfig,
    ViTConfig,
    WeightedSumConfig,
)
from velm_cli.schema.paths import path
from velm_cli.schema.serving import ServeConfig
from velm_cli.schema.tasks import Blind, Looking, TaskConfig
from velm_cli.schema.training import (
    DecodeConfig,
    Device,
    InitConfig,
    LossConfig,
    MetricsConfig,
    OptimConfig,
    Precision,
    RunConfig,
)


class Mismatch(Enum):
    """What to do with images that two files do not both have exactly once."""

    error = "error"
    ignore = "ignore"


class ScoredTask(Enum):
    caption = "caption"
    vqa = "vqa"
    retrieve = "retrieve"
    translate = "translate"
    summarise = "summarise"
    classify = "classify"
    reason = "reason"
    chat = "chat"


class ExportFormat(Enum):
    velm = "velm"
    hf = "hf"
    onnx = "onnx"
    torch_export = "torch_export"


class ExportDtype(Enum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"
    int8 = "int8"


class Submission(Enum):
    none = "none"
    coco = "coco"
    nocaps = "nocaps"


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
    seed: int = within(
        0, least=0, most=2**63 - 1
    )  # of the initial weights, the order of the data, dropout and augmentation
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
    config: str | None = path(None)  # run folder or YAML file whose options are the defaults; the command wins
    experiment: Any = None
    debug: Any = None


@dataclass
class FinetuneRoot(TrainRoot):
    stage: str = "finetune"
    checkpoint: str = path(MISSING)  # run folder (or its .safetensors, or a kept RUN/checkpoints/step-*) to start from


@dataclass
class ReportConfig:
    page: bool = True  # write report.html: scores, curves and a gallery of every image
    attention: int = within(100, least=0)  # examples that it shows with where the model looked, for each word or answer
    looking: Looking = (
        Looking.auto
    )  # how that is found: auto | attention | gradient | occlusion (49 encodings an image)


@dataclass
class EvalConfig:
    submit: Submission = Submission.none  # also write the file that a server takes: none | coco | nocaps
    system: str = "velm"  # the system's name in the name of that file
    blind: Blind = Blind.none  # control: none | image (grey) | shuffled (among the examples) | source (left out)


@dataclass
class ModelFolder:
    name: str | None = path(None)  # folder of the pretrained model, if it has moved and its run keeps no config of it


@dataclass
class EvaluateRoot:
    stage: str = "evaluate"
    checkpoint: str = path(
        MISSING
    )  # run folder, a .safetensors file or kept checkpoint (RUN/checkpoints/step-*) in one, or hf:FOLDER
    split: str = "test"  # which part of the data set: train | val | test
    limit: int = within(0, least=0)  # evaluate only the first N images; 0 = all
    name: str | None = None  # folder runs/evaluate/NAME; null = named by the run, split and decoding
    seed: int = within(0, least=0, most=2**63 - 1)  # nucleus sampling
    fresh: bool = False  # evaluate again in a new folder
    dry_run: bool = False  # check everything, caption nothing
    dataset: DatasetConfig = MISSING
    task: TaskConfig = MISSING
    vision: ModelFolder = field(default_factory=ModelFolder)
    text: ModelFolder = field(default_factory=ModelFolder)
    run: RunConfig = field(default_factory=RunConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    experiment: Any = None


@dataclass
class ScoreRoot:
    stage: str = "score"
    task: ScoredTask = ScoredTask.caption  # caption | vqa | retrieve | translate | summarise | classify | reason | chat
    predictions: str = path(MISSING)  # COCO's or VQA's results, {"id": "text"}, CSV ...; retrieve: .npz or .jsonl
    references: str = path(
        MISSING
    )  # captions: COCO's or Karpathy's file, CSV, text by line (a.txt,b.txt) ...; vqa: VQA's annotations
    vs: str | None = path(None)  # another system's predictions: paired tests against it
    out: str | None = path(None)  # folder for scores.json, a line for each example, report.html; replaces its own only
    mismatch: Mismatch = Mismatch.error  # images (questions) not exactly once in each file: error | ignore
    training: str | None = path(
        None
    )  # as `references`, what the system learned from. caption: how many are new? vqa: the floors
    questions: str | None = path(None)  # vqa: VQA's questions file, for the text of the questions in the report
    sources: str | None = path(
        None
    )  # translate, summarise: the sentences or documents, in the forms of references, for floors and report
    language: str = ""  # translate: of the references, for the tokeniser of BLEU lc: de, fr ...; empty = as en
    fold: int = within(0, least=0)  # retrieve: images of a fold, whose scores are averaged (COCO 1k: 1000); 0 = all
    instances: str | None = path(None)  # COCO's instances_*.json: which named objects are not in the image (CHAIR)?
    images: str | None = path(None)  # folder of the images, for report and metrics.clip; found by name, id or number
    save_df: str | None = path(None)  # write the references' document frequencies to this .npz (for metrics.df=FILE)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)


@dataclass
class ComputeConfig:
    device: Device = Device.auto  # auto | cpu | cuda | mps
    precision: Precision = Precision.auto  # auto | fp32 | bf16
    threads: int = within(0, least=0)  # CPU threads; 0 = as torch decides


@dataclass
class UseRoot:
    """What all stages have in common that use a trained model on images."""

    stage: str = MISSING
    checkpoint: str = path(MISSING)  # run or exported folder, .safetensors or kept checkpoint in one; hf:FOLDER
    images: Any = path(MISSING)  # file, folder, pattern, .tar, list of paths (.txt, or - on standard input), or several
    out: str | None = path(None)  # .json, .jsonl or .csv; sidecar | xmp: a file next to each image; null = print
    limit: int = within(0, least=0)  # only the first N images; 0 = all
    fresh: bool = False  # start over, and replace what velm wrote to the same out=
    dry_run: bool = False  # check everything, predict nothing
    page: bool = True  # with out=FILE also a page of the pictures
    page_images: int = within(1000, least=1)  # images that it shows, the first ones
    workers: int = within(0, least=0, most=1024)  # processes that read images; 0 = one per core
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    run: ComputeConfig = field(default_factory=ComputeConfig)


@dataclass
class CaptionRoot(UseRoot):
    stage: str = "caption"
    prompt: str = ""  # what each caption begins with
    seed: int = within(0, least=0, most=2**63 - 1)  # nucleus sampling


@dataclass
class AnswerRoot(UseRoot):
    stage: str = "answer"
    question: str | None = None  # question about every image
    questions: str | None = path(
        None
    )  # .jsonl, .json or .csv with image and question (and question_id) in each row; images= is then their folder
    choices: list[str] | None = None  # the answer is the likeliest of these
    probabilities: int = within(0, least=0, most=10)  # likeliest answers to list with their probabilities; 0 = none


@dataclass
class SearchRoot:
    stage: str = "search"
    index: str = path(MISSING)  # folder of the embeddings; made, or added to, by images=
    checkpoint: str | None = path(None)  # run whose L_joint compares images with captions; null = the index's own
    images: Any = path(None)  # images to embed: file, folder, pattern, .tar, list of paths, or several
    query: str | None = None  # text to search for
    image: str | None = path(None)  # image to search for
    top: int = within(20, least=1, most=1_000_000)  # images that are found
    out: str | None = path(None)  # .json, .jsonl or .csv, with a page of the pictures; null = print
    page: bool = True  # with out=FILE also a page of the pictures
    workers: int = within(0, least=0, most=1024)  # processes that read images; 0 = one per core
    run: ComputeConfig = field(default_factory=ComputeConfig)


@dataclass
class ServeRoot:
    stage: str = "serve"
    checkpoint: str = path(MISSING)  # run folder, exported folder, .safetensors file or kept checkpoint in a run
    run: ComputeConfig = field(default_factory=ComputeConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)


@dataclass
class ExportRoot:
    stage: str = "export"
    checkpoint: str = path(
        MISSING
    )  # run folder, or a .safetensors file or kept checkpoint (RUN/checkpoints/step-*) in one
    out: str = path(MISSING)  # folder to write; one that velm export wrote before is replaced, nothing else
    format: ExportFormat = ExportFormat.velm  # velm (a slim run folder) | hf (transformers) | onnx | torch_export
    dtype: ExportDtype = ExportDtype.fp32  # of the weights in the file: fp32 | bf16 | fp16 | int8 (matrices, per row)
    scores: Any = path(None)  # evaluations for the model card: a folder or a list; null = those found next to the run
    tolerance: float = within(1e-3, above=0, most=1)  # hf, onnx, torch_export: largest logit difference that is taken


@dataclass
class DoctorRoot:
    stage: str = "doctor"
    fix: str | None = None  # spice: fetch what SPICE lacks
    folder: str | None = path(None)  # take the files of the fix from this folder instead of the network
    store: str | None = path(None)  # read every byte of this store and compare the checksums; nothing else is examined


ROOTS: dict[str, type] = {
    "preprocess": PreprocessRoot,
    "train": TrainRoot,
    "finetune": FinetuneRoot,
    "evaluate": EvaluateRoot,
    "score": ScoreRoot,
    "caption": CaptionRoot,
    "answer": AnswerRoot,
    "search": SearchRoot,
    "serve": ServeRoot,
    "export": ExportRoot,
    "doctor": DoctorRoot,
}

# Groups whose dataclass depends on the choice: group -> kind -> dataclass.
KINDS: dict[str, dict[str, type]] = {
    "dataset": {
        "shapes": ShapesConfig,
        "coco": CocoConfig,
        "vqa": VqaConfig,
        "chat": ChatConfig,
        "multi30k": Multi30kConfig,
        "documents": DocumentsConfig,
        "nlvr": NlvrConfig,
        "flickr": FlickrConfig,
        "manifest": ManifestConfig,
        "frames": FramesConfig,
        "folder": FolderConfig,
        "webdataset": WebDatasetConfig,
        "mix": MixConfig,
        "vg": VgConfig,
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
        "none": NoTextConfig,
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
    "task": {node.kind: node for node in TaskConfig.__subclasses__()},
}
