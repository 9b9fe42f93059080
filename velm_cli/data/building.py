"""Writes a store: from a reader's Records to shards, flat arrays and, last, the manifest.

Everything is a function of the Records and the options, written whole or not at all, so a build that was
killed goes on from the shards it left. `plan.json` makes sure that these are shards of the same build.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import fields
from enum import Enum
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL

from velm_cli import __version__
from velm_cli.data.arrays import read_pieces, write_pieces
from velm_cli.data.concepts import concept_words, labels_of
from velm_cli.data.image_shards import ImageShards, Say, completed, look_up, merged
from velm_cli.data.parts import MERGE
from velm_cli.data.records import Corpus, Records
from velm_cli.data.shards import read_index
from velm_cli.errors import UserError
from velm_cli.files import crc32, sealed, whole_file, write_bytes, write_json
from velm_cli.schema import DatasetConfig, PreprocessConfig

STORE_FORMAT = 1
MANIFEST = "manifest.json"
PLAN = "plan.json"
REJECTS = "rejects.jsonl"
ARRAYS = (  # each NAME.npy
    "caption_text",  # uint8: every caption in UTF-8, in a row
    "caption_offsets",  # int64, captions + 1: caption c is text[offsets[c]:offsets[c + 1]]
    "record_captions",  # int64, records + 1: record i has the captions from [i] up to [i + 1]
    "record_splits",  # uint8: index into the manifest's `splits`
    "image_locations",  # int32 [records, 2]: shard, row; no rows in a store without images
    "concept_ids",  # uint16: labels of every record in a row
    "concept_offsets",  # int64, records + 1
)
Pieces = Iterator[np.ndarray]  # of an array that is never in memory whole
T = TypeVar("T")
TOGETHER = 10_000  # records that are in memory at once
# Small files that are read whole or at random: their CRC-32 is in the manifest and checked when a store is opened.
CHECKED = (*(f"{name}.npy" for name in ARRAYS), "ids.json", "concepts.json", REJECTS)
# What a plan says beside the options, in words for the user.
CONTENT = {
    "records": "image ids or splits",
    "captions": "captions",
    "files": "image files (size or time)",
}


def make_plan(corpus: Corpus, dataset: DatasetConfig, preprocess: PreprocessConfig) -> dict[str, Any]:
    """What a store is made from: the options that matter, and fingerprints of Records and image files.

    Files count by size and time of change, which takes a second where reading them takes minutes.
    """
    plan: dict[str, Any] = {
        "format": STORE_FORMAT,
        "dataset.kind": dataset.kind,
        "dataset.images": dataset.images,
    }
    plan["preprocess.num_concepts"] = preprocess.num_concepts
    files = hashlib.sha256()
    if dataset.images:
        plan["preprocess.shard_images"] = preprocess.shard_images
        for option in ("image_size", "image_quality", "max_pixels"):
            plan[f"dataset.{option}"] = getattr(dataset, option)
        for image in corpus.records.paths():
            assert image is not None, "a record of a data set with images has none"
            files.update(_stamp(image))
    plan["records"] = _digest(_id_list(corpus.records, corpus.splits))
    texts = (_caption_text, _caption_offsets, _record_captions)
    plan["captions"] = _digest(values.data for pieces in texts for values in pieces(corpus.records))
    plan["files"] = files.hexdigest()
    return plan


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """How two plans differ, for the user."""
    options = [key for key in {**old, **new} if key not in CONTENT and old.get(key) != new.get(key)]
    parts = [f"{key}={old.get(key)} (now {new.get(key)})" for key in options]
    return ", ".join(parts + [f"other {words}" for key, words in CONTENT.items() if old.get(key) != new.get(key)])


def build(
    corpus: Corpus,
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

    Every shard is checked before the manifest is written. With preprocess.part=merge none is made: UserError
    with the `command` that makes those that are missing or damaged. Else damaged ones are made again.
    """
    refused = [{"image_id": name, "file": None, "reason": reason} for name, reason in corpus.refused]
    kept = corpus.records
    summaries: list[dict[str, Any]] = []
    if dataset.images:
        shards = ImageShards(corpus, dataset, preprocess, path / "images", plan, progress)
        complete = merged if preprocess.part == MERGE else completed
        kept, summaries = look_up(corpus, complete(shards, path, command, say), refused)
    _write_rejects(path / REJECTS, refused)
    if not kept:
        first = f" (the first: {refused[0]['reason']})" if refused else ""
        raise UserError(f"nothing left to store: all {len(refused)} examples were refused{first}, see {path / REJECTS}")

    train = (split == "train" for split in kept.splits())
    names = concept_words(kept.targets(), train, preprocess.num_concepts)
    write_json(path / "concepts.json", names)
    _write_ids(path / "ids.json", kept)
    for name, (dtype, row, pieces) in _arrays(kept, corpus.splits, summaries, names).items():
        write_pieces(path / f"{name}.npy", dtype, pieces, row)
    counts = count_splits(kept, corpus.splits)

    manifest = {
        "format": STORE_FORMAT,
        "hash": _content_hash(path, kept, corpus.splits, summaries, names),
        "counts": {
            "records": len(kept),
            "images": len(kept) if dataset.images else 0,
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
        "crc32_of": {name: crc32(path / name) for name in CHECKED},
        "complete": True,
    }
    write_json(path / MANIFEST, sealed(manifest))


def _arrays(
    kept: Records, splits: tuple[str, ...], shards: list[dict[str, Any]], concepts: list[str]
) -> dict[str, tuple[type[np.generic], tuple[int, ...], Pieces]]:
    """Of each of ARRAYS: type, shape of a row, and the content in pieces, made as they are asked for."""
    return {
        "caption_text": (np.uint8, (), _caption_text(kept)),
        "caption_offsets": (np.int64, (), _caption_offsets(kept)),
        "record_captions": (np.int64, (), _record_captions(kept)),
        "record_splits": (np.uint8, (), _split_numbers(kept, splits)),
        "image_locations": (np.int32, (2,), _locations(shards)),
        "concept_ids": (np.uint16, (), chain.from_iterable(_labels(kept, concepts))),
        "concept_offsets": (np.int64, (), _offsets([len(ids) for ids in some] for some in _labels(kept, concepts))),
    }


def _caption_text(records: Records) -> Pieces:
    for some in _batches(records.encoded_targets()):
        yield np.frombuffer(b"".join(chain.from_iterable(some)), np.uint8)


def _caption_offsets(records: Records) -> Pieces:
    return _offsets([len(text) for texts in some for text in texts] for some in _batches(records.encoded_targets()))


def _record_captions(records: Records) -> Pieces:
    return _offsets([len(texts) for texts in some] for some in _batches(records.encoded_targets()))


def _split_numbers(records: Records, splits: tuple[str, ...]) -> Pieces:
    for some in _batches(records.splits()):
        yield np.array([splits.index(split) for split in some], np.uint8)


def _locations(shards: list[dict[str, Any]]) -> Pieces:
    for shard, summary in enumerate(shards):
        yield np.stack([np.full(summary["rows"], shard), np.arange(summary["rows"])], axis=1).astype(np.int32)


def _labels(records: Records, concepts: list[str]) -> Iterator[list[np.ndarray]]:
    numbers = {word: number for number, word in enumerate(concepts)}
    for some in _batches(records.targets()):
        yield [labels_of(captions, numbers) for captions in some]


def _offsets(batches: Iterable[list[int]]) -> Pieces:
    """0 and the sum of the lengths so far, after each."""
    last = 0
    yield np.zeros(1, np.int64)
    for lengths in batches:
        ends = last + np.cumsum(lengths, dtype=np.int64)
        yield ends
        last = int(ends[-1]) if len(ends) else last


def _batches(values: Iterable[T]) -> Iterator[list[T]]:
    several = iter(values)
    while some := list(islice(several, TOGETHER)):
        yield some


def _content_hash(
    path: Path, kept: Records, splits: tuple[str, ...], shards: list[dict[str, Any]], concepts: list[str]
) -> str:
    """sha256 over what training can see; neither paths, times, shard sizes nor the source's format."""
    content = hashlib.sha256(f"velm store {STORE_FORMAT}\n".encode())

    def update(dtype: np.dtype, shape: tuple[int, ...], pieces: Iterable[Any]) -> None:
        content.update(f"{dtype.str} {shape}\n".encode())
        for piece in pieces:
            content.update(piece)

    for piece in _id_list(kept, splits):
        content.update(piece)
    for name in ("caption_text", "caption_offsets", "record_captions"):
        update(*read_pieces(path / f"{name}.npy"))
    images = sum(summary["rows"] for summary in shards)
    update(np.dtype(np.uint8), (images, 32), _image_hashes(path / "images", shards))
    for name in ("concept_ids", "concept_offsets"):
        update(*read_pieces(path / f"{name}.npy"))
    content.update(json.dumps(concepts).encode())
    return content.hexdigest()


def _image_hashes(folder: Path, shards: list[dict[str, Any]]) -> Iterator[bytes]:
    for summary in shards:
        yield read_index(folder / summary["file"], summary["index"])["sha256"].tobytes()


def _id_list(records: Records, splits: tuple[str, ...]) -> Iterator[bytes]:
    """JSON of the splits and of every record's id and split, in pieces."""
    yield f"[{json.dumps(splits)}, [".encode()
    for number, some in enumerate(_batches(zip(records.ids(), records.splits(), strict=True))):
        yield (", " * (number > 0) + json.dumps(some)[1:-1]).encode()
    yield b"]]"


def _digest(pieces: Iterable[Any]) -> str:
    content = hashlib.sha256()
    for piece in pieces:
        content.update(piece)
    return content.hexdigest()


def _write_ids(path: Path, records: Records) -> None:
    """A JSON list, one id a line."""
    ids = (b"," * (n > 0) + f"\n {json.dumps(image_id)}".encode() for n, image_id in enumerate(records.ids()))
    write_bytes(path, chain([b"["], ids, [b"\n]\n"]))


def _stamp(image: str) -> bytes:
    try:
        status = os.stat(image)
    except OSError:
        return b"absent\n"
    return f"{status.st_size} {status.st_mtime_ns}\n".encode()


def count_splits(records: Records, splits: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Number of `records` and `captions` in each split, zeros included."""
    counts = {split: {"records": 0, "captions": 0} for split in splits}
    for split, captions in zip(records.splits(), records.encoded_targets(), strict=True):
        counts[split]["records"] += 1
        counts[split]["captions"] += len(captions)
    return counts


def _write_rejects(path: Path, refused: list[dict[str, Any]]) -> None:
    lines = sorted(refused, key=lambda reject: (str(reject["image_id"]), str(reject["file"]), reject["reason"]))
    with whole_file(path) as file:
        for reject in lines:
            file.write(json.dumps(reject).encode() + b"\n")


def plain(value: Any) -> Any:
    return value.name if isinstance(value, Enum) else value
