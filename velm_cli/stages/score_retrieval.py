"""score task=retrieve: any model's embeddings, or the lists that any system ranked, in both directions."""

from __future__ import annotations

from pathlib import Path

from velm_cli.errors import UserError
from velm_cli.metrics.result_files import References, read_references
from velm_cli.metrics.retrieval_files import Retrieved, ranked_embeddings, read_rankings
from velm_cli.metrics.retrieval_scores import score_retrieval
from velm_cli.metrics.scores import Scores
from velm_cli.schema import ScoreRoot
from velm_cli.stages.score_finish import finish, results
from velm_cli.stages.score_images import image_files, small_pictures


def run(config: ScoreRoot) -> float | None:
    """Returns the rsum of `predictions`."""
    references = read_references(config.references) if config.references else None
    ours = _read(config, config.predictions, "predictions", references)
    theirs = _read(config, config.vs, "vs", references) if config.vs is not None else None
    if theirs is not None and (ours.images != theirs.images or ours.image_of_C.tolist() != theirs.image_of_C.tolist()):
        raise UserError(f"vs={config.vs}: it has other images or captions, or another order, than {config.predictions}")
    digest = None if references is None else references.digest
    with results(config, ours, digest, theirs, fold=config.fold):
        return _run(config, ours, theirs)


def _read(config: ScoreRoot, value: str, option: str, references: References | None) -> Retrieved:
    path = Path(value)
    if path.suffix.lower() == ".npz":
        return ranked_embeddings(path, option, references, fold=config.fold)
    if references is None:
        raise UserError(
            f"references is not set: {option}={value} ranks captions, and they say which belong to an image"
        )
    if config.fold:
        raise UserError(f"fold={config.fold} has no effect on rankings, which have their candidates: leave it out")
    return read_rankings(path, option, references, config.references)


def _run(config: ScoreRoot, ours: Retrieved, theirs: Retrieved | None) -> float | None:
    scored = [_score(config, each) for each in (ours, theirs) if each is not None]
    notes, pictures = [*ours.notes, *(theirs.notes if theirs else [])], {}
    if config.images is not None:
        files, more = image_files(config.images, ours.images, ours.files)
        notes += more
        pictures = small_pictures(files) if config.out is not None else {}
    counted = f"{len(ours.images):,} images, {len(ours.image_of_C):,} captions"
    return finish(config, scored[0], scored[1] if theirs else None, notes, pictures, counted=counted)


def _score(config: ScoreRoot, retrieved: Retrieved) -> Scores:
    return score_retrieval(
        retrieved.ranks,
        retrieved.image_of_C,
        config.metrics,
        images=retrieved.images,
        captions=retrieved.captions,
        fold=config.fold,
        signature={"from": retrieved.source},
        about=retrieved.about,
    )
