"""report.html of an evaluation: its images, scores and curves, and where it looked for each word of a caption."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from velm_cli.data.batch import Columns
from velm_cli.data.features import Features
from velm_cli.data.loader import eval_batches
from velm_cli.data.store import Store, first_image
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.data.transforms import kept_box
from velm_cli.engine.folder import environment
from velm_cli.learners.interface import Learner
from velm_cli.metrics.scores import ImageId, Scores
from velm_cli.models.looking import looks
from velm_cli.report.about import about_folder
from velm_cli.report.evaluations import Attention, Evaluated, curves_behind, evaluated_of
from velm_cli.report.page import Picture, thumbnail, write_page
from velm_cli.tasks.interface import ExampleId

LARGE_SIDE = 480  # pixels, of the images whose attention is shown
AT_ONCE = 32  # images looked at together


def write_report(
    folder: Path,
    scores: Scores,
    store: Store,
    learner: Learner,
    tokenizer: Tokenizer,
    indices: np.ndarray,
    predicted: Mapping[ExampleId, Any],
    *,
    attention: int,
    features: Features | None,
    facts: Mapping[str, float | None] | None = None,
) -> Path:
    """Write the page of the evaluation in `folder`; with attention maps for that many captions, if the fusion has any.

    Of several images of an example the first is shown. `facts` are those of `score_facts`, where scenes are known.
    """
    about = about_folder(folder) | _made_by(folder)
    curves = curves_behind(folder, scores.primary)
    evaluated = evaluated_of(scores, folder.name, about=about, facts=facts, curves=curves)
    maps = {}
    if attention:
        chosen = _chosen(evaluated, store, indices, attention)
        maps = dict(_attention(learner, store, tokenizer, chosen, predicted, features))
    path = folder / "report.html"
    pictures = _pictures(store, indices, large=set(maps))
    write_page(path, [dataclasses.replace(evaluated, attention=maps)], pictures, title=folder.name)
    return path


def _pictures(store: Store, indices: np.ndarray, large: Container[ExampleId]) -> dict[ExampleId, Picture]:
    """By the example's id; one object for all examples of an image, which the page then holds once."""
    shown: dict[ExampleId, int] = {}
    for index in map(int, indices):
        if (image := first_image(store, index)) >= 0:
            shown[store.example_id(index)] = image
    sharp = {image for example, image in shown.items() if example in large}
    of_image = {
        image: _picture(store.image_bytes(image), large=image in sharp) for image in dict.fromkeys(shown.values())
    }
    return {example: of_image[image] for example, image in shown.items()}


def _made_by(folder: Path) -> dict[str, str]:
    """The command that runs now, and the versions of what it runs on."""
    packages = environment()["packages"]
    commands = (folder / "command.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    return {"command": commands[-1] if commands else "", "versions": versions}


def _picture(jpeg: bytes, *, large: bool) -> Picture:
    return Picture(thumbnail(jpeg), thumbnail(jpeg, LARGE_SIDE) if large else None)


def _chosen(evaluated: Evaluated, store: Store, indices: np.ndarray, count: int) -> np.ndarray:
    """So many of the images: a third of the best, a third of the worst, the others spread evenly."""
    if len(indices) <= count:
        return indices
    scores = [evaluated.per_image[store.example_id(int(index))][evaluated.primary] or 0.0 for index in indices]
    order = indices[np.argsort(scores, kind="stable")]
    extreme = count // 3
    middle = order[extreme : len(order) - extreme]
    spread = middle[np.linspace(0, len(middle) - 1, count - 2 * extreme).astype(int)]
    return np.sort(np.concatenate([order[:extreme], spread, order[len(order) - extreme :]]))


def _attention(
    learner: Learner,
    store: Store,
    tokenizer: Tokenizer,
    indices: np.ndarray,
    captions: Mapping[ExampleId, str],
    features: Features | None,
) -> Iterator[tuple[ImageId, Attention]]:
    """(image id, where the model looked) of each image with a caption; nothing where the fusion attends to no grid."""
    device, pixels = next(learner.parameters()).device, learner.pixels
    if pixels is None:
        return
    batches = eval_batches(store, Columns(), indices, batch_size=AT_ONCE, pixels=pixels, features=features)
    for batch in batches:
        batch = batch.to(device)
        ids = tokenizer.encode_batch([captions[image_id] for image_id in batch.ids])
        longest = max(1, *map(len, ids))
        rows = [[tokenizer.bos_id, *row, *[tokenizer.pad_id] * (longest - len(row))][:longest] for row in ids]
        with torch.inference_mode():
            image = learner.model.encode_image(batch.image_XCHW, batch.feature_XSD)
            assert image is not None
            if batch.image_of_BI is not None:
                image = image.of_examples(batch.image_of_BI)
            weights_BThw = looks(learner.model, torch.tensor(rows, device=device), image)
        if weights_BThw is None:
            return
        for image_id, example, row, weights_Thw in zip(batch.ids, batch.examples, ids, weights_BThw, strict=True):
            if tokenizer.decode(row).split():  # tokens of blanks alone make no word
                yield (
                    image_id,
                    _by_word(
                        tokenizer,
                        row,
                        weights_Thw.float().cpu(),
                        kept_box(store.image_bytes(first_image(store, example)), pixels.size, pixels.resizing),
                    ),
                )


def _by_word(
    tokenizer: Tokenizer, ids: Sequence[int], weights_Thw: Tensor, box: tuple[float, float, float, float]
) -> Attention:
    """The mean map of the tokens that make each word; the token at t was written with the weights at t."""
    ends = [len(tokenizer.decode(ids[: number + 1]).split()) for number in range(len(ids))]
    words = tokenizer.decode(ids).split()
    owner = np.clip(np.array(ends) - 1, 0, max(0, len(words) - 1))
    maps = [weights_Thw[: len(ids)][owner == word] for word in range(len(words))]
    shown = [(word, part.mean(dim=0).numpy()) for word, part in zip(words, maps, strict=True) if len(part)]
    return Attention([word for word, _ in shown], np.stack([each for _, each in shown]), box)
