"""report.html of an evaluation: its images, scores and curves, and where it looked for each word or answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from velm_cli.data.batch import Columns
from velm_cli.data.loader import eval_batches
from velm_cli.data.looked import Attention
from velm_cli.data.pixels import Pixels
from velm_cli.data.store import Store
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.data.transforms import kept_box
from velm_cli.engine.folder import environment
from velm_cli.learners.attribution import chosen, looked, said_of, why_not
from velm_cli.learners.interface import Learner
from velm_cli.metrics.scores import Scores
from velm_cli.progress import progress_bar
from velm_cli.report.about import about_folder
from velm_cli.report.evaluations import Evaluated, curves_behind, evaluated_of
from velm_cli.report.page import Picture, thumbnail, write_page
from velm_cli.report.sheets import on_sheet, sheet
from velm_cli.schema.tasks import Looking
from velm_cli.tasks.interface import ExampleId

LARGE_SIDE = 480  # pixels, of the images whose attention is shown
TILE, LARGE_TILE = 72, 160  # pixels, of one of several images of an example
WHOLE = (0.0, 0.0, 1.0, 1.0)
AT_ONCE = 32  # images looked at together


def write_report(
    folder: Path,
    scores: Scores,
    store: Store,
    learner: Learner | None,
    tokenizer: Tokenizer | None,
    indices: np.ndarray,
    predicted: Mapping[ExampleId, Any],
    *,
    attention: int,
    looking: Looking = Looking.auto,
    columns: Columns = Columns(),  # noqa: B008, it cannot change
    answers: Sequence[str] = (),
    facts: Mapping[str, float | None] | None = None,
) -> Path:
    """Write the page of the evaluation in `folder`; for `attention` of the examples with where the model looked, which
    nobody can tell of a model without learner and tokenizer.

    `looking`: how that is found. `columns`: what predictions were made of. `answers`: those that a judge tells apart.
    Several images of an example are one sheet of tiles. `facts` are those of `score_facts`, where scenes are known.
    """
    about = about_folder(folder) | _made_by(folder)
    curves = curves_behind(folder, scores.primary)
    evaluated = evaluated_of(scores, folder.name, about=about, facts=facts, curves=curves)
    maps = {}
    if attention and learner is not None and tokenizer is not None:
        some = _chosen(evaluated, store, indices, attention)
        maps = dict(_looked(learner, store, tokenizer, some, predicted, columns, answers, looking))
    path = folder / "report.html"
    pictures = _pictures(store, indices, large=set(maps), pixels=learner.pixels if learner else None)
    write_page(path, [dataclasses.replace(evaluated, attention=maps)], pictures, title=folder.name)
    return path


def _pictures(
    store: Store, indices: np.ndarray, large: Container[ExampleId], pixels: Pixels | None
) -> dict[ExampleId, Picture]:
    """By the example's id; one object for all examples of the same images, which the page then holds once."""
    shown: dict[ExampleId, tuple[int, ...]] = {}
    for index in map(int, indices):
        if images := _images(store, index):
            shown[store.example_id(index)] = images
    sharp = {images for example, images in shown.items() if example in large}
    made = {images: _picture(store, images, pixels, large=images in sharp) for images in dict.fromkeys(shown.values())}
    return {example: made[images] for example, images in shown.items()}


def _images(store: Store, example: int) -> tuple[int, ...]:
    """Numbers of an example's images."""
    images_X, image_of_BI = store.images_of(np.array([example]))
    return tuple(images_X[image_of_BI[0]].tolist()) if image_of_BI.size else ()


def _made_by(folder: Path) -> dict[str, str]:
    """The command that runs now, and the versions of what it runs on."""
    packages = environment()["packages"]
    commands = (folder / "command.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    return {"command": commands[-1] if commands else "", "versions": versions}


def _picture(store: Store, images: tuple[int, ...], pixels: Pixels | None, *, large: bool) -> Picture:
    if len(images) == 1:
        jpeg = store.image_bytes(images[0])
        return Picture(thumbnail(jpeg), thumbnail(jpeg, LARGE_SIDE) if large else None)
    jpegs = [store.image_bytes(image) for image in images]
    boxes = [kept_box(jpeg, pixels.size, pixels.resizing) if pixels else WHOLE for jpeg in jpegs]
    return Picture(sheet(jpegs, boxes, TILE), sheet(jpegs, boxes, LARGE_TILE) if large else None)


def _chosen(evaluated: Evaluated, store: Store, indices: np.ndarray, count: int) -> np.ndarray:
    """So many of the images: a third of the best, a third of the worst, the others spread evenly."""
    if len(indices) <= count:
        return indices
    scores = [evaluated.own_score(store.example_id(int(index))) or 0.0 for index in indices]
    order = indices[np.argsort(scores, kind="stable")]
    extreme = count // 3
    middle = order[extreme : len(order) - extreme]
    spread = middle[np.linspace(0, len(middle) - 1, count - 2 * extreme).astype(int)]
    return np.sort(np.concatenate([order[:extreme], spread, order[len(order) - extreme :]]))


def _looked(
    learner: Learner,
    store: Store,
    tokenizer: Tokenizer,
    indices: np.ndarray,
    predicted: Mapping[ExampleId, Any],
    columns: Columns,
    answers: Sequence[str],
    looking: Looking,
) -> Iterator[tuple[ExampleId, Attention]]:
    """(example, where the model looked for what it said) of each that has words; nothing where it looks at no image.

    Of the images' pixels, whatever features were kept of them: what is hidden has to be seen anew.
    """
    device, pixels = next(learner.parameters()).device, learner.pixels
    if pixels is None or why_not(learner) is not None:
        return
    if (why := why_not(learner, looking.value)) is not None:
        print(f"note: the report shows no maps (report.looking={looking.value}): {why}")
        return
    images = len(indices) * max(1, store.most_images)
    method, asks = chosen(learner, looking.value, images=images), columns.source is not None
    texts = {store.example_id(int(index)): _text(predicted[store.example_id(int(index))]) for index in indices}
    spoken = np.array([index for index in indices if texts[store.example_id(int(index))].split()], np.int64)
    together = max(1, AT_ONCE // max(1, store.most_images))
    with progress_bar(what="where it looked", total=len(spoken), unit="example") as bar:
        for batch in eval_batches(store, columns, spoken, batch_size=together, pixels=pixels):
            said = [said_of(learner, tokenizer, texts[name], answers=answers, asked=asks) for name in batch.ids]
            found = looked(learner, batch.to(device), said, method)
            for name, example, each, maps in zip(batch.ids, batch.examples, said, found, strict=True):
                own = _images(store, example)
                if maps.ndim == 4 and len(own) > 1:
                    yield name, Attention(each.words, on_sheet(maps[:, : len(own)]), WHOLE, method)
                elif own:
                    box = kept_box(store.image_bytes(own[0]), pixels.size, pixels.resizing)
                    yield name, Attention(each.words, maps[:, 0] if maps.ndim == 4 else maps, box, method)
            bar.update(len(batch.ids))


def _text(said: Any) -> str:
    """What was predicted, as text: a caption, or an answer among its alternatives."""
    return str(getattr(said, "answer", said))
