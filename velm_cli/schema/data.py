"""Options of data sets, of preprocessing them and of reading them."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from velm_cli.schema.bounds import LARGEST, WIDEST, within
from velm_cli.schema.paths import path


class Missing(Enum):
    """What to do with an annotated image whose file is absent (it is counted in any case)."""

    auto = "auto"  # error, but skip where the captions come from the complete official set in the jar
    error = "error"
    skip = "skip"


class Damaged(Enum):
    """What to do with a shard that cannot be read to its end, again and again (it is named in any case)."""

    error = "error"
    skip = "skip"


class CocoSplit(Enum):
    karpathy = "karpathy"
    official2014 = "official2014"
    official2017 = "official2017"


class TokenizerKind(Enum):
    word = "word"
    bpe = "bpe"
    wordpiece = "wordpiece"
    pretrained = "pretrained"


class FeatureCaching(Enum):
    none = "none"
    bf16 = "bf16"
    fp32 = "fp32"


class Drawn(Enum):
    """What the examples of drawn scenes are."""

    captions = "captions"
    questions = "questions"  # about the scenes, with answers
    translations = "translations"  # of sentences about the scenes, into a toy language
    summaries = "summaries"  # of long descriptions of the scenes
    classes = "classes"  # scenes of one kind of object, in a folder of its shape
    labels = "labels"  # the colours and shapes in the scenes
    motion = "motion"  # captions of clips of 8 frames, in which objects move
    motion_questions = "motion_questions"  # about these clips, with answers
    statements = "statements"  # about one scene or two, true or false
    boxes = "boxes"  # statements about pictures like NLVR's: three boxes with towers or scattered items
    box_captions = "box_captions"  # of these pictures
    chat = "chat"  # conversations about one scene or two, of several turns


@dataclass
class DatasetConfig:
    kind: str = MISSING  # which reader
    root: str | None = path(None)  # folder with the images and annotations
    store: str | None = path(None)  # folder of the preprocessed store; null = stores/<dataset>
    images: bool = True  # false: captions only, for language-model training
    missing: Missing = Missing.auto  # annotated images that are absent: error | skip | auto
    image_size: int = within(256, least=8, most=WIDEST)  # shorter side of the stored images, pixels
    image_quality: int = within(90, least=1, most=100)  # JPEG quality of the stored images
    summarise: bool = False  # an image's captions but one are the source, that one the summary: in training each once
    max_pixels: int = within(178_956_970, least=64)  # refuse images with more pixels than this (decompression bombs)


@dataclass
class ShapesConfig(DatasetConfig):
    kind: str = "shapes"
    root: str | None = "data/shapes"  # where the drawn scenes are written
    image_size: int = 64  # shorter side of the stored images, pixels
    image_quality: int = 95  # JPEG quality of the stored images
    num_train: int = within(5000, least=1)  # scenes to train on
    num_val: int = within(100, least=0)  # scenes to validate on
    num_test: int = within(100, least=0)  # scenes with kinds of objects (size, colour, shape) that training never shows
    examples: Drawn = (
        Drawn.captions
    )  # captions | questions | translations | summaries | classes | labels | motion | motion_questions | chat ...
    questions: bool = False  # true: the same as dataset.examples=questions
    frames: int = within(8, least=1, most=8)  # motion: frames of a clip that are seen
    draw_seed: int = within(0, least=-LARGEST)  # the scenes are a pure function of this and the numbers above

    @property
    def drawn(self) -> Drawn:
        """What the examples are, by either option."""
        return Drawn.questions if self.questions else self.examples


@dataclass
class CocoConfig(DatasetConfig):
    kind: str = "coco"
    split: CocoSplit = CocoSplit.karpathy  # karpathy | official2014 | official2017
    split_file: str | None = path(None)  # dataset_coco.json, or a json(.gz) of image ids by part
    labels: bool = False  # true: the labels of images are the categories in instances_*.json; no captions are read


@dataclass
class VqaConfig(DatasetConfig):
    kind: str = "vqa"
    questions: Any = path(None)  # questions file, or a list, or {train: file, val: file, test: file}; null = below root
    annotations: Any = path(None)  # the answers, in the same forms; null = those below root
    images_root: str | None = path(None)  # folder with the images (train2014/ ...); null = root


@dataclass
class Multi30kConfig(DatasetConfig):
    kind: str = "multi30k"
    source_lang: str = "en"  # language to translate from: a key of the JSON lines, an ending of the text files
    target_lang: str = "de"  # language to translate into
    images_root: str | None = path(None)  # folder with the images; null = root


@dataclass
class DocumentsConfig(DatasetConfig):
    kind: str = "documents"
    images_root: str | None = path(None)  # folder with the images; null = root
    source_column: str | None = None  # key of the document; null = article, document, source, text ...
    target_column: str | None = None  # key of the summary; null = highlights, summary, target ...


@dataclass
class NlvrConfig(DatasetConfig):
    kind: str = "nlvr"
    files: Any = path(None)  # records by part: {train: file, val: file, test: file}, a list; null = those below root
    images_root: str | None = path(None)  # folder with the pictures; null = next to the records, or root
    val_directories: list[int] = field(
        default_factory=list
    )  # directories of the training records that are held out for validation, whole: groups and orders stay together
    orders: int = within(
        6, least=1, most=6
    )  # NLVR: orders of the boxes of a picture that are trained on; all are validated and tested


@dataclass
class FlickrConfig(DatasetConfig):
    kind: str = "flickr"
    release: str = "flickr8k"  # flickr8k | flickr30k: names the store
    split_file: str | None = path(None)  # Karpathy's dataset_flickr*.json, if not found in root


@dataclass
class OwnDataConfig(DatasetConfig):
    """What manifests and folders of one's own have in common."""

    val_fraction: float = within(
        0.05, least=0, below=1
    )  # share of images held out for validation where neither a folder nor a row names the part
    test_fraction: float = within(0.05, least=0, below=1)  # share held out for testing
    image_column: str | None = None  # column of a table with the image; null = image, file_name, filepath, path ...
    caption_column: str | None = None  # column with the caption(s), or several, with commas; null = captions, text ...
    split_column: str | None = None  # column with train, val or test; null = split
    labels: bool = False  # true: images have labels: the names of their folders, or a column of the table
    label_column: str | None = None  # column with the label(s) of a table; null = labels, label, class, category ...
    label_separator: str | None = None  # what stands between several labels in a cell; null = a cell is one, or a list


