"""How tasks build a learner that judges a text with its images, and read the labels that it gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from velm_cli.objectives.rules import reads_one_way
from velm_cli.schema import TrainRoot
from velm_cli.schema.tasks import LabelLoss, ReasonTaskConfig, VqaTaskConfig
from velm_cli.tasks.interface import ExampleId, Session

if TYPE_CHECKING:
    from velm_cli.data.batch import Batch
    from velm_cli.data.tokenizer import Tokenizer
    from velm_cli.learners.judging import JudgingLearner
    from velm_cli.models.velm import VelmModel
    from velm_cli.objectives.weights import Weight
    from velm_cli.tasks.spaces import Spaces

ANSWERS = "answers"  # the label space
SHOWN = 10  # labels whose probabilities are kept


class Answered(NamedTuple):
    """What is predicted of an example; `alternatives` are the likeliest labels of the list, the best first."""

    answer: str
    alternatives: tuple[tuple[str, float], ...] = ()


def judging_learner(
    config: TrainRoot,
    spaces: Spaces,
    tokenizer: Tokenizer,
    weights: Mapping[str, Weight],
    how: VqaTaskConfig | ReasonTaskConfig,
    *,
    model: VelmModel | None = None,
) -> JudgingLearner:
    """It judges the labels `answers` of the spaces. `model`: one that other tasks have too; else an initialised one."""
    from velm_cli.learners.judging import JudgingLearner
    from velm_cli.models.velm import VelmModel

    model = model or VelmModel(
        vision=config.vision,
        text=config.text,
        fusion=config.fusion,
        vocab_size=tokenizer.vocab_size,
        causal=reads_one_way(config.text, config.loss),
    )
    return JudgingLearner(
        model,
        config.loss,
        weights=weights,
        labels=len(spaces[ANSWERS]),
        concepts=len(spaces.get("concepts", ())),
        label_loss=how.label_loss if isinstance(how, VqaTaskConfig) else LabelLoss.softmax,
        dropout=how.dropout,
        source_pool=how.source_pool,
        mask_id=tokenizer.mask_id,
        remember_texts=config.data.cache_texts,
    )


def judged(
    learner: JudgingLearner, batches: Iterable[Batch], answers: Sequence[str], session: Session
) -> Iterator[tuple[ExampleId, Answered]]:
    """The likeliest of `answers` for each example of the batches."""
    from velm_cli.data.transfer import on_device

    for batch in on_device(batches, session.device):
        yield from likeliest(batch, learner.predict(batch).probabilities_BC, answers)


def likeliest(batch: Batch, probabilities_BC: Any, answers: Sequence[str]) -> Iterator[tuple[ExampleId, Answered]]:
    """The best of `answers` (C) for each example of the batch, with the SHOWN likeliest."""
    best = probabilities_BC.float().topk(min(SHOWN, len(answers)), dim=1)
    for number, shares, labels in zip(batch.ids, best.values.tolist(), best.indices.tolist(), strict=True):
        alternatives = tuple((answers[label], share) for label, share in zip(labels, shares, strict=True))
        yield number, Answered(alternatives[0][0], alternatives)
