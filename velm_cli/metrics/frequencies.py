"""Where CIDEr's document frequencies come from: the references at hand, COCO's, or a file.

A test set of a few hundred images says little about which words are rare, and a model's reward must not depend
on the batch; both want the frequencies of a large corpus.
"""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from velm_cli.errors import UserError
from velm_cli.metrics.authority import SPICE_JAR, pycocoevalcap
from velm_cli.metrics.document_frequency import DocumentFrequency
from velm_cli.metrics.java import JavaError

COCO_CAPTIONS = "coco/annotations/captions_val2014.json"  # in the jar of SPICE: the official ones, 40,504 images
COCO_TABLE = "cider-df-coco-val2014.npz"
# `DocumentFrequency.digest` of theirs: a cache that others can write to may hold any numbers under the same name.
COCO_DIGEST = "8c077ab1264ebc42e2b41b60ce1beb92220a9d6869d4bb9f085a9d86f1179b39"

Tokenize = Callable[[Sequence[str]], list[str]]


def document_frequencies(df: str, cache_dir: Path, tokenize: Tokenize) -> DocumentFrequency | None:
    """The table that `metrics.df` names; None stands for the frequencies of the references themselves.

    That of COCO is counted once and kept in `cache_dir`; a cache that is damaged or cannot be written costs time only.
    Raises UserError when a file cannot be read.
    """
    if df == "corpus":
        return None
    if df != "coco":
        return DocumentFrequency.load(Path(df))
    path = cache_dir / COCO_TABLE
    with contextlib.suppress(UserError):
        table = DocumentFrequency.load(path)
        if table.digest == COCO_DIGEST:
            return table
    table = _of_coco(tokenize)
    if table.digest == COCO_DIGEST:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            table.save(path)
    return table


def _of_coco(tokenize: Tokenize) -> DocumentFrequency:
    try:
        jar = pycocoevalcap() / SPICE_JAR
    except JavaError as error:
        raise UserError(f"metrics.df=coco: {error}") from None
    try:
        with zipfile.ZipFile(jar) as archive:
            annotations = json.loads(archive.read(COCO_CAPTIONS))["annotations"]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"metrics.df=coco: {jar} lacks COCO's captions ({error}): reinstall pycocoevalcap") from error
    tokens = tokenize([annotation["caption"] for annotation in annotations])
    groups: dict[int, list[str]] = {}
    for annotation, caption in zip(annotations, tokens, strict=True):
        groups.setdefault(annotation["image_id"], []).append(caption)
    return DocumentFrequency.of(groups.values(), "COCO val2014")
