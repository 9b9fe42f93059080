"""Options of the tasks: what is predicted of an example, and how."""

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from velm_cli.schema.bounds import within
from velm_cli.schema.paths import path

SOURCE = "{source}"  # in a prompt: where the source goes


class Answer(Enum):
    """How a question gets its answer."""

    classify = "classify"  # one of a list of answers, judged from the fused question and image
    generate = "generate"  # written word by word, question and image as memory
    rank = "rank"  # the likeliest of a list, by the words' log-probability


class Source(Enum):
    """How the source of a text gets into the model that writes it."""

    memory = "memory"  # read by an encoder of its own, next to the image
    prompt = "prompt"  # before the text, in the language model's own words; fusion=prefix puts the image before both


class LabelLoss(Enum):
    """What is minimised where an example has labels."""

    softmax = "softmax"  # cross-entropy with the labels' shares: one label is right, annotators differ
    sigmoid = "sigmoid"  # binary cross-entropy of each label: several may be right


class Labelled(Enum):
    """How many labels an image has."""

    single = "single"  # exactly one: its classes exclude each other
    several = "several"  # any number of them, each there or not


class Head(Enum):
    """What turns the image's vector into labels."""

    linear = "linear"  # one layer: with a frozen encoder this is a linear probe
    mlp = "mlp"  # two


class Pool(Enum):
    """What of an image is judged."""

    own = "own"  # the encoder's own vector of it
    mean = "mean"  # the mean of its positions
    both = "both"  # side by side


class SourcePool(Enum):
    """What of the fused states of a question or sentence is judged."""

    end = "end"  # the state at its last token, which has seen all of it
    mean = "mean"  # the mean of all its states, which sentence encoders are trained for


class Blind(Enum):
    """What is kept from the model in an evaluation, to see what it is worth."""

    none = "none"
    image = "image"  # every image is grey
    shuffled = "shuffled"  # every example gets another one's image
    source = "source"  # no question, sentence or document


class Looking(Enum):
    """How it is found where a model looked (docs/where-it-looked.md)."""

    auto = "auto"
    attention = "attention"  # of the words to the image's positions
    gradient = "gradient"  # integrated, at the encoder's last grid
    occlusion = "occlusion"  # squares of the image are hidden


@dataclass
class TaskConfig:
    """Every dataclass derived from this one is a task: `task=KIND` chooses it (`KINDS` in roots.py)."""

    kind: str = MISSING

    @property
    def judges(self) -> bool:
        """Whether a label is predicted, which is learned by loss.joint=label."""
        return False

    @property
    def source_is_memory(self) -> bool:
        """Whether a text is written from a source, which then stands behind the image's tokens."""
        return not self.judges and getattr(self, "source", None) is Source.memory

    @property
    def source_is_prompt(self) -> bool:
        """Whether a text goes on from a source that stands before it."""
        return not self.judges and getattr(self, "source", None) is Source.prompt

    @property
    def reads_text(self) -> bool:
        """Whether a text encoder and a fusion have anything to do."""
        return True

    @property
    def reads_source(self) -> bool:
        """Whether an example has a text beside its images, so that there is something to read without them."""
        return self.judges or self.source_is_memory or self.source_is_prompt

    @property
    def usual_loss(self) -> str:
        """The choice of `loss` that learns what the task predicts: a file of conf/loss."""
        return "caption" if self.source_is_memory or self.source_is_prompt else self.kind

    @property
    def unused(self) -> tuple[str, ...]:
        """The options that have no effect, as the others are."""
        if not (self.source_is_memory or self.source_is_prompt):
            return ()
        option = "source_layers" if self.source_is_prompt else "prompt"
        return (option,) if hasattr(self, option) else ()


@dataclass
class CaptionTaskConfig(TaskConfig):
    kind: str = "caption"
    prompt: str = ""  # a text between image and caption, with fusion=prefix, such as "A photo of"


