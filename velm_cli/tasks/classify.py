"""Classification: images in, a label out, or several; scored by top-1 and top-5, or by mAP, CF1 and OF1.

The labels are learned (`loss.joint=label`, from the pooled image), or named in prompts, whose embeddings a run that
compares images with captions holds next to the images' (zero-shot; Radford et al. 2021).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from velm_cli.errors import UserError
from velm_cli.files import write_bytes
from velm_cli.metrics.label_scores import AT_LEAST, Found, primary_of, quick_figures, score_labels
from velm_cli.objectives.weights import parse_weight
from velm_cli.schema import (
    ClassifyTaskConfig,
    DecodeConfig,
    Head,
    JointLoss,
    Labelled,
    MetricsConfig,
    NoVisionConfig,
    Pool,
    TrainRoot,
    VisionOutput,
)
from velm_cli.schema.tasks import LabelLoss
from velm_cli.tasks.interface import ExampleId, Needs, Predicted, Session, Task
from velm_cli.tasks.writers import writing_learner

if TYPE_CHECKING:
    import torch

    from velm_cli.data.batch import Batch, Labels
    from velm_cli.data.store import Store
    from velm_cli.data.tokenizer import Tokenizer
    from velm_cli.learners.interface import Learner
    from velm_cli.metrics.scores import Scores
    from velm_cli.objectives.weights import Weight
    from velm_cli.tasks.spaces import Spaces

LABELS = "labels"  # the label space
LIKE_CAPTIONS = 0.5  # labels a training image from which on they are no labels; of at least so many images
FEW = 20


class Judged(NamedTuple):
    """What is predicted of an image: its labels, and the probabilities [C] of all `names`.

    `chosen` None: the numbers order labels, and say of none whether it is there.
    """

    chosen: tuple[str, ...] | None
    shares_C: np.ndarray
    names: Sequence[str]

    @property
    def answer(self) -> str:
        """The likeliest label."""
        return self.names[int(self.shares_C.argmax())]


class ClassifyTask(Task[Judged]):
    """An example is an image, or several, and its targets are its labels."""

    kind = "classify"
    target = "label"
    verb, doing = "classify", "labels"
    needs = Needs()
    predicted: tuple[str, ...] = (LABELS,)
    manner = "labels"
    evaluated = frozenset({"prompts"})
    options: ClassifyTaskConfig

    def __init__(self, options: ClassifyTaskConfig, *, prompted: bool = False) -> None:
        """`prompted`: labels are compared with images as captions are, and not learned."""
        super().__init__(options)
        self.prompted = prompted
        if prompted:
            self.predicted, self.manner = (), "prompts"
            self._known: dict[tuple[str, ...], torch.Tensor] = {}  # labels -> their vectors
        self.single = options.labels is Labelled.single
        self.primary = primary_of(self.single)

    # ---------------------------------------------------------------------------------- learning

    def problems(self, config: TrainRoot) -> Iterator[str]:
        for prompt in self.options.prompts:
            if "{}" not in prompt:
                yield f"task.prompts: {prompt!r} has no {{}}, which becomes the label"
        if isinstance(config.vision, NoVisionConfig):
            yield "task=classify judges images: choose a vision encoder"
        if not parse_weight("loss.alpha", config.loss.alpha).always_zero:
            yield f"loss.alpha={config.loss.alpha}: task=classify reads and writes no text: set it to 0"
        if self.options.pool is not Pool.own and config.vision.output is VisionOutput.pooled:
            yield (
                f"task.pool={self.options.pool.value} is of the image's positions, and vision.output=pooled has none: "
                "set vision.output=grid (vision.grid=1 keeps their mean alone)"
            )
        if config.init.text is not None:
            yield f"init.text={config.init.text} has no effect: task=classify reads no text; leave it out"

    def spaces(self, config: TrainRoot, store: Store) -> dict[str, list[str]]:
        spaces = super().spaces(config, store)
        spaces[LABELS] = sorted({label for i in map(int, store.split("train")) for label in store.targets(i)})
        return spaces

    def labels(self, store: Store, spaces: Spaces) -> dict[str, Labels]:
        return {LABELS: ImageLabels(store, spaces[LABELS])}

    def fitting(self, store: Store, spaces: Spaces) -> Iterator[str]:
        labels, images = len(spaces[LABELS]), store.counts["train"]
        if labels < 2 and self.single:
            yield f"task=classify tells labels apart, and the training part of {store.path} has {labels}"
        elif not labels:
            yield f"the training part of {store.path} has no labels"
        try:
            _refuse_captions(labels, images, f"the training part of {store.path}")
        except UserError as error:
            yield str(error)
            return
        if self.single and (several := sum(len(set(store.targets(int(i)))) > 1 for i in store.split("train"))):
            yield f"{several:,} training images of {store.path} have several labels: say task.labels=several"

    def learner(
        self, config: TrainRoot, spaces: Spaces, tokenizer: Tokenizer, weights: Mapping[str, Weight]
    ) -> Learner:
        if self.prompted:
            return writing_learner(config, spaces, tokenizer, weights)
        from velm_cli.learners.judging import JudgingLearner
        from velm_cli.models.velm import VelmModel

        model = VelmModel(
            vision=config.vision, text=config.text, fusion=config.fusion, vocab_size=tokenizer.vocab_size, causal=False
        )
        return JudgingLearner(
            model,
            config.loss,
            weights=weights,
            labels=len(spaces[LABELS]),
            concepts=len(spaces.get("concepts", ())),
            label_loss=LabelLoss.softmax if self.single else LabelLoss.sigmoid,
            dropout=self.options.dropout,
            linear=self.options.head is Head.linear,
            pool=self.options.pool,
            mask_id=tokenizer.mask_id,
            reads=False,
            space=LABELS,
        )

    def is_learned(self, config: TrainRoot) -> bool:
        if parse_weight("loss.gamma", config.loss.gamma).always_zero:
            return False
        learns = isinstance(config.task, ClassifyTaskConfig) and config.loss.joint is JointLoss.label
        return learns or compares(config)

    def why_not_learned(self, config: TrainRoot, run: Path) -> str:
        return (
            f"checkpoint: {run} (task={config.task.kind}) tells no labels of images apart: train with task=classify, "
            "or for labels in prompts with an L_joint that compares images with captions (loss.gamma=1 "
            "loss.joint=contrastive)"
        )

    # -------------------------------------------------------------------------------- predicting

    def by_run(self, config: TrainRoot) -> ClassifyTask:
        return ClassifyTask(self.options, prompted=True) if compares(config) else self

    def named_by(self, store: Store, spaces: Spaces) -> Spaces:
        """Of a run that has learned no labels: all that the examples have."""
        if not self.prompted:
            return spaces
        names = sorted({label for i in range(len(store)) for label in store.targets(i)})
        if len(names) < 2:
            raise UserError(f"task=classify tells labels apart, and {store.path} has {len(names)}")
        _refuse_captions(len(names), len(store), str(store.path))
        return {**spaces, LABELS: names}

    def predicts_with(self, config: TrainRoot) -> frozenset[str]:
        return frozenset({"joint"})

    def predict(
        self,
        learner: Learner,
        batches: Iterable[Batch],
        spaces: Spaces,
        tokenizer: Tokenizer,
        how: DecodeConfig,
        session: Session,
    ) -> Iterator[tuple[ExampleId, Judged]]:
        from velm_cli.data.transfer import on_device

        judge: Any = learner
        if self.prompted:
            yield from self._compared(judge, batches, tuple(spaces[LABELS]), tokenizer, session)
            return
        for batch in on_device(batches, session.device):
            shares_BC = judge.predict(batch).probabilities_BC.float().cpu().numpy()
            for name, shares_C in zip(batch.ids, shares_BC, strict=True):
                yield name, self.judged(shares_C, spaces[LABELS])

    def _compared(
        self, learner: Any, batches: Iterable[Batch], names: tuple[str, ...], tokenizer: Tokenizer, session: Session
    ) -> Iterator[tuple[ExampleId, Judged]]:
        """By the embeddings of prompts; of several labels, without the sigmoid loss, there is only an order."""
        from velm_cli.data.transfer import on_device
        from velm_cli.learners.prompting import label_embeddings, label_logits
        from velm_cli.objectives.joint import SigmoidLoss

        if names not in self._known:
            prompts = list(self.options.prompts)
            self._known[names] = label_embeddings(learner, tokenizer, names, prompts, session.device)
        alone = isinstance(learner.joint_loss, SigmoidLoss)
        for batch in on_device(batches, session.device):
            logits_BC = label_logits(learner, batch, self._known[names])
            if self.single:
                logits_BC = logits_BC.softmax(dim=1)
            elif alone:
                logits_BC = logits_BC.sigmoid()
            for name, shares_C in zip(batch.ids, logits_BC.cpu().numpy(), strict=True):
                yield name, self.judged(shares_C, names) if self.single or alone else Judged(None, shares_C, names)

    def judged(self, shares_C: np.ndarray, names: Sequence[str]) -> Judged:
        """The likeliest of the labels, or those that are likelier than not."""
        places = [int(shares_C.argmax())] if self.single else np.flatnonzero(shares_C >= AT_LEAST).tolist()
        return Judged(tuple(names[place] for place in places), shares_C, names)

    # ----------------------------------------------------------------------------------- scoring

    def quick(self, store: Store, numbers: Iterable[int], predicted: Predicted[Judged]) -> dict[str, float]:
        truth = labels_of(store, numbers)
        if not truth:
            return {self.primary.lower(): 0.0}
        return quick_figures(truth, self._found(predicted, truth), single=self.single)

    def score(
        self,
        store: Store,
        numbers: Iterable[int],
        predicted: Predicted[Judged],
        config: MetricsConfig,
        *,
        learned: bool,
    ) -> Scores | None:
        truth = labels_of(store, numbers)
        if not truth:
            return None
        training = list(labels_of(store, store.split("train")).values()) if learned else None
        return score_labels(truth, self._found(predicted, truth), config, single=self.single, training=training)

    def _found(self, predicted: Predicted[Judged], truth: Iterable[ExampleId]) -> Found:
        some = {name: predicted[name] for name in truth}
        return Found(
            labels=next(iter(some.values())).names,
            chosen={name: one.chosen or () for name, one in some.items()},
            scores={name: one.shares_C for name, one in some.items()},
            decided=all(one.chosen is not None for one in some.values()),
            told={"prompts": list(self.options.prompts)} if self.prompted else {},
        )

    def shown(self, store: Store, numbers: Iterable[int], predicted: Predicted[Judged]) -> list[str]:
        return [", ".join(predicted[store.example_id(int(i))].chosen or ()) or "-" for i in numbers]

    def write_results(self, folder: Path, predicted: Predicted[Judged]) -> list[str]:
        """A line an image: its labels, and the probability of each label."""
        lines = (
            {
                "id": name,
                **({} if one.chosen is None else {"labels": list(one.chosen)}),
                "scores": {label: float(share) for label, share in zip(one.names, one.shares_C, strict=True)},
            }
            for name, one in predicted.items()
        )
        write_bytes(folder / "predictions.jsonl", ((json.dumps(line) + "\n").encode() for line in lines))
        return ["predictions.jsonl"]


def compares(config: TrainRoot) -> bool:
    """Whether a run compares images with captions, in which labels can be put."""
    own = isinstance(config.task, ClassifyTaskConfig)  # of an evaluation, which takes the place of the run's
    captions = own or not (config.task.judges or config.task.source_is_memory)
    return (
        captions
        and config.loss.joint is not JointLoss.label
        and not parse_weight("loss.gamma", config.loss.gamma).always_zero
    )


def _refuse_captions(labels: int, images: int, where: str) -> None:
    if labels > FEW and labels > LIKE_CAPTIONS * images:
        raise UserError(
            f"{images:,} images of {where} have {labels:,} different labels, as captions are: preprocess the data with "
            "dataset.labels=true or dataset.label_column="
        )


class ImageLabels:
    """The labels of a batch: 1 for each that an image has."""

    def __init__(self, store: Store, names: Sequence[str]) -> None:
        self._store, self.width = store, len(names)
        self._places = {name: place for place, name in enumerate(names)}

    def row(self, example: int) -> tuple[np.ndarray, np.ndarray]:
        """Those that are known (uint32), and ones (float32)."""
        known = dict.fromkeys(self._places[label] for label in self._store.targets(example) if label in self._places)
        return np.fromiter(known, np.uint32, len(known)), np.ones(len(known), np.float32)


def labels_of(store: Store, numbers: Iterable[int]) -> dict[ExampleId, tuple[str, ...]]:
    """The labels of the examples that have any, by their ids."""
    return {store.example_id(i): tuple(dict.fromkeys(own)) for i in map(int, numbers) if (own := store.targets(i))}
