"""A trained learner with all that its run has learned: a captioner whose L_joint compares can also embed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from velm_cli import configs
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.learners.interface import Learner
from velm_cli.lineage import weight_file
from velm_cli.loading import has_learned, read_weights, run_config, run_spaces, run_tokenizer, trained_learner
from velm_cli.schema import (
    CaptionTaskConfig,
    ChatTaskConfig,
    ClassifyTaskConfig,
    RetrieveTaskConfig,
    SummariseTaskConfig,
    TaskConfig,
    TrainRoot,
    TranslateTaskConfig,
    VqaTaskConfig,
)
from velm_cli.tasks import Task, task_of
from velm_cli.tasks.spaces import Spaces


@dataclass(frozen=True, slots=True)
class Able:
    """A learner in evaluation mode, the tasks that it can do by their names, and why it cannot do the others."""

    learner: Learner
    tokenizer: Tokenizer
    config: TrainRoot
    spaces: Spaces
    file: Path
    sha256: str
    tasks: dict[str, Task[Any]]
    reasons: dict[str, str]

    @property
    def can(self) -> tuple[str, ...]:
        learned = self.config.task.kind
        return tuple(kind for kind in self.tasks if kind != "classify" or learned == kind)  # else by prompts

    def why_not(self, kind: str) -> str | None:
        """One line; None where it can."""
        return self.reasons.get(kind)


def load_able(checkpoint: str | Path, device: torch.device) -> Able:
    """UserError for whatever is wrong with the checkpoint, or where it has learned nothing that can be predicted."""
    config, file = run_config(checkpoint), weight_file(checkpoint)
    home, own = configs.run_folder_of(checkpoint), config.task.kind
    options: dict[str, TaskConfig] = {
        "caption": CaptionTaskConfig(),
        "vqa": VqaTaskConfig(),
        "retrieve": RetrieveTaskConfig(),
        "classify": ClassifyTaskConfig(),
        "translate": TranslateTaskConfig(),
        "summarise": SummariseTaskConfig(),
        "chat": ChatTaskConfig(),
    }
    options[own] = config.task
    tasks = {kind: task_of(each).by_run(config) for kind, each in options.items()}
    learned = {kind for kind, task in tasks.items() if has_learned(task, config, home)}
    if own in (
        "vqa",
        "translate",
        "summarise",
        "chat",
    ):  # its texts are answers or in two languages: nobody searches for them
        learned.discard("retrieve")
    tokenizer, state = run_tokenizer(home), read_weights(file)
    terms = tasks[own].predicts_with(config)
    if "retrieve" in learned:
        terms |= tasks["retrieve"].predicts_with(config)
    learner = trained_learner(config, tasks[own], tokenizer, home, file, state[0], terms=terms)
    reasons = {}
    for kind, task in tasks.items():
        why = None if kind in learned else task.why_not_learned(config, home)
        why = why or task.cannot_predict(learner, config, home)
        if why is not None:
            reasons[kind] = why
    able = {kind: task for kind, task in tasks.items() if kind not in reasons}
    return Able(learner.to(device), tokenizer, config, run_spaces(home, tasks[own]), file, state[1], able, reasons)
