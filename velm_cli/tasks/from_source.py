"""What tasks that write a text from a source, with or without images, have in common: translation, summaries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from velm_cli.data.written import all_texts
from velm_cli.files import write_bytes
from velm_cli.objectives.weights import parse_weight
from velm_cli.schema import DecodeConfig, TaskConfig, TrainRoot
from velm_cli.tasks.interface import ExampleId, Needs, Predicted, Session, Shape, Task
from velm_cli.tasks.writers import layers_of, writes, writing_learner

if TYPE_CHECKING:
    from velm_cli.data.batch import Batch
    from velm_cli.data.store import Store
    from velm_cli.data.tokenizer import Tokenizer
    from velm_cli.learners.interface import Learner
    from velm_cli.metrics.targets import Target
    from velm_cli.models.velm import VelmModel
    from velm_cli.objectives.weights import Weight
    from velm_cli.tasks.spaces import Spaces


class WritesFromSource(Task[str]):
    """An example is a source with or without images; its targets are texts to write."""

    def __init__(self, options: TaskConfig) -> None:
        super().__init__(options)
        self.needs = Needs(source=True)

    def learner(
        self, config: TrainRoot, spaces: Spaces, tokenizer: Tokenizer, weights: Mapping[str, Weight]
    ) -> Learner:
        return writing_learner(config, spaces, tokenizer, weights, source_layers=layers_of(self.options))

    def shape(self, config: TrainRoot) -> Shape:
        return Shape(writes(config), layers_of(self.options))

    def sharing(
        self,
        config: TrainRoot,
        spaces: Spaces,
        tokenizer: Tokenizer,
        weights: Mapping[str, Weight],
        model: VelmModel,
    ) -> Learner:
        return writing_learner(config, spaces, tokenizer, weights, model=model)

    def is_learned(self, config: TrainRoot) -> bool:
        return config.task.kind == self.kind and not parse_weight("loss.alpha", config.loss.alpha).always_zero

    def predict(
        self,
        learner: Learner,
        batches: Iterable[Batch],
        spaces: Spaces,
        tokenizer: Tokenizer,
        how: DecodeConfig,
        session: Session,
    ) -> Iterator[tuple[ExampleId, str]]:
        from velm_cli.learners.writing import WritingLearner

        assert isinstance(learner, WritingLearner)
        return learner.describe(batches, tokenizer, how, device=session.device, seed=session.seed)

    def shown(self, store: Store, numbers: Iterable[int], predicted: Predicted[str]) -> list[str]:
        return [f"{store.source(number)}: {predicted[store.example_id(number)]}" for number in map(int, numbers)]

    def write_results(self, folder: Path, predicted: Predicted[str]) -> list[str]:
        return write_texts(folder, predicted)


def write_texts(folder: Path, predicted: Predicted[str]) -> list[str]:
    """JSON lines {"id": ..., "text": ...}, which `velm score` reads; `texts` has all where there are several."""
    import json

    def line(number: ExampleId, text: str) -> bytes:
        several = {"texts": list(all_texts(text))} if len(all_texts(text)) > 1 else {}
        return (json.dumps({"id": number, "text": text} | several) + "\n").encode()

    lines = (line(number, text) for number, text in predicted.items())
    write_bytes(folder / "predictions.jsonl", lines)
    return ["predictions.jsonl"]


def target_of(store: Store, number: int) -> Target:
    """What a prediction of the example is compared with."""
    from velm_cli.data.store import first_image
    from velm_cli.metrics.targets import Target

    image = first_image(store, number) if store.has_images else -1
    return Target(
        references=tuple(store.targets(number)),
        source=store.source(number) or "",
        image=None if image < 0 else store.image_name(image),
    )
