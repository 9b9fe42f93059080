"""Blind controls of an evaluation (`eval.blind`): how far scores fall says what the image, or the source, is worth."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from velm_cli.data.blind import NoTexts, SameFeatures, grey, shuffled
from velm_cli.data.masked_words import words_to_mask
from velm_cli.data.prompts import Prompted, prompt_digest
from velm_cli.engine.device import autocast
from velm_cli.learners.interface import Learner
from velm_cli.schema import Blind, CaptionTaskConfig, EvaluateRoot, NoFusionConfig, NoVisionConfig, Precision, TrainRoot
from velm_cli.stages.task_data import TaskData
from velm_cli.tasks import Task

MEANING = {
    Blind.image: "no image: all are of the encoder's mean colour",
    Blind.shuffled: "images shuffled: every example is seen with those of another one (seed {seed})",
    Blind.source: "no source: it is empty",
}


def blind_problems(config: EvaluateRoot, task: Task, trained: TrainRoot, run: Path) -> Iterator[str]:
    """A line where there is nothing that `eval.blind` could keep from the model."""
    blind = config.eval.blind
    if blind is Blind.source and not task.needs.source:
        yield f"eval.blind=source: task={task.kind} has no source that could be left out; image and shuffled are there"
    if blind in (Blind.image, Blind.shuffled) and isinstance(trained.vision, NoVisionConfig):
        yield f"eval.blind={blind.value} has no effect: {run} was trained with vision=none and sees no image"
    elif blind in (Blind.image, Blind.shuffled) and _leaves_it_out(task, trained):
        yield f"eval.blind={blind.value} has no effect: {run} was trained with fusion=none, which leaves the image out"


def _leaves_it_out(task: Task, trained: TrainRoot) -> bool:
    """Whether the image has no effect: it is not fused, neither compared with texts nor judged alone."""
    meets = task.needs.targets_given or not task.options.reads_text
    return isinstance(trained.fusion, NoFusionConfig) and not meets


def told(config: EvaluateRoot, trained: TrainRoot) -> dict[str, str]:
    """What the signature of the scores says of it; nothing where the model gets everything."""
    blind = config.eval.blind
    control = {} if blind is Blind.none else {"blind": MEANING[blind].format(seed=config.seed)}
    return control | masked(trained) | prompted(trained)


def prompted(trained: TrainRoot) -> dict[str, str]:
    """What the signature says of the prompt that texts go on from."""
    task = trained.task
    prompt = getattr(task, "prompt", "") if task.source_is_prompt or isinstance(task, CaptionTaskConfig) else ""
    return {"prompt": prompt_digest(prompt)} if prompt else {}


def masked(trained: TrainRoot) -> dict[str, str]:
    """What the signature says of words that are hidden from the model, in training as in evaluations."""
    words = words_to_mask(trained.data.mask_source)
    if not words:
        return {}
    digest = hashlib.sha256("\n".join(sorted(words)).encode()).hexdigest()[:12]
    return {"mask_source": f"{trained.data.mask_source}: {len(words):,} words of the source are hidden ({digest})"}


def blinded(data: TaskData, config: EvaluateRoot) -> TaskData:
    """The data as the model gets them. UserError where all examples show the same image, which cannot be shuffled."""
    match config.eval.blind:
        case Blind.image:
            return replace(data, store=grey(data.store))
        case Blind.shuffled:
            return replace(data, store=shuffled(data.store, config.split, config.seed))
        case Blind.source:
            count, task = len(data.store), data.task.options
            if task.source_is_prompt:  # whose own words stay
                return replace(data, sources=Prompted(task.prompt, [""] * count, data.tokenizer, 1))
            return replace(data, sources=NoTexts(data.tokenizer, count))
    return data


@torch.inference_mode()
def grey_features(learner: Learner, device: torch.device, precision: Precision) -> SameFeatures:
    """What the encoder says of an image whose colours are all the mean: encoded once, for every image."""
    assert learner.pixels is not None
    side = learner.pixels.size
    with autocast(device, precision):
        return SameFeatures(learner.eval().model.kept(torch.zeros(1, 3, side, side, device=device))[0])
