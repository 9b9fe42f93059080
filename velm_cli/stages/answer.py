"""answer: what a trained model answers to questions about anybody's images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from velm_cli.errors import UserError
from velm_cli.inference.arguments import text_of
from velm_cli.inference.foreign import ForeignModel
from velm_cli.inference.journal import Row
from velm_cli.inference.listing import Listed, listed_images
from velm_cli.inference.model import Model
from velm_cli.inference.questions import Question, read_questions
from velm_cli.inference.results import BESIDE
from velm_cli.models.decoding import decoded_together
from velm_cli.report.evaluations import Evaluated
from velm_cli.schema import AnswerRoot
from velm_cli.stages import using

COLUMNS = ("question_id", "image", "question", "answer", "probabilities")


def run(config: AnswerRoot) -> None:
    if (config.question is None) == (config.questions is None):
        raise UserError('give question="..." for all images, or questions=FILE with image and question in each row')
    for text in (config.question or "", *(config.choices or ())):
        text_of("question, choices", text)
    asked: dict[str, list[Question]] = defaultdict(list)
    if config.questions is not None:
        for each in read_questions(config.questions, config.images):
            asked[each.image].append(each)
        images = [Listed(name) for name in asked]
    else:
        images = listed_images(config.images)
        for image in images:
            asked[image.name].append(Question(image.name, config.question or "", None))
    images = images[: config.limit or None]
    if config.out in BESIDE:
        raise UserError(f"out={config.out} is for captions: give the name of a .json, .jsonl or .csv file")
    output = None if config.out is None else using.Output.of(config.out)
    model = using.loaded_or_foreign(config.checkpoint, config.run)
    model.needs(model.answers_by)
    if config.dry_run:
        count = sum(len(asked[image.name]) for image in images)
        print(f"would answer {count:,} questions about {len(images):,} images with {model!r}")
        return

    def answered(some: Sequence[Listed], jpegs: Sequence[bytes]) -> list[list[Row]]:
        return _rows(config, model, [asked[image.name] for image in some], jpegs)

    chunk = decoded_together(len(images), config.decode.batch_size)
    with model.ready():
        if output is None:
            using.printed(images, model, answered, lambda row: _told(config, row), chunk=chunk, workers=config.workers)
            return
        questions = [f"{each.image}\n{each.text}\n{each.id}" for image in images for each in asked[image.name]]
        using.written(
            output,
            images,
            model,
            {
                "stage": "answer",
                "weights": model.sha256,
                "questions": using.digest_of(images, questions),
                "choices": config.choices,
                "probabilities": config.probabilities,
                "decode": using.decoding(config.decode),
            },
            answered,
            columns=COLUMNS,
            chunk=chunk,
            workers=config.workers,
            fresh=config.fresh,
            doing="answers",
            page=(lambda rows: _shown(config, rows)) if config.page else None,
            page_images=config.page_images,
        )


def _rows(
    config: AnswerRoot, model: Model | ForeignModel, asked: Sequence[Sequence[Question]], jpegs: Sequence[bytes]
) -> list[list[Row]]:
    """The rows of each image; its questions share its encoding."""
    texts = [each.text for questions in asked for each in questions]
    image_of = [image for image, questions in enumerate(asked) for _ in questions]
    found = model.answers_of(
        jpegs, texts, image_of, config.decode, choices=config.choices, probabilities=config.probabilities
    )
    told = iter(found)
    return [[_row(each, next(told)) for each in questions] for questions in asked]


def _row(question: Question, found: Any) -> Row:
    row: dict[str, Any] = {"image": question.image, "question": question.text}
    if question.id is not None:
        row["question_id"] = question.id
    if isinstance(found, dict):
        return row | {"answer": next(iter(found)), "probabilities": {text: round(p, 6) for text, p in found.items()}}
    return using.row_of(row, "answer", found)


def _told(config: AnswerRoot, row: Row) -> list[str]:
    """Of a row on the console: the question, where there are several, the answer, and probabilities where asked for."""
    shares = [f"{text} {share:.3f}" for text, share in row.get("probabilities", {}).items()]
    return [*([row["question"]] if config.questions is not None else []), *(shares or [row["answer"]])]


def _shown(config: AnswerRoot, rows: Sequence[Row]) -> Evaluated:
    """A page shows one text an image: its questions with their answers."""
    texts: dict[int | str, list[str]] = defaultdict(list)
    for row in rows:
        texts[row["image"]].append(f"{row['question']} {row['answer']}")
    return Evaluated(
        name=Path(config.checkpoint).name,
        scores={},
        per_image={image: {} for image in texts},
        hypotheses={image: " / ".join(said) for image, said in texts.items()},
        references={},
        about={"model": config.checkpoint},
    )
