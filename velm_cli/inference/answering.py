"""Answers to questions by a trained learner: written, chosen from its list, or from a list of the caller's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from velm_cli.data.batch import Batch
from velm_cli.data.transfer import on_device
from velm_cli.errors import UserError
from velm_cli.inference.abilities import Able
from velm_cli.learners.judging import JudgingLearner
from velm_cli.metrics.vqa import normalised
from velm_cli.schema import Answer, DecodeConfig
from velm_cli.tasks.interface import Session
from velm_cli.tasks.judges import ANSWERS, SHOWN, Answered, likeliest
from velm_cli.tasks.vqa import VqaTask

# Options that change which words are written, and not only how far is searched for them.
OF_WRITING = ("method", "allowed", "min_length", "repetition_penalty", "no_repeat_ngram", "top_k")


class Asked(NamedTuple):
    choices: Sequence[str] | None = None
    probabilities: int = 0


def answered(
    able: Able, batches: Iterable[Batch], how: DecodeConfig, asked: Asked, device: torch.device
) -> Iterator[tuple[int | str, Any]]:
    """(id, answer) of all examples of the batches; with `asked.probabilities` the likeliest answers, as a dict."""
    task, spaces = able.tasks["vqa"], {**able.spaces}
    assert isinstance(task, VqaTask)
    judges = isinstance(able.learner, JudgingLearner)
    if judges or asked.choices is not None or task.manner:
        _refuse_writing(how)
    if asked.choices is not None:
        choices = list(dict.fromkeys(asked.choices))
        if len(choices) < 2:
            raise UserError("choices: give at least two different answers")
        if judges:
            found = _among(able, task, batches, choices, device)
            yield from ((number, _shown(answer, asked)) for number, answer in found)
            return
        spaces[ANSWERS] = choices
        task = VqaTask(replace(task.options, answer=Answer.rank, candidates=len(choices)))
    elif asked.probabilities and task.options.answer is Answer.generate:
        raise UserError(
            "probabilities: this model writes its answers (task.answer=generate), which have none; give choices"
        )
    if asked.probabilities > SHOWN:
        raise UserError(f"probabilities={asked.probabilities}: at most {SHOWN}")
    told = task.predict(able.learner, batches, spaces, able.tokenizer, how, Session(device))
    yield from ((number, _shown(answer, asked)) for number, answer in told)


def _refuse_writing(how: DecodeConfig) -> None:
    """UserError for an option of how words are found, where the answer is one of a list."""
    usual = DecodeConfig()
    if said := [name for name in OF_WRITING if getattr(how, name) != getattr(usual, name)]:
        raise UserError(f"{said[0]} has no effect: the answer is the likeliest of a list, not written; leave it out")


def _among(
    able: Able, task: VqaTask, batches: Iterable[Batch], choices: Sequence[str], device: torch.device
) -> Iterator[tuple[int | str, Answered]]:
    """Of a learner that judges: its probabilities of these answers alone."""
    learner: Any = able.learner
    places = {normalised(answer): place for place, answer in enumerate(able.spaces[ANSWERS])}
    unknown = [choice for choice in choices if normalised(choice) not in places]
    if unknown:
        raise UserError(
            f"choices: {unknown[0]!r} is not among the {len(places):,} answers that this model can tell apart "
            "(task.answer=classify); one that writes its answers (generate, rank) takes any"
        )
    columns = torch.tensor([places[normalised(choice)] for choice in choices], device=device)
    for batch in on_device(batches, device):
        p_BC = learner.predict(batch).probabilities_BC.float().index_select(1, columns)
        p_BC = p_BC / p_BC.sum(dim=1, keepdim=True).clamp(min=torch.finfo(p_BC.dtype).tiny)
        yield from likeliest(batch, p_BC, choices)


def _shown(answered: Answered, asked: Asked) -> Any:
    return dict(answered.alternatives[: asked.probabilities]) if asked.probabilities else answered.answer
