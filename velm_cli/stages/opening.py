"""A dry run opens every file that the command names, as far as is cheap: headers of weights, not their values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from velm_cli.data.tokenizer import Tokenizer
from velm_cli.errors import UserError
from velm_cli.learners.interface import Learner
from velm_cli.loading import run_spaces, run_tokenizer
from velm_cli.models.hub import CACHED_WEIGHTS
from velm_cli.models.weights import read_shapes
from velm_cli.objectives.weights import constant
from velm_cli.schema import (
    NoVisionConfig,
    PretrainedTextConfig,
    TrainRoot,
    TransformersVisionConfig,
)
from velm_cli.stages.starting import initial_weights, word_vectors
from velm_cli.tasks import task_of
from velm_cli.tasks.mix import learner_to_predict, weights_of_task
from velm_cli.tasks.spaces import Spaces


def opened_files(config: TrainRoot, learner: Learner, spaces: Spaces, tokenizer: Tokenizer) -> Iterator[str]:
    """A line about each file; UserError where one cannot be used. `learner` is on torch's meta device.

    The files of `vision.weights`, `vision.name` and `text.name` were opened when the learner was built.
    """
    yield from learner.model.vision.notes if learner.model.vision is not None else ()
    for group, node in (("vision", config.vision), ("text", config.text)):
        if isinstance(node, (TransformersVisionConfig, PretrainedTextConfig)) and node.weights == "pretrained":
            yield from _fetched(group, node.name)
    yield from word_vectors(config, learner, tokenizer)
    yield from initial_weights(config, learner, spaces, lambda file: (read_shapes(file), ""))[1]
    yield from opened_judge(config.metrics.clip)


def opened_judge(clip: str | None) -> Iterator[str]:
    """A line about the model of CLIPScore, if there is one; UserError where it cannot be used."""
    if clip is not None:
        from velm_cli.metrics.clip_score import ClipJudge

        yield f"CLIPScore by {ClipJudge(clip).signature}"


def opened_run(trained: TrainRoot, run: Path, weights: Path) -> Iterator[str]:
    """A line about the `weights` of the trained `run`; UserError where they do not fit its config."""
    state = read_shapes(weights)
    with torch.device("meta"):
        if isinstance(trained.text, PretrainedTextConfig):
            trained.text.weights = "none"  # they are in the file
        if not isinstance(trained.vision, NoVisionConfig):
            trained.vision.weights = "none"
        task = task_of(trained.task).by_run(trained)
        weights_of = constant(*task.predicts_with(trained))
        learner = learner_to_predict(trained, task, run_spaces(run, task), run_tokenizer(run), weights_of)
    state = weights_of_task(trained, task.kind, state)
    if line := task.cannot_predict(learner, trained, run):
        raise UserError(line)
    own = learner.state_dict()
    for name, tensor in own.items():
        if name not in state or state[name].shape != tensor.shape:
            raise UserError(f"{weights} does not fit the config next to it: {name} is missing or has another shape")
    yield f"{weights}: {len(own):,} tensors, as {run} has them"


def _fetched(group: str, name: str) -> Iterator[str]:
    """A line where the weights of a model of the hub are not on this machine yet."""
    if Path(name).is_dir():
        return
    from huggingface_hub import try_to_load_from_cache

    if not any(isinstance(try_to_load_from_cache(name, file), str) for file in CACHED_WEIGHTS):
        yield (
            f"note: the weights of {group}.name={name} are not on this machine; training first downloads them from the "
            f"hub ({group}.name=FOLDER takes a local one)"
        )
