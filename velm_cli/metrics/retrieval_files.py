"""Retrieval results as files: embeddings of images and captions (.npz), or ranked lists (JSON lines).

An .npz has `image_ids` [I], `image` [I, D], `text_image_ids` [C] (the image of each caption) and `text` [C, D], as
`velm eval task=retrieve` writes it; `captions` [C], the texts, may be there too. A line of a ranked list is
{"kind": "text", "query": caption, "ranked": [images, the best first]}, or "image" with an image for its query and
captions ranked. A caption is called by its annotation's id in COCO's file, or IMAGE#0, IMAGE#1 ... in the references'
order. Nothing in either is ever unpickled.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from velm_cli.errors import UserError, on_one_line
from velm_cli.lines import Refused, json_lines, most_unpacked, parse_json, read_bytes
from velm_cli.metrics.recall import KS
from velm_cli.metrics.result_files import References
from velm_cli.metrics.retrieval_scores import folds_of
from velm_cli.metrics.scores import ExampleId

if TYPE_CHECKING:
    from torch import Tensor

    from velm_cli.metrics.retrieval import Ranks

ARRAYS = ("image_ids", "image", "text_image_ids", "text")
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


def read_embeddings(path: Path, option: str, references: References | None, *, fold: int = 0) -> Retrieved:
    """Ranks by the cosine of the embeddings, within folds of `fold` images. UserError for files that do not fit."""
    import torch

    from velm_cli.metrics.retrieval import Ranks, rank_both_ways

    named = f"{option}={path}"
    images, image_ID, own_ids, text_CD, captions = _arrays(path, named)
    place = {str(image): number for number, image in enumerate(images)}
    if len(place) < len(images):
        raise UserError(f"{named}: an image is there twice")
    unknown = [owner for owner in own_ids if str(owner) not in place]
    if unknown:
        raise UserError(f"{named}: {len(unknown):,} captions of no image that is there ({unknown[0]}, ...)")
    image_of_C = np.array([place[str(owner)] for owner in own_ids])
    notes = []
    for what, vectors in (("image", image_ID), ("caption", text_CD)):
        if zeros := int((np.linalg.norm(vectors, axis=1) == 0).sum()):
            notes.append(f"{zeros:,} {what} embeddings are all zeros, equally near to everything")
    image_unit_ID, text_unit_CD = (
        torch.nn.functional.normalize(torch.from_numpy(vectors), dim=1) for vectors in (image_ID, text_CD)
    )
    fold_of_I = folds_of(len(images), fold)
    text_C, image_I = np.zeros(len(own_ids)), np.zeros(len(images))
    texts_I: list[np.ndarray] = []
    images_C: list[np.ndarray] = [np.zeros(0, int)] * len(own_ids)
    for number in range(int(fold_of_I.max()) + 1):
        own_I, own_C = np.flatnonzero(fold_of_I == number), np.flatnonzero(fold_of_I[image_of_C] == number)
        within = np.searchsorted(own_I, image_of_C[own_C])
        image_own, text_own = image_unit_ID[own_I], text_unit_CD[own_C]
        try:
            ranks = rank_both_ways(image_own, text_own, torch.from_numpy(within))
        except ValueError as error:
            raise UserError(f"{named}: {error}") from error
        text_C[own_C], image_I[own_I] = ranks.text_C, ranks.image_I
        best_I, best_C = (best(*each) for each in ((image_own, text_own), (text_own, image_own)))
        texts_I.extend(own_C[best_I.numpy()])
        for caption, found in zip(own_C, own_I[best_C.numpy()], strict=True):
            images_C[caption] = found
    if references is not None:
        captions = _texts(references, images, image_of_C, named)
    return Retrieved(
        ranks=Ranks(text_C=text_C, image_I=image_I),
        images=images,
        image_of_C=image_of_C,
        captions=captions,
        digest=_digest(path),
        source=f"cosine of embeddings of {image_ID.shape[1]} dimensions",
        files={} if references is None else references.files,
        about=_about(images, image_of_C, captions, texts_I, images_C),
        notes=notes,
    )


def best(query_QD: Tensor, candidate_CD: Tensor) -> Tensor:
    """[Q, BEST] numbers of the nearest candidates, in blocks of fixed memory."""
    import torch

    step = max(1, (1 << 24) // len(candidate_CD))
    parts = (query_QD[start : start + step] @ candidate_CD.T for start in range(0, len(query_QD), step))
    return torch.cat([part.topk(min(BEST, len(candidate_CD)), dim=1).indices for part in parts])


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


def _arrays(
    path: Path, named: str
) -> tuple[list[ExampleId], np.ndarray, list[ExampleId], np.ndarray, list[str] | None]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile) or file.zip is None:
                raise ValueError("no .npz archive")
            if sum(member.file_size for member in file.zip.infolist()) > most_unpacked(path.stat().st_size):
                raise ValueError("it unpacks to many times its size")
            if missing := [name for name in ARRAYS if name not in file]:
                raise ValueError(f"it lacks {', '.join(missing)} and has {on_one_line(', '.join(file.files))[:80]}")
            ids, image_ID, own_ids, text_CD = (file[name] for name in ARRAYS)
            captions = file["captions"] if "captions" in file.files else None
    except FileNotFoundError:
        raise UserError(f"{named} does not exist") from None
    except (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        why = "it holds pickled objects, which velm never reads" if "pickle" in str(error) else error
        raise UserError(f"{named} holds no embeddings: {why}") from error
    fits = image_ID.ndim == text_CD.ndim == 2 and image_ID.shape[1] == text_CD.shape[1] > 0
    for vectors in (image_ID, text_CD):
        fits = fits and vectors.dtype.kind == "f" and len(vectors) > 0
    for names, vectors in ((ids, image_ID), (own_ids, text_CD)):
        fits = fits and names.ndim == 1 and names.dtype.kind in "iuU" and len(names) == len(vectors)
    if captions is not None:
        fits = fits and captions.dtype.kind == "U" and captions.shape == own_ids.shape
    if not fits:
        shapes = f"{ids.shape}, {image_ID.shape}, {own_ids.shape}, {text_CD.shape}"
        raise UserError(f"{named}: its arrays do not fit together: {', '.join(ARRAYS)} have the shapes {shapes}")
    image_ID, text_CD = image_ID.astype(np.float32), text_CD.astype(np.float32)
    if not (np.isfinite(image_ID).all() and np.isfinite(text_CD).all()):
        raise UserError(f"{named}: it holds numbers that are not finite")
    return ids.tolist(), image_ID, own_ids.tolist(), text_CD, None if captions is None else captions.tolist()


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
    from velm_cli.metrics.retrieval import Ranks

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
        if kind not in found_at or not isinstance(line.get("ranked"), list) or "query" not in line:
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
        missed += not any(each in own for each in ranked)
        best_of[kind][query] = np.array(ranked[:BEST])
    if refused:
        raise UserError(f"{option}={refused[0][0]}: {refused[0][1]}")
    for kind, ranks in (("images", image_I), ("captions", text_C)):
        if absent := int((ranks == 0).sum()):
            raise UserError(f"{named}: no list for {absent:,} {kind} of the references")
    notes = []
    if missed:
        notes.append(
            f"on {missed:,} of {len(images) + len(captions):,} lists is nothing that belongs to the query: its rank "
            "counts as the last"
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
