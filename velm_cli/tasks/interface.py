"""What every task is: how its learner is built, what it predicts of an example, how that is scored and stored.

A new task is one module here, one dataclass in `schema/tasks.py`, one YAML in `conf/task`, one test. Importing a task
imports no torch: checks of a config and scoring without a model need none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from velm_cli.schema import DecodeConfig, EvaluateRoot, MetricsConfig, TaskConfig, TrainRoot

if TYPE_CHECKING:
    import torch

    from velm_cli.data.batch import Batch, Labels
    from velm_cli.data.store import Store
    from velm_cli.data.tokenizer import Tokenizer
    from velm_cli.learners.interface import Learner
    from velm_cli.metrics.scores import Scores
    from velm_cli.models.velm import VelmModel
    from velm_cli.objectives.weights import Weight
    from velm_cli.tasks.spaces import Spaces

ExampleId = int | str
P = TypeVar("P")  # what is predicted of an example: a text, a judgement, an embedding
Predicted = Mapping[ExampleId, P]


@dataclass(frozen=True, slots=True)
class Needs:
    """What of the store goes into a batch."""

    source: bool = False  # text that goes in with the images
    talks: bool = False  # examples are conversations
    targets_given: bool = False  # predictions are made of the targets too, as captions are found by images


@dataclass(frozen=True, slots=True)
class Session:
    """Where predictions are made, and the seed of those that are drawn."""

    device: torch.device
    seed: int = 0


class Shape(NamedTuple):
    """What a task wants of a model that it shares with others."""

    one_way: bool | None  # whether the text encoder reads forwards only; None: either will do
    source: int | None = None  # layers of the encoder of a source that is written from; None: there is no source


class Task(ABC, Generic[P]):
    """One task, with its options."""

    kind: ClassVar[str]
    needs: Needs = Needs()
    unit: ClassVar[str] = "image"  # what an example is called in progress bars and lines
    target: ClassVar[str] = "caption"  # what is learned of an example, in lines about lengths and speed
    predicted: tuple[str, ...] = ()  # label spaces whose names a run folder keeps, to predict with
    verb: ClassVar[str]  # what is done with an example
    doing: ClassVar[str]  # what its predictions are called there
    primary: str  # the score that a run is compared by: a key of `Scores.corpus`
    manner: str | None = None  # how it predicts where no text is decoded; evaluations are named by it
    evaluated: frozenset[str] = frozenset()  # options that an evaluation may give other values than the run had

    def __init__(self, options: TaskConfig) -> None:
        self.options: Any = options  # of the dataclass of its kind

    # ---------------------------------------------------------------------------------- learning

    def problems(self, config: TrainRoot) -> Iterator[str]:
        """A line for everything in `config` that this task cannot do. Imports no torch."""
        return iter(())

    def spaces(self, config: TrainRoot, store: Store) -> dict[str, list[str]]:
        """The label spaces of a learner that is trained on `store`."""
        return {"concepts": store.concept_names}

    def labels(self, store: Store, spaces: Spaces) -> dict[str, Labels]:
        """What a batch has of the label spaces that it predicts, beside the concepts."""
        return {}

    def fitting(self, store: Store, spaces: Spaces) -> Iterator[str]:
        """A line for everything that the task cannot do with this store."""
        return iter(())

    @abstractmethod
    def learner(
        self, config: TrainRoot, spaces: Spaces, tokenizer: Tokenizer, weights: Mapping[str, Weight]
    ) -> Learner:
        """Model and objectives of `config`, initialised; of the terms without weight nothing is made."""

    def shape(self, config: TrainRoot) -> Shape | None:
        """What the model has to be where several tasks share it; None: this one has none to share. Imports no torch."""
        return None

    def sharing(
        self,
        config: TrainRoot,
        spaces: Spaces,
        tokenizer: Tokenizer,
        weights: Mapping[str, Weight],
        model: VelmModel,
    ) -> Learner:
        """As `learner`, with a `model` of this `shape` that other tasks have, too."""
        raise NotImplementedError

    @abstractmethod
    def is_learned(self, config: TrainRoot) -> bool:
        """Whether a run of this config learns what the task predicts."""

    def why_not_learned(self, config: TrainRoot, run: Path) -> str:
        """One line for a run that does not."""
        return f"checkpoint: {run} (task={config.task.kind}) has not learned task={self.kind}"

    # -------------------------------------------------------------------------------- predicting

    def by_run(self, config: TrainRoot) -> Task[P]:
        """The task in the way in which a run of this config makes its predictions."""
        return self

    def named_by(self, store: Store, spaces: Spaces) -> Spaces:
        """The label spaces to predict with on this store: the run's, unless the store's examples name the labels."""
        return spaces

    def predicts_with(self, config: TrainRoot) -> frozenset[str]:
        """The terms whose own layers make predictions: `joint` where the head of L_joint does."""
        return frozenset()

    def cannot_predict(self, learner: Learner, config: TrainRoot, run: Path) -> str | None:
        """One line that says why this learner predicts nothing; None if it does."""
        return None

    @abstractmethod
    def predict(
        self,
        learner: Learner,
        batches: Iterable[Batch],
        spaces: Spaces,
        tokenizer: Tokenizer,
        how: DecodeConfig,
        session: Session,
    ) -> Iterator[tuple[ExampleId, P]]:
        """A prediction for every example of the batches, as they come; it depends on these batches alone."""

    @property
    def refines(self) -> bool:
        """Whether predictions are looked at again once all of them are there."""
        return False

    def refine(
        self, learner: Learner, batches: Iterable[Batch], predicted: Predicted[P], session: Session
    ) -> dict[ExampleId, P]:
        """All predictions again, as far as this process's share of the batches tells."""
        raise NotImplementedError

    def joined(self, parts: list[dict[ExampleId, P]]) -> dict[ExampleId, P]:
        """What `refine` has returned on all processes, in one."""
        raise NotImplementedError

    # ----------------------------------------------------------------------------------- scoring

    @abstractmethod
    def quick(self, store: Store, numbers: Iterable[int], predicted: Predicted[P]) -> dict[str, float]:
        """Figures of a validation; the first one chooses the best checkpoint, the higher the better."""

    @abstractmethod
    def score(
        self, store: Store, numbers: Iterable[int], predicted: Predicted[P], config: MetricsConfig, *, learned: bool
    ) -> Scores | None:
        """All scores of the examples that have something to compare with; None if none has.

        `learned`: the model was trained on the training part of this store.
        """

    def of_one(self, score: float) -> float:
        """The first figure of `quick` on a scale from 0 to 1, on which scores of several tasks are averaged."""
        return score

    def unscorable(self, examples: int) -> Iterator[str]:
        """A line for everything at which the scores of so many examples would fail."""
        return iter(())

    def further(self, config: EvaluateRoot, predicted: Predicted[P], folder: Path) -> dict[str, float | None]:
        """Figures beside the scores, written into the evaluation's folder and printed."""
        return {}

    def shown(self, store: Store, numbers: Iterable[int], predicted: Predicted[P]) -> list[str]:
        """The text under the picture of each example, in a validation's samples; none: nothing is shown."""
        return []

    # ------------------------------------------------------------------------------------- files

    @abstractmethod
    def write_results(self, folder: Path, predicted: Predicted[P]) -> list[str]:
        """Write the predictions in the task's usual format; the names of the files."""
