"""How tasks build a learner that reads and writes captions: the model of the config, with or without a source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from velm_cli.schema import TextLoss, TrainRoot

if TYPE_CHECKING:
    from velm_cli.data.tokenizer import Tokenizer
    from velm_cli.learners.writing import WritingLearner
    from velm_cli.objectives.weights import Weight
    from velm_cli.tasks.spaces import Spaces


def writing_learner(
    config: TrainRoot,
    spaces: Spaces,
    tokenizer: Tokenizer,
    weights: Mapping[str, Weight],
    *,
    source_layers: int | None = None,
) -> WritingLearner:
    """Initialised; `source_layers`: of the encoder of the source that is written from, if there is one."""
    from velm_cli.learners.writing import WritingLearner
    from velm_cli.models.velm import VelmModel

    model = VelmModel(
        vision=config.vision,
        text=config.text,
        fusion=config.fusion,
        vocab_size=tokenizer.vocab_size,
        causal=config.loss.text is not TextLoss.masked,
        source=source_layers,
    )
    return WritingLearner(
        model,
        config.loss,
        weights=weights,
        concepts=len(spaces.get("concepts", ())),
        mask_id=tokenizer.mask_id,
        never_written=tokenizer.never_written,
        remember_texts=config.data.cache_texts,
    )