@dataclass
class ManifestConfig(OwnDataConfig):
    kind: str = "manifest"
    file: str | None = path(
        None
    )  # JSON lines, JSON, CSV, TSV or parquet; several with * or {train,val,test} in the name
    source_column: str | None = (
        None  # column with the question about the image; null = source, question, where no column has captions
    )
    max_images: int = within(16, least=1, most=1024)  # images of an example that are kept, the first ones of its list


@dataclass
class FramesConfig(ManifestConfig):
    kind: str = "frames"
    frames: int = within(8, least=1, most=1024)  # taken of each clip, evenly spread
    min_frames: int = within(2, least=1)  # clips with fewer frames are refused
    max_seconds: float = within(600, above=0, most=10**6)  # longer videos are refused


@dataclass
class FolderConfig(OwnDataConfig):
    kind: str = "folder"


@dataclass
class ChatConfig(DatasetConfig):
    kind: str = "chat"
    file: Any = path(
        None
    )  # JSON, JSON lines or parquet of conversations; a list, a pattern with *, or {train: FILE, val: FILE}
    val_fraction: float = within(
        0.02, least=0, below=1
    )  # share of images (of conversations, without) held out for validation where no file is of a part
    test_fraction: float = within(0.02, least=0, below=1)  # share held out for testing
    max_images: int = within(16, least=1, most=1024)  # conversations with more images are refused


@dataclass
class WebDatasetConfig(DatasetConfig):
    kind: str = "webdataset"
    urls: Any = path(
        None
    )  # tar shards: path, URL or pipe:COMMAND, with {00000..00099} or *; a list; a folder; a .txt of them
    val_urls: Any = path(None)  # shards to validate on, in the same forms
    num_val: int = within(
        500, least=0
    )  # samples held out where no shard is for validation: the first, at most a twentieth of all
    caption_key: str | None = None  # field of KEY.json with the caption(s); null = captions, KEY.txt or caption
    vocabulary: int = within(
        1_000_000, least=1
    )  # training samples, spread over all shards, whose captions make vocabulary and concepts
    shuffle: int = within(4096, least=1)  # samples that are in memory and in random order together, over all processes
    lanes: int = within(
        0, least=0, most=1024
    )  # parts of an epoch that are read side by side, shared by the processes; 0 = up to 16
    retries: int = within(
        3, least=0, most=30
    )  # further tries of a source that fails, after 1, 2, 4 ... seconds (local files: none)
    damaged: Damaged = Damaged.error  # shards that stay unreadable: error | skip (training repeats others instead)
    pipes: bool = False  # let pipe:COMMAND sources run their commands; no saved config can say so


