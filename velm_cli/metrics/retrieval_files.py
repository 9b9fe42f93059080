"""Retrieval results as files: embeddings of images and captions (.npz), or ranked lists (JSON lines).

An .npz is what `velm eval task=retrieve` writes, see `embeddings.py`. A line of a ranked list is
{"kind": "text", "query": caption, "ranked": [images, the best first]}, or "image" with an image for its query and
captions ranked. A caption is called by its annotation's id in COCO's file, or IMAGE#0, IMAGE#1 ... in the references'
order. Nothing in either is ever unpickled.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from velm_cli.errors import UserError, on_one_line
from velm_cli.lines import Refused, json_lines, parse_json, read_bytes
from velm_cli.metrics.embeddings import Embeddings, read_embeddings, unit
from velm_cli.metrics.recall import KS
from velm_cli.metrics.result_files import References
from velm_cli.metrics.retrieval import Best, Ranks, best_both_ways, rank_both_ways
from velm_cli.metrics.retrieval_scores import folds_of
from velm_cli.metrics.scores import ExampleId

BEST = 5  # candidates of each query that the page shows


@dataclass(slots=True)
class Retrieved:
    """Ranks of I images and C captions, and who they are; `about` has what the page shows of each image."""

    ranks: Ranks
    images: list[ExampleId]
    image_of_C: np.ndarray
    captions: list[str] | None
    digest: str
    source: str  # in words, for the signature
    files: dict[ExampleId, str] = field(default_factory=dict)
    about: Sequence[dict[str, Any]] | None = None
    notes: list[str] = field(default_factory=list)


def ranked_embeddings(path: Path, option: str, references: References | None, *, fold: int = 0) -> Retrieved:
    """Ranks by the cosine of the embeddings, within folds of `fold` images. UserError for files that do not fit."""
    named = f"{option}={path}"
    found = read_embeddings(path, named)
    notes = []
    for what, vectors in (("image", found.image_IE), ("caption", found.text_CE)):
        if zeros := int((np.linalg.norm(vectors, axis=1) == 0).sum()):
            notes.append(f"{zeros:,} {what} embeddings are all zeros, equally near to everything")
    if references is not None:
        found = replace(found, captions=_texts(references, found.image_ids, found.image_of_C, named))
    folds_of(len(found.image_ids), fold)
    image_IE, text_CE = unit(found.image_IE), unit(found.text_CE)
    return Retrieved(
        ranks=rank_both_ways(image_IE, text_CE, found.image_of_C, fold=fold),
        images=found.image_ids,
        image_of_C=found.image_of_C,
        captions=found.captions,
        digest=_digest(path),
        source=f"cosine of embeddings of {found.image_IE.shape[1]} dimensions",
        files={} if references is None else references.files,
        about=about_best(found, best_both_ways(image_IE, text_CE, found.image_of_C, BEST, fold=fold)),
        notes=notes,
    )


def about_best(found: Embeddings, best: tuple[Best, Best]) -> list[dict[str, Any]]:
    """What the page shows of each image: `best` are the candidates of each caption and of each image, best first."""
    images_C, texts_I = ([row[row >= 0][:BEST] for row in each.numbers_Qk] for each in best)
    return _about(found.image_ids, found.image_of_C, found.captions, texts_I, images_C)


def _about(
    images: list[ExampleId],
    image_of_C: np.ndarray,
    captions: list[str] | None,
    texts_I: Sequence[np.ndarray],
    images_C: Sequence[np.ndarray],
) -> list[dict[str, Any]]:
    """What the page shows of each image: the captions that it found, and the images that its captions found."""

    def name(caption: int) -> str:
        return captions[caption] if captions is not None else f"a caption of {images[image_of_C[caption]]}"

    own_C: list[list[list[ExampleId]]] = [[] for _ in images]
    for caption, image in enumerate(image_of_C.tolist()):
        own_C[image].append([images[int(found)] for found in images_C[caption]])
    return [
        {
            "retrieved": [[name(int(caption)), bool(image_of_C[caption] == image)] for caption in texts_I[image]],
            "found_images": own_C[image],
        }
        for image in range(len(images))
    ]


def _texts(references: References, images: list[ExampleId], image_of_C: np.ndarray, named: str) -> list[str]:
    """The text of each caption: the n-th of an image is the n-th of its references."""
    by_text = {str(image): captions for image, captions in references.captions.items()}
    left = [list(by_text.get(str(image), [])) for image in images]
    counts = np.bincount(image_of_C, minlength=len(images))
    if other := [image for image, own, count in zip(images, left, counts, strict=True) if len(own) != count]:
        raise UserError(
            f"{named}: {len(other):,} images have other captions than in the references ({other[0]}, ...): the n-th "
            "embedding of an image must be that of its n-th caption"
        )
    return [left[image].pop(0) for image in image_of_C.tolist()]


# ------------------------------------------------------------------------------------- ranked lists


def read_rankings(path: Path, option: str, references: References, file: str) -> Retrieved:
    """Ranks from lists of at least 10 candidates (or all). What is on no list counts as the last of all candidates.

    `file` is where the references come from; in COCO's form it has ids of the captions too.
    """
    named = f"{option}={path}"
    images = list(references.captions)
    place = {str(image): number for number, image in enumerate(images)}
    counts = [len(references.captions[image]) for image in images]
    image_of_C = np.repeat(np.arange(len(images)), counts)
    captions = [caption for image in images for caption in references.captions[image]]
    names = {f"{image}#{n}": None for image in images for n in range(len(references.captions[image]))}
    caption_of = {name: number for number, name in enumerate(names)}
    for annotation, name in _annotations(Path(file)).items():
        caption_of.setdefault(annotation, caption_of[name])
    text_C, image_I = np.zeros(len(captions)), np.zeros(len(images))
    found_at = {"text": (caption_of, place, text_C), "image": (place, caption_of, image_I)}
    best_of = {"text": [np.zeros(0, int)] * len(captions), "image": [np.zeros(0, int)] * len(images)}
    missed = 0
    refused: Refused = []
    for number, line in json_lines(path, refused):
        where = f"{path} line {number}"
        kind = line.get("kind") if isinstance(line, dict) else None
        if (
            not isinstance(kind, str)
            or kind not in found_at
            or not isinstance(line.get("ranked"), list)
            or "query" not in line
        ):
            raise UserError(f'{where}: it must be {{"kind": "text" or "image", "query": id, "ranked": [ids]}}')
        queries, candidates, ranks = found_at[kind]
        query = queries.get(str(line["query"]))
        if query is None:
            raise UserError(f"{where}: no {kind} {on_one_line(str(line['query']))[:40]} in the references")
        if ranks[query]:
            raise UserError(f"{where}: the {kind} {line['query']} is there twice")
        ranked = [candidates.get(str(each)) for each in line["ranked"]]
        among = len(images) if kind == "text" else len(captions)
        _refuse_list(ranked, line["ranked"], among, where)
        own = [image_of_C[query]] if kind == "text" else np.flatnonzero(image_of_C == query).tolist()
        ranks[query] = next((at for at, each in enumerate(ranked, 1) if each in own), 0) or among
        missed += bool(own) and not any(each in own for each in ranked)
        best_of[kind][query] = np.array(ranked[:BEST])
    if refused:
        raise UserError(f"{option}={refused[0][0]}: {refused[0][1]}")
    image_I[np.array(counts) == 0] = np.nan  # a candidate, and no query
    for kind, ranks in (("images", image_I), ("captions", text_C)):
        if absent := int((ranks == 0).sum()):
            raise UserError(f"{named}: no list for {absent:,} {kind} of the references")
    notes = []
    if missed:
        lists = np.count_nonzero(counts) + len(captions)
        notes.append(
            f"on {missed:,} of {lists:,} lists is nothing that belongs to the query: its rank counts as the last"
        )
    return Retrieved(
        ranks=Ranks(text_C=text_C, image_I=image_I),
        images=images,
        image_of_C=image_of_C,
        captions=captions,
        digest=_digest(path),
        source="ranked lists",
        files=references.files,
        about=_about(images, image_of_C, captions, best_of["image"], best_of["text"]),
        notes=notes,
    )


def _annotations(path: Path) -> dict[str, str]:
    """id of a caption in COCO's file -> IMAGE#number; empty for other files."""
    if not path.is_file() or path.suffix.lower() not in (".json", ".gz"):
        return {}
    try:
        value = parse_json(read_bytes(path), str(path))
    except UserError:  # JSON lines, which `read_references` has read
        return {}
    listed = value.get("annotations") if isinstance(value, dict) else value
    found: dict[str, str] = {}
    numbers: Counter[str] = Counter()
    for each in listed if isinstance(listed, list) else []:
        if isinstance(each, dict) and isinstance(each.get("id"), int) and "image_id" in each and "caption" in each:
            image = str(each["image_id"])
            found[str(each["id"])] = f"{image}#{numbers[image]}"
            numbers[image] += 1
    return found


def _refuse_list(ranked: Sequence[int | None], given: Sequence[Any], among: int, where: str) -> None:
    if None in ranked:
        unknown = on_one_line(str(given[ranked.index(None)]))[:40]
        raise UserError(f"{where}: the candidate {unknown} is not in the references")
    if len(set(ranked)) < len(ranked):
        raise UserError(f"{where}: a candidate is on the list twice")
    if len(ranked) < min(max(KS), among):
        raise UserError(f"{where}: {len(ranked)} candidates: R@{max(KS)} needs the first {max(KS)} of a list")


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()
