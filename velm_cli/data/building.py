"""Writes a store: from a reader's Examples to shards, flat arrays and, last, the manifest.

Everything is a function of the Examples and the options, written whole or not at all, so a build that was
killed goes on from the shards it left. `plan.json` makes sure that these are shards of the same build.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from velm_cli import __version__
from velm_cli.data.arrays import read_pieces, write_pieces
from velm_cli.data.concepts import concept_words
from velm_cli.data.examples import Corpus
from velm_cli.data.image_shards import ImageShards, Say, completed, look_up, merged
from velm_cli.data.image_table import ImageTable
from velm_cli.data.parts import MERGE
from velm_cli.data.shards import read_index
from velm_cli.data.store_arrays import MORE_FILES, Content, arrays_of
from velm_cli.data.table_images import OF_TABLE
from velm_cli.data.video import OF_VIDEO
from velm_cli.errors import UserError
from velm_cli.files import crc32, sealed, whole_file, write_bytes, write_json
from velm_cli.schema import DatasetConfig, FramesConfig, PreprocessConfig

MANIFEST = "manifest.json"
PLAN = "plan.json"
REJECTS = "rejects.jsonl"
# What a plan says beside the options, in words for the user.
CONTENT = {
    "records": "image ids or splits",
    "captions": "captions",
    "images": "ids or paths of images, or other images of examples",
    "sources": "sources",
    "about": "what is said about examples",
    "files": "image files (size or time)",
}


def checked_files(format_number: int) -> tuple[str, ...]:
    """Small files that are read whole or at random: their CRC-32 is in the manifest and checked at each opening."""
    more = MORE_FILES if format_number == 2 else ()
    return (*(f"{name}.npy" for name in arrays_of(format_number)), "ids.json", "concepts.json", REJECTS, *more)


def make_plan(
    corpus: Corpus, table: ImageTable | None, dataset: DatasetConfig, preprocess: PreprocessConfig
) -> dict[str, Any]:
    """What a store is made from: the options that matter, and fingerprints of Examples and image files.

    Files count by size and time of change, which takes a second where reading them takes minutes.
    """
    content = Content(corpus.examples, corpus.splits, table)
    plan: dict[str, Any] = {
        "format": content.format,
        "dataset.kind": dataset.kind,
        "dataset.images": dataset.images,
    }
    plan["preprocess.num_concepts"] = preprocess.num_concepts
    files = hashlib.sha256()
    if table is not None:
        plan["preprocess.shard_images"] = preprocess.shard_images
        for option in ("image_size", "image_quality", "max_pixels"):
            plan[f"dataset.{option}"] = getattr(dataset, option)
        if isinstance(dataset, FramesConfig):
            plan |= {f"dataset.{option}": getattr(dataset, option) for option in ("min_frames", "max_seconds")}
        for image in table.paths():
            files.update(_stamp(image))
    plan["records"] = _digest(content.id_list())
    plan["captions"] = _digest_of(content, ("caption_text", "caption_offsets", "record_captions"))
    if content.format == 2:
        images = hashlib.sha256(_digest_of(content, ("example_images", "example_image_offsets")).encode())
        for line in content.image_ids() if table is not None else ():
            images.update(f"{json.dumps(line)}\n".encode())
        plan["images"] = images.hexdigest()
        plan["sources"] = _digest_of(content, ("source_text", "source_offsets"))
        about = json.dumps(content.about_values) + _digest_of(content, ("about",))
        plan["about"] = hashlib.sha256(about.encode()).hexdigest()
    plan["files"] = files.hexdigest()
    return plan


def _digest_of(content: Content, names: tuple[str, ...]) -> str:
    texts = content.texts()
    return _digest(values.data for name in names for values in texts[name][2]() if values.size)


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """How two plans differ, for the user."""
    options = [key for key in {**old, **new} if key not in CONTENT and old.get(key) != new.get(key)]
    parts = [f"{key}={old.get(key)} (now {new.get(key)})" for key in options]
    return ", ".join(parts + [f"other {words}" for key, words in CONTENT.items() if old.get(key) != new.get(key)])


def build(
    corpus: Corpus,
    table: ImageTable | None,
    dataset: DatasetConfig,
    preprocess: PreprocessConfig,
    path: Path,
    plan: dict[str, Any],
    *,
    command: str,
    say: Say,
    progress: bool,
) -> None:
    """Write the store of `corpus` into the folder `path`, continuing from whole shards found there.

    `table`: the images of `corpus`, None without. Every shard is checked before the manifest is written. With
    preprocess.part=merge none is made: UserError with the `command` that makes those that are missing or damaged. Else
    damaged ones are made again.
    """
    refused = [{"image_id": name, "file": None, "reason": reason} for name, reason in corpus.refused]
    content = Content(corpus.examples, corpus.splits, table)
    summaries: list[dict[str, Any]] = []
    if table is not None:
        shards = ImageShards(table, dataset, preprocess, path / "images", plan, progress)
        complete = merged if preprocess.part == MERGE else completed
        gone, summaries = look_up(table, complete(shards, path, command, say), refused)
        kept = corpus.examples.without(table.examples_with(gone))
        content = replace(content, examples=kept, gone=tuple(sorted(gone)))
    _write_rejects(path / REJECTS, refused)
    kept = content.examples
    if not kept:
        first = f" (the first: {refused[0]['reason']})" if refused else ""
        raise UserError(f"nothing left to store: all {len(refused)} examples were refused{first}, see {path / REJECTS}")

    train = (split == "train" for split in kept.splits())
    names = concept_words(kept.targets(), train, preprocess.num_concepts)
    write_json(path / "concepts.json", names)
    _write_ids(path / "ids.json", kept.ids())
    if content.format == 2:
        _write_ids(path / "image_ids.json", content.image_ids())
        write_json(path / "about.json", content.about_values)
    for name, (dtype, row, pieces) in content.arrays(summaries, names).items():
        write_pieces(path / f"{name}.npy", dtype, pieces(), row)
    counts = content.counts()

    manifest = {
        "format": content.format,
        "hash": _content_hash(path, content, summaries, names),
        "counts": {
            "records": len(kept),
            "images": content.num_images,
            "captions": sum(count["captions"] for count in counts.values()),
            "refused": len(refused),
            "concepts": len(names),
            "splits": counts,
        },
        "splits": corpus.splits,
        "options": {option.name: plain(getattr(dataset, option.name)) for option in fields(dataset)},
        "notes": corpus.notes,
        "shards": summaries,
        "made_with": {"velm": __version__, "pillow": PIL.__version__, "numpy": np.__version__},
        "crc32_of": {name: crc32(path / name) for name in checked_files(content.format)},
        "complete": True,
    }
    write_json(path / MANIFEST, sealed(manifest))


def _content_hash(path: Path, content: Content, shards: list[dict[str, Any]], concepts: list[str]) -> str:
    """sha256 over what training can see; neither paths, times, shard sizes nor the source's format."""
    digest = hashlib.sha256(f"velm store {content.format}\n".encode())

    def update(dtype: np.dtype, shape: tuple[int, ...], pieces: Iterable[Any]) -> None:
        digest.update(f"{dtype.str} {shape}\n".encode())
        for piece in pieces:
            digest.update(piece)

    for piece in content.id_list():
        digest.update(piece)
    for name in content.texts():
        update(*read_pieces(path / f"{name}.npy"))
    for name in MORE_FILES if content.format == 2 else ():
        digest.update((path / name).read_bytes())
    images = sum(summary["rows"] for summary in shards)
    update(np.dtype(np.uint8), (images, 32), _image_hashes(path / "images", shards))
    for name in ("concept_ids", "concept_offsets"):
        update(*read_pieces(path / f"{name}.npy"))
    digest.update(json.dumps(concepts).encode())
    return digest.hexdigest()


