"""Reasoning: a sentence and its pictures in, whether it is true of them out; scored as NLVR and NLVR2 are."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from velm_cli.data.statements import LABELS, label_of
from velm_cli.files import write_bytes, write_json
from velm_cli.objectives.rules import reads_one_way
from velm_cli.objectives.weights import parse_weight
from velm_cli.schema import DecodeConfig, JointLoss, MetricsConfig, ReasonTaskConfig, TrainRoot
from velm_cli.tasks.interface import ExampleId, Needs, Predicted, Session, Shape, Task
from velm_cli.tasks.judges import ANSWERS, Answered, judged, judging_learner

if TYPE_CHECKING:
    from velm_cli.data.batch import Batch, Labels
    from velm_cli.data.store import Store
    from velm_cli.data.tokenizer import Tokenizer
    from velm_cli.learners.interface import Learner
    from velm_cli.metrics.reason_scores import Statement
    from velm_cli.metrics.scores import Scores
    from velm_cli.models.velm import VelmModel
    from velm_cli.objectives.weights import Weight
    from velm_cli.tasks.spaces import Spaces


class ReasonTask(Task[Answered]):
    """An example is a sentence with its pictures; its target is `true` or `false`."""

    kind = "reason"
    unit, target = "sentence", "label"
    verb, doing = "judge", "judgements"
    primary = "accuracy"
    predicted = (ANSWERS,)
    needs = Needs(source=True)
    manner = "judge"
    options: ReasonTaskConfig

    def spaces(self, config: TrainRoot, store: Store) -> dict[str, list[str]]:
        return {**super().spaces(config, store), ANSWERS: list(LABELS)}

    def labels(self, store: Store, spaces: Spaces) -> dict[str, Labels]:
        return {ANSWERS: TruthLabels(store)}

    def fitting(self, store: Store, spaces: Spaces) -> Iterator[str]:
        train = store.split("train")
        if len(train) and not any(_label(store, int(number)) for number in train):
            yield (
                f"task=reason learns whether sentences are true, and no example of the training part of {store.path} "
                "is labelled true or false: name data that are (dataset=nlvr, dataset.examples=statements)"
            )

    def learner(
        self, config: TrainRoot, spaces: Spaces, tokenizer: Tokenizer, weights: Mapping[str, Weight]
    ) -> Learner:
        return judging_learner(config, spaces, tokenizer, weights, self.options)

    def shape(self, config: TrainRoot) -> Shape:
        return Shape(reads_one_way(config.text, config.loss) or None)

    def sharing(
        self,
        config: TrainRoot,
        spaces: Spaces,
        tokenizer: Tokenizer,
        weights: Mapping[str, Weight],
        model: VelmModel,
    ) -> Learner:
        return judging_learner(config, spaces, tokenizer, weights, self.options, model=model)

    def is_learned(self, config: TrainRoot) -> bool:
        if not isinstance(config.task, ReasonTaskConfig) or config.loss.joint is not JointLoss.label:
            return False
        return not parse_weight("loss.gamma", config.loss.gamma).always_zero

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
    ) -> Iterator[tuple[ExampleId, Answered]]:
        from velm_cli.learners.judging import JudgingLearner

        assert isinstance(learner, JudgingLearner)
        return judged(learner, batches, spaces[ANSWERS], session)

    def quick(self, store: Store, numbers: Iterable[int], predicted: Predicted[Answered]) -> dict[str, float]:
        labels = {store.example_id(number): _label(store, number) for number in map(int, numbers)}
        found = [predicted[example].answer == label for example, label in labels.items() if label]
        return {"accuracy": sum(found) / max(1, len(found))}

    def score(
        self,
        store: Store,
        numbers: Iterable[int],
        predicted: Predicted[Answered],
        config: MetricsConfig,
        *,
        learned: bool,
    ) -> Scores | None:
        from velm_cli.metrics.reason_scores import score_reason

        truth = {store.example_id(n): _statement(store, n) for n in map(int, numbers) if _label(store, n)}
        if not truth:
            return None
        training = [label for n in store.split("train") if (label := _label(store, int(n)))] if learned else None
        return score_reason(
            truth,
            {example: predicted[example].answer for example in truth},
            config,
            training=training,
            alternatives={example: predicted[example].alternatives for example in truth},
        )

    def shown(self, store: Store, numbers: Iterable[int], predicted: Predicted[Answered]) -> list[str]:
        return [f"{store.source(n)}: {predicted[store.example_id(n)].answer}" for n in map(int, numbers)]

    def write_results(self, folder: Path, predicted: Predicted[Answered]) -> list[str]:
        """A list with probabilities, and the CSV that the official scripts take: `dev-12-0-3,true`."""
        results = [
            {"id": example, "prediction": found.answer, "true": dict(found.alternatives).get("true")}
            for example, found in predicted.items()
        ]
        write_json(folder / "predictions.json", results)
        table = io.StringIO(newline="")
        csv.writer(table, lineterminator="\n").writerows((n, found.answer) for n, found in predicted.items())
        write_bytes(folder / "predictions.csv", [table.getvalue().encode()])
        return ["predictions.json", "predictions.csv"]


class TruthLabels:
    """The labels `answers` of a batch: false or true, none where the data do not say."""

    width = len(LABELS)

    def __init__(self, store: Store) -> None:
        self._store = store

    def row(self, example: int) -> tuple[np.ndarray, np.ndarray]:
        label = _label(self._store, example)
        named = [LABELS.index(label)] if label else []
        return np.array(named, np.uint32), np.ones(len(named), np.float32)


def _label(store: Store, number: int) -> str | None:
    targets = store.targets(number)
    return label_of(targets[0]) if len(targets) == 1 else None


def _statement(store: Store, number: int) -> Statement:
    from velm_cli.metrics.reason_scores import Statement

    about = store.about(number)
    images, _ = store.images_of(np.array([number]))
    return Statement(
        label=_label(store, number) or "",
        group=about.get("group", str(store.example_id(number))),
        text=store.source(number) or "",
        kind=about.get("kind", ""),
        images=tuple(str(store.image_name(int(image))) for image in images),
    )
