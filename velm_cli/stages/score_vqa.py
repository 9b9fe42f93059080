"""score task=vqa: any system's answers to VQA's questions, by the official rule, over their floors."""

from __future__ import annotations

from pathlib import Path

from velm_cli.metrics.scores import ExampleId
from velm_cli.metrics.vqa_files import Answers, matched_questions, read_answers, read_questions
from velm_cli.metrics.vqa_scores import Question, score_vqa
from velm_cli.schema import ScoreRoot
from velm_cli.stages.score_finish import finish, results
from velm_cli.stages.score_images import image_files, small_pictures


def run(config: ScoreRoot) -> float | None:
    """Returns the VQA accuracy of `predictions`."""
    questions = Path(config.questions) if config.questions is not None else None
    truth, digest = read_questions(Path(config.references), questions)
    ours = read_answers(Path(config.predictions))
    theirs = read_answers(Path(config.vs), "vs") if config.vs is not None else None
    training, of_training = (
        read_questions(Path(config.training), option="training") if config.training is not None else ({}, None)
    )
    options = {"mismatch": config.mismatch.value, "training": of_training}
    with results(config, ours, digest, theirs, **options):
        return _run(config, truth, ours, theirs, training)


def _run(
    config: ScoreRoot,
    truth: dict[ExampleId, Question],
    ours: Answers,
    theirs: Answers | None,
    training: dict[ExampleId, Question],
) -> float | None:
    ids, answers, notes = matched_questions(truth, ours, config.mismatch, config.predictions)
    others: dict[ExampleId, str] = {}
    if theirs is not None:
        shared = {number: truth[number] for number in ids}
        ids, others, more = matched_questions(shared, theirs, config.mismatch, str(config.vs))
        notes += more
        if theirs.digest == ours.digest:
            notes.append("predictions and vs are the same file")
    of_training = set(map(str, training))
    if seen := sum(str(number) in of_training for number in ids):
        notes.append(f"training has {seen:,} of the scored questions: floors and scores are not on unseen questions")
    questions = {number: truth[number] for number in ids}
    pictures = {}
    if config.images is not None:
        images = list(dict.fromkeys(q.image for q in questions.values() if q.image is not None))
        files, more = image_files(config.images, images, {})
        notes += more
        by_image = small_pictures(files) if config.out is not None else {}
        pictures = {n: by_image[q.image] for n, q in questions.items() if q.image is not None and q.image in by_image}
    learned = list(training.values()) or None
    scored = [
        score_vqa(questions, {number: given[number] for number in ids}, config.metrics, training=learned)
        for given in ([answers, others] if theirs is not None else [answers])
    ]
    if learned is None:
        notes.append("floors are learned from the scored questions themselves; training=ANNOTATIONS takes others")
    return finish(
        config, scored[0], scored[1] if theirs is not None else None, notes, pictures, counted=f"{len(ids):,} questions"
    )
