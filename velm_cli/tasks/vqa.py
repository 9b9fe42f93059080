"""Visual question answering: an image and a question in, an answer out; scored by VQA accuracy.

The answer is one of a list, judged from the fused question and image (`classify`), or written with image and question
as memory (`generate`), or the likeliest of the list by its words (`rank`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from velm_cli.files import write_bytes, write_json
from velm_cli.objectives.rules import reads_one_way
from velm_cli.objectives.weights import parse_weight
from velm_cli.schema import Answer, DecodeConfig, JointLoss, MetricsConfig, TrainRoot, VqaTaskConfig
from velm_cli.tasks.answers import AnswerLabels, answer_list
from velm_cli.tasks.interface import ExampleId, Needs, Predicted, Session, Shape, Task
from velm_cli.tasks.judges import ANSWERS, Answered, judged, judging_learner, likeliest
from velm_cli.tasks.writers import layers_of, writes, writing_learner

if TYPE_CHECKING:
    from velm_cli.data.batch import Batch, Labels
    from velm_cli.data.store import Store
    from velm_cli.data.tokenizer import Tokenizer
    from velm_cli.learners.interface import Learner
    from velm_cli.metrics.scores import Scores
    from velm_cli.models.velm import VelmModel
    from velm_cli.objectives.weights import Weight
    from velm_cli.tasks.spaces import Spaces


class VqaTask(Task[Answered]):
    """An example is a question about an image; its targets are the answers of people."""

    kind = "vqa"
    unit, target = "question", "answer"
    verb, doing = "answer", "answers"
    primary = "VQA"
    options: VqaTaskConfig

    def __init__(self, options: VqaTaskConfig) -> None:
        super().__init__(options)
        self.predicted = (ANSWERS,)  # also where answers are written freely: an evaluation may rank the list
        self.needs = Needs(source=True)
        self.manner = None if options.answer is Answer.generate else options.answer.value
        self.evaluated = frozenset({"answer", "candidates"} if options.answer is Answer.rank else {"answer"})

    def spaces(self, config: TrainRoot, store: Store) -> dict[str, list[str]]:
        spaces = super().spaces(config, store)
        answers = (store.targets(int(number)) for number in store.split("train"))
        spaces[ANSWERS] = answer_list(answers, most=self.options.answers, at_least=self.options.min_answers)
        return spaces

    def labels(self, store: Store, spaces: Spaces) -> dict[str, Labels]:
        return {ANSWERS: AnswerLabels(store, spaces[ANSWERS])} if self.options.judges else {}

    def fitting(self, store: Store, spaces: Spaces) -> Iterator[str]:
        if self.manner and len(spaces[ANSWERS]) < 2:
            yield (
                f"task.answer={self.options.answer.value} needs a list of answers, and {len(spaces[ANSWERS])} of the "
                f"training part of {store.path} has task.min_answers={self.options.min_answers} questions or more"
            )

    def learner(
        self, config: TrainRoot, spaces: Spaces, tokenizer: Tokenizer, weights: Mapping[str, Weight]
    ) -> Learner:
        how = self.options
        if not how.judges:
            return writing_learner(config, spaces, tokenizer, weights, source_layers=layers_of(how))
        return judging_learner(config, spaces, tokenizer, weights, how)

    def shape(self, config: TrainRoot) -> Shape:
        if self.options.judges:
            return Shape(reads_one_way(config.text, config.loss) or None)
        return Shape(writes(config), layers_of(self.options))

    def sharing(
        self,
        config: TrainRoot,
        spaces: Spaces,
        tokenizer: Tokenizer,
        weights: Mapping[str, Weight],
        model: VelmModel,
    ) -> Learner:
        if not self.options.judges:
            return writing_learner(config, spaces, tokenizer, weights, model=model)
        return judging_learner(config, spaces, tokenizer, weights, self.options, model=model)

    def is_learned(self, config: TrainRoot) -> bool:
        if not isinstance(config.task, VqaTaskConfig) or config.task.judges is not self.options.judges:
            return False
        if self.options.judges:
            return (
                not parse_weight("loss.gamma", config.loss.gamma).always_zero and config.loss.joint is JointLoss.label
            )
        return not parse_weight("loss.alpha", config.loss.alpha).always_zero

    def why_not_learned(self, config: TrainRoot, run: Path) -> str:
        if not isinstance(config.task, VqaTaskConfig) or config.task.judges is self.options.judges:
            return super().why_not_learned(config, run)
        learned, asked = config.task.answer.value, self.options.answer.value
        can = "nothing else" if learned == Answer.classify.value else "generate and rank"
        return (
            f"task.answer={asked}: {run} was trained with task.answer={learned}, and can {can}; train with "
            f"task.answer={asked} for it"
        )

    def predicts_with(self, config: TrainRoot) -> frozenset[str]:
        return frozenset({"joint"}) if self.options.judges else frozenset()

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
        from velm_cli.learners.writing import WritingLearner

        if isinstance(learner, JudgingLearner):
            return judged(learner, batches, spaces[ANSWERS], session)
        assert isinstance(learner, WritingLearner)
        if self.options.answer is Answer.rank:
            return self._ranked(learner, batches, spaces[ANSWERS], tokenizer, session)
        written = learner.describe(batches, tokenizer, how, device=session.device, seed=session.seed)
        return ((number, Answered(answer)) for number, answer in written)

    def _ranked(
        self, learner: Any, batches: Iterable[Batch], answers: Sequence[str], tokenizer: Tokenizer, session: Session
    ) -> Iterator[tuple[ExampleId, Answered]]:
        import torch

        from velm_cli.data.transfer import on_device
        from velm_cli.models.ranking import Answers

        words = tokenizer.encode_batch(answers)
        listed = Answers.of(words, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id)
        for batch in on_device(batches, session.device):
            with torch.no_grad():
                log_p_BC = learner.ranked(batch, listed, self.options.candidates)
            yield from likeliest(batch, log_p_BC.softmax(dim=1), answers)

    def quick(self, store: Store, numbers: Iterable[int], predicted: Predicted[Answered]) -> dict[str, float]:
        from velm_cli.metrics.vqa import accuracy

        found = [
            accuracy(answers, predicted[store.example_id(number)].answer)
            for number in map(int, numbers)
            if (answers := store.targets(number))
        ]
        return {"vqa": sum(found) / max(1, len(found))}

    def score(
        self,
        store: Store,
        numbers: Iterable[int],
        predicted: Predicted[Answered],
        config: MetricsConfig,
        *,
        learned: bool,
    ) -> Scores | None:
        from velm_cli.metrics.vqa_scores import score_vqa

        questions = {
            store.example_id(number): _question(store, number) for number in map(int, numbers) if store.targets(number)
        }
        if not questions:
            return None
        training = [_question(store, int(number)) for number in store.split("train")] if learned else None
        return score_vqa(
            questions,
            {number: predicted[number].answer for number in questions},
            config,
            training=training,
            alternatives={
                number: predicted[number].alternatives for number in questions if predicted[number].alternatives
            }
            or None,
        )

    def shown(self, store: Store, numbers: Iterable[int], predicted: Predicted[Answered]) -> list[str]:
        return [f"{store.source(number)} {predicted[store.example_id(number)].answer}" for number in map(int, numbers)]

    def write_results(self, folder: Path, predicted: Predicted[Answered]) -> list[str]:
        """The list that VQA's server takes; and the probabilities, where answers are of a list."""
        results = [{"question_id": number, "answer": found.answer} for number, found in predicted.items()]
        write_json(folder / "predictions.json", results)
        if not any(found.alternatives for found in predicted.values()):
            return ["predictions.json"]
        import json

        lines = (
            {"question_id": number, "probabilities": dict(found.alternatives)} for number, found in predicted.items()
        )
        write_bytes(folder / "probabilities.jsonl", ((json.dumps(line) + "\n").encode() for line in lines))
        return ["predictions.json", "probabilities.jsonl"]


def _question(store: Store, number: int) -> Any:
    from velm_cli.metrics.vqa_scores import Question

    about = store.about(number)
    images, _ = store.images_of(np.array([number]))
    return Question(
        answers=tuple(store.targets(number)),
        text=store.source(number) or "",
        answer_type=about.get("answer_type", ""),
        question_type=about.get("question_type", ""),
        answer=about.get("multiple_choice_answer", ""),
        image=store.image_name(int(images[0])) if len(images) else None,
    )