@dataclass
class VqaTaskConfig(TaskConfig):
    kind: str = "vqa"
    answer: Answer = Answer.classify  # classify | generate | rank (the likeliest of the list by its words)
    answers: int = within(
        3129, least=2, most=10**6
    )  # classify, rank: length of the list, the most frequent in training
    min_answers: int = within(1, least=1)  # classify, rank: questions that an answer of the list has at least
    label_loss: LabelLoss = LabelLoss.softmax  # classify: softmax | sigmoid, with the annotators' shares as targets
    dropout: float = within(0.1, least=0, below=1)  # classify: before the last layer
    source_pool: SourcePool = SourcePool.end  # classify: what of the question is judged: end (its last token) | mean
    source_layers: int = within(
        2, least=0, most=1000
    )  # generate, rank: layers of the question's own encoder; 0 = text encoder and fusion read it, next to the image
    candidates: int = within(128, least=1)  # rank: answers compared by all their words, the best by their first one
    source: Source = (
        Source.memory
    )  # generate, rank: memory (an encoder of its own) | prompt (before the text, with fusion=prefix)
    prompt: str = "Question: {source} Answer:"  # of source=prompt; {source} is the question

    @property
    def judges(self) -> bool:
        return self.answer is Answer.classify

    @property
    def unused(self) -> tuple[str, ...]:
        users = {
            "label_loss": {Answer.classify},
            "dropout": {Answer.classify},
            "source_pool": {Answer.classify},
            "source": {Answer.generate, Answer.rank},
            "prompt": {Answer.generate, Answer.rank},
            "source_layers": {Answer.generate, Answer.rank},
            "candidates": {Answer.rank},
        }
        return (*(option for option, answers in users.items() if self.answer not in answers), *super().unused)


@dataclass
class TranslateTaskConfig(TaskConfig):
    kind: str = "translate"
    source_layers: int = within(
        2, least=0, most=1000
    )  # layers of the sentence's own encoder; 0 = text encoder and fusion read it, next to the image
    source: Source = Source.memory  # memory (an encoder of its own) | prompt (before the text, with fusion=prefix)
    prompt: str = "Sentence: {source} Translation:"  # of source=prompt; {source} is the source


@dataclass
class SummariseTaskConfig(TaskConfig):
    kind: str = "summarise"
    source_layers: int = within(
        2, least=0, most=1000
    )  # layers of the document's own encoder; 0 = text encoder and fusion read it, next to the image
    source: Source = Source.memory  # memory (an encoder of its own) | prompt (before the text, with fusion=prefix)
    prompt: str = "{source} Summary:"  # of source=prompt; {source} is the source


@dataclass
class ReasonTaskConfig(TaskConfig):
    kind: str = "reason"
    dropout: float = within(0.1, least=0, below=1)  # before the last layer
    source_pool: SourcePool = SourcePool.end  # what of the sentence is judged: end (its last token) | mean

    @property
    def judges(self) -> bool:
        return True


@dataclass
class RetrieveTaskConfig(TaskConfig):
    kind: str = "retrieve"
    rerank: int = within(0, least=0)  # candidates of each query that the matching head judges again; 0 = none
    fold: int = within(0, least=0)  # images of a fold, whose scores are averaged (COCO 1k: 1000); 0 = all together


@dataclass
class ClassifyTaskConfig(TaskConfig):
    kind: str = "classify"
    labels: Labelled = Labelled.single  # labels of an image: single (softmax) | several (a sigmoid for each)
    head: Head = Head.linear  # linear | mlp (two layers)
    pool: Pool = Pool.own  # what is judged of an image: own (the encoder's vector) | mean (of its positions) | both
    dropout: float = within(0.1, least=0, below=1)  # before the last layer
    prompts: list[str] = field(
        default_factory=lambda: ["a photo of a {}"]
    )  # zero-shot by a run that compares images with captions: each {} becomes a label; several are averaged

    @property
    def judges(self) -> bool:
        return True

    @property
    def reads_text(self) -> bool:
        return False

    @property
    def reads_source(self) -> bool:
        return False


class TooLong(Enum):
    """What becomes of a conversation with more tokens than are learned from."""

    cut = "cut"  # its first tokens are learned from
    drop = "drop"  # nothing of it is


@dataclass
class ChatTaskConfig(TaskConfig):
    kind: str = "chat"
    max_tokens: int = within(
        1024, least=8, most=10**6
    )  # tokens of a conversation that are learned from, each of its images counted as one
    too_long: TooLong = TooLong.cut  # conversations with more: cut (the first tokens) | drop (none of them)
    template: str = path("auto")  # auto (the tokenizer's own, else plain) | plain (roles as words) | a Jinja file

    @property
    def usual_loss(self) -> str:
        return "caption"


@dataclass
class MixTaskConfig(TaskConfig):
    kind: str = "mix"
    primary: str | None = None  # part whose score chooses the best weights; null = the mean of all parts' scores
