"""How tasks build a learner that reads and writes captions: the model of the config, with or without a source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from velm_cli.schema import CaptionTaskConfig, TaskConfig, TextLoss, TrainRoot

if TYPE_CHECKING:
    from velm_cli.data.tokenizer import Tokenizer
    from velm_cli.learners.writing import WritingLearner
    from velm_cli.models.velm import VelmModel
    from velm_cli.objectives.weights import Weight
    from velm_cli.tasks.spaces import Spaces


def writes(config: TrainRoot) -> bool:
    """Whether the text encoder reads forwards only, as whoever writes does."""
    return config.loss.text is not TextLoss.masked


def layers_of(task: TaskConfig) -> int | None:
    """Of the encoder of the source, if it has one: a prompt is read by the language model."""
    layers: int | None = None if task.source_is_prompt else getattr(task, "source_layers", None)
    return layers


def writing_learner(
    config: TrainRoot,
    spaces: Spaces,
    tokenizer: Tokenizer,
    weights: Mapping[str, Weight],
    *,
    source_layers: int | None = None,
    model: VelmModel | None = None,
) -> WritingLearner:
    """Initialised; `source_layers`: of the encoder of the source that is written from, if there is one. `model`: one
    that several tasks share; None: one of its own."""
    from velm_cli.learners.writing import WritingLearner
    from velm_cli.models.velm import VelmModel

    if model is None:
        model = VelmModel(
            vision=config.vision,
            text=config.text,
            fusion=config.fusion,
            vocab_size=tokenizer.vocab_size,
            causal=writes(config),
            source=source_layers,
        )
    task = config.task
    begun = []
    if isinstance(task, CaptionTaskConfig) and task.prompt:
        (begun,) = tokenizer.encode_batch([task.prompt])
    return WritingLearner(
        model,
        config.loss,
        weights=weights,
        concepts=len(spaces.get("concepts", ())),
        mask_id=tokenizer.mask_id,
        never_written=tokenizer.never_written,
        remember_texts=config.data.cache_texts,
        prompts=task.source_is_prompt,
        prompt=[tokenizer.bos_id, *begun, tokenizer.eos_id] if begun else None,
    )