class VgExamples(Enum):
    """What of Visual Genome is an example."""

    regions = "regions"  # a region, cut out of its image, with what is said of it
    questions = "questions"  # about the image, with an answer each
    objects = "objects"  # the image, with its objects and their attributes as texts


@dataclass
class VgConfig(DatasetConfig):
    kind: str = "vg"
    examples: VgExamples = VgExamples.regions  # regions | questions | objects (with attributes, for L_image)
    exclude: str | None = path(
        None
    )  # COCO images to leave out: a JSON list of their numbers, or a split file, whose val and test count
    split_file: str | None = path(None)  # {"train": [image ids], "val": ...}; null = by a hash of the image's id
    val_fraction: float = within(0.02, least=0, below=1)  # share of images held out for validation
    test_fraction: float = within(0.02, least=0, below=1)  # share held out for testing
    min_side: int = within(32, least=8)  # regions: pixels; smaller boxes are refused
    regions_per_image: int = within(10, least=0)  # regions: of an image, the largest first; 0 = all (about 50)


@dataclass
class MixPart:
    """A part of a mixture: examples of a store, what is learned of them, and how often they have their turn."""

    store: str = path(MISSING)  # folder of a preprocessed store
    task: str | None = None  # with task=mix: what is learned of it, such as caption; else the run's own
    weight: float = within(
        1.0, above=0, most=1_000_000
    )  # its share of the batches, in proportion to those of the others
    name: str | None = None  # of its figures in the log; null = its task, or the store's folder
    batch_size: int = within(0, least=0, most=10**6)  # examples of a batch; 0 = run.batch_size
    options: dict[str, Any] = field(default_factory=dict)  # with task=mix: those of its task, {answer: generate}
    loss: dict[str, Any] = field(default_factory=dict)  # with task=mix: those of its loss, {gamma: 0.5}


@dataclass
class MixConfig(DatasetConfig):
    kind: str = "mix"
    parts: list[MixPart] = field(
        default_factory=list
    )  # [{store: stores/a, weight: 2}, {store: stores/b}]; with task=mix each with its task (docs/tasks.md)


@dataclass
class TokenizerConfig:
    kind: TokenizerKind = TokenizerKind.word
    min_count: int = within(5, least=1)  # word: words seen less often become <unk>
    vocab_size: int = within(8000, least=300, most=10_000_000)  # bpe, wordpiece: size of the vocabulary
    name: str | None = path(None)  # pretrained: hub name or local folder
    max_tokens: int = within(40, least=1)  # longer captions and answers are cut here when tokenised
    max_source_tokens: int = within(64, least=1)  # longer questions are cut here when tokenised


@dataclass
class PreprocessConfig:
    workers: int = within(0, least=0, most=1024)  # processes; 0 = one per core
    shard_images: int = within(1000, least=1)  # images a tar shard
    num_concepts: int = within(1000, least=1)  # most frequent content words of the training captions, for L_image
    part: str | None = (
        None  # i/n: only the i-th of n shares of the shards, in an array job; merge: only check and finish
    )
    seconds_per_image: float = within(
        60, above=0, most=1_000_000
    )  # of a core; an image that takes longer to decode is refused (10 times as many by the clock)
    memory_per_image: float = within(
        4, above=0, most=1_000_000
    )  # GB a worker may allocate for an image; one that needs more is refused (Linux)


@dataclass
class DataConfig:
    captions_per_image: int = within(
        5, least=1, most=10**6
    )  # captions drawn an image and step; the image is encoded once for all
    examples_per_image: int = within(
        8, least=1, most=10**6
    )  # examples of one image (its questions) that are next to each other in a batch and share its encoding
    crop_scale: float = within(
        1.0, above=0, most=1
    )  # smallest share of the area a random crop keeps; 1 = no random crop
    mask_source: str = path(
        "none"
    )  # words of the source that are hidden, in training and evaluations: none | colours | nouns (English) | a file
    flip: bool = False  # mirror half of the images (never where captions may say left or right)
    colour_jitter: float = within(
        0.0, least=0, below=1
    )  # brightness, contrast and saturation change by factors from 1 - this to 1 + this
    workers: int = within(
        0, least=0, most=1024
    )  # threads that read images ahead; the order of samples does not depend on it
    cache: FeatureCaching = FeatureCaching.none  # none | bf16 | fp32: what frozen layers say of images, computed once
    cache_texts: bool = False  # a frozen text encoder that no image enters reads each text once per run; 10 kB each
    views: int = within(
        1, least=1
    )  # of each training image in the cache: the first as it is, the others augmented; an epoch takes one