def _image_hashes(folder: Path, shards: list[dict[str, Any]]) -> Iterator[bytes]:
    for summary in shards:
        yield read_index(folder / summary["file"], summary["index"])["sha256"].tobytes()


def _digest(pieces: Iterable[Any]) -> str:
    content = hashlib.sha256()
    for piece in pieces:
        content.update(piece)
    return content.hexdigest()


def _write_ids(path: Path, ids: Iterable[int | str]) -> None:
    """A JSON list, one id a line."""
    lines = (b"," * (n > 0) + f"\n {json.dumps(name)}".encode() for n, name in enumerate(ids))
    write_bytes(path, chain([b"["], lines, [b"\n]\n"]))


def _stamp(image: str) -> bytes:
    try:
        status = os.stat(OF_TABLE.sub("", OF_VIDEO.sub("", image)))
    except OSError:
        return b"absent\n"
    return f"{status.st_size} {status.st_mtime_ns}\n".encode()


def _write_rejects(path: Path, refused: list[dict[str, Any]]) -> None:
    lines = sorted(refused, key=lambda reject: (str(reject["image_id"]), str(reject["file"]), reject["reason"]))
    with whole_file(path) as file:
        for reject in lines:
            file.write(json.dumps(reject).encode() + b"\n")


def plain(value: Any) -> Any:
    return value.name if isinstance(value, Enum) else value
