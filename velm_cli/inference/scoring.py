"""The field's scores of anybody's predictions, from Python: `velm_cli.score`. What `velm score` prints, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from velm_cli.errors import UserError
from velm_cli.metrics.captions import score_captions
from velm_cli.metrics.result_files import Predictions, References, matched, read_predictions, read_references
from velm_cli.metrics.retrieval_files import ranked_embeddings
from velm_cli.metrics.retrieval_scores import score_retrieval
from velm_cli.metrics.scores import Scores
from velm_cli.metrics.vqa_files import Answers, matched_questions, read_answers, read_questions
from velm_cli.metrics.vqa_scores import Question, score_vqa
from velm_cli.schema import MetricsConfig, Mismatch

FAST = ("bleu", "rouge_l", "cider")  # what needs no Java


def score(
    predictions: Any,
    references: Any = None,
    *,
    task: str = "caption",
    metrics: str | Sequence[str] = FAST,
    resamples: int = 1000,
    ignore_mismatch: bool = False,
) -> Scores:
    """The scores of predictions; `result["CIDEr"]` is one, `result.corpus` has all, `.intervals`, `.per_image`.

    task="caption": predictions {id: caption}, references {id: [captions]}, or two lists in the same order.
    task="vqa": {question id: answer} and {question id: [the people's answers]}.
    task="retrieve": predictions is an embeddings.npz as `velm eval task=retrieve` writes them.
    Either may be a path to a file in any form that `velm score` reads. `metrics` (captions): names in any spelling;
    METEOR and SPICE need Java. `resamples`: of the 95 % intervals; 0 = none. Examples that are not exactly once on
    both sides are a UserError, unless `ignore_mismatch`.
    """
    named = [metrics] if isinstance(metrics, str) else list(metrics)
    config = MetricsConfig(names=named, resamples=resamples)
    policy = Mismatch.ignore if ignore_mismatch else Mismatch.error
    if task == "caption":
        return _captions(predictions, references, config, policy)
    if task == "vqa":
        return _answers(predictions, references, config, policy)
    if task == "retrieve":
        return _retrieval(predictions, references, config)
    raise UserError(f"task={task!r}: one of caption, vqa, retrieve")


def _captions(predictions: Any, references: Any, config: MetricsConfig, policy: Mismatch) -> Scores:
    truth = (
        read_references(references)
        if _is_path(references)
        else References({number: _texts(each) for number, each in _by_id(references, "references").items()})
    )
    given = (
        read_predictions(Path(predictions))
        if _is_path(predictions)
        else Predictions({number: _text(each) for number, each in _by_id(predictions, "predictions").items()})
    )
    images, _ = matched(truth, given, policy)
    return score_captions(
        {image: truth.captions[image] for image in images},
        {image: given.captions[image] for image in images},
        config,
        progress=False,
    )


def _answers(predictions: Any, references: Any, config: MetricsConfig, policy: Mismatch) -> Scores:
    if _is_path(references):
        truth, _ = read_questions(Path(references))
    else:
        listed = _by_id(references, "references")
        truth = {number: Question(answers=tuple(_texts(each))) for number, each in listed.items()}
    if _is_path(predictions):
        given = read_answers(Path(predictions))
    else:
        given = Answers({number: _text(each) for number, each in _by_id(predictions, "predictions").items()})
    ids, answers, _ = matched_questions(truth, given, policy, "predictions")
    return score_vqa({number: truth[number] for number in ids}, {number: answers[number] for number in ids}, config)


def _retrieval(predictions: Any, references: Any, config: MetricsConfig) -> Scores:
    if not _is_path(predictions):
        raise UserError("predictions: give the path of an embeddings.npz (docs/tasks.md says what it holds)")
    told = read_references(references) if references is not None else None
    found = ranked_embeddings(Path(predictions), "predictions", told, fold=0)
    return score_retrieval(
        found.ranks,
        found.image_of_C,
        config,
        images=found.images,
        captions=found.captions,
        fold=0,
        signature={"from": found.source},
        about=found.about,
    )


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, Path))


def _by_id(value: Any, name: str) -> dict[int | str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return dict(enumerate(value))
    raise UserError(f"{name}: give a dict by id, a list or the path of a file, not {type(value).__name__}")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"predictions: a prediction is one text, not {type(value).__name__}")
    return value


def _texts(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else list(value)
    if not all(isinstance(each, str) for each in texts):
        raise UserError("references: those of an example are a list of texts")
    return texts
