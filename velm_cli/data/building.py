"""Writes a store: from a reader's Records to shards, flat arrays and, last, the manifest.

Everything is a function of the Records and the options, written whole or not at all, so a build that was
killed goes on from the shards it left. `plan.json` makes sure that these are shards of the same build.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields
from enum import Enum
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from tqdm import tqdm

from velm_cli import __version__
from velm_cli.data.concepts import MAX_CONCEPTS, Concepts, mine_concepts
from velm_cli.data.images import ImageRefused, NormalisedImage, normalise_image, normalise_many
from velm_cli.data.records import Corpus, Record
from velm_cli.data.shards import ShardReader, shard_path, whole_file, write_array, write_shard
from velm_cli.errors import UserError
from velm_cli.files import write_json
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
        for record in corpus.records:
            files.update(_stamp(_image_of(record)))
    texts = flat_captions(corpus.records)
    plan["records"] = hashlib.sha256(_id_list(corpus.records, corpus.splits)).hexdigest()
    plan["captions"] = hashlib.sha256(b"".join(values.tobytes() for values in texts)).hexdigest()
    plan["files"] = files.hexdigest()
    return plan


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """How two plans differ, for the user."""
    options = [key for key in {**old, **new} if key not in CONTENT and old.get(key) != new.get(key)]
    parts = [f"{key}={old.get(key)} (now {new.get(key)})" for key in options]
    return ", ".join(parts + [f"other {words}" for key, words in CONTENT.items() if old.get(key) != new.get(key)])


def build(corpus: Corpus, dataset: DatasetConfig, preprocess: PreprocessConfig, path: Path, *, progress: bool) -> None:
    """Write the store of `corpus` into the folder `path`, continuing from whole shards found there."""
    if not 0 <= preprocess.num_concepts <= MAX_CONCEPTS:
        raise UserError(f"preprocess.num_concepts={preprocess.num_concepts}: must lie in 0 to {MAX_CONCEPTS}")
    if preprocess.shard_images < 1:
        raise UserError(f"preprocess.shard_images={preprocess.shard_images}: must be at least 1")
    refused = [{"image_id": name, "file": None, "reason": reason} for name, reason in corpus.refused]
    if dataset.images:
        kept, locations, image_hashes, shards = _build_images(corpus, dataset, preprocess, path, refused, progress)
    else:
        kept, shards = corpus.records, []
        locations, image_hashes = np.zeros((0, 2), np.int32), np.zeros((0, 32), np.uint8)
    _write_rejects(path / REJECTS, refused)
    if not kept:
        first = f" (the first: {refused[0]['reason']})" if refused else ""
        raise UserError(f"nothing left to store: all {len(refused)} examples were refused{first}, see {path / REJECTS}")

    splits = np.array([corpus.splits.index(record.split) for record in kept], np.uint8)
    train = splits == corpus.splits.index("train") if "train" in corpus.splits else np.zeros(len(kept), bool)
    concepts = mine_concepts([record.targets for record in kept], train, preprocess.num_concepts)
    arrays = (*flat_captions(kept), splits, locations, concepts.ids, concepts.offsets)
    for name, values in zip(ARRAYS, arrays, strict=True):
        write_array(path / f"{name}.npy", values)
    write_json(path / "ids.json", [record.image_id for record in kept])
    write_json(path / "concepts.json", concepts.names)

    manifest = {
        "format": STORE_FORMAT,
        "hash": _content_hash(kept, corpus.splits, image_hashes, concepts),
        "counts": {
            "records": len(kept),
            "images": len(kept) if dataset.images else 0,
            "captions": sum(len(record.targets) for record in kept),
            "refused": len(refused),
            "concepts": len(concepts.names),
            "splits": count_splits(kept, corpus.splits),
        },
        "splits": corpus.splits,
        "options": {option.name: _plain(getattr(dataset, option.name)) for option in fields(dataset)},
        "notes": corpus.notes,
        "shards": shards,
        "made_with": {"velm": __version__, "pillow": PIL.__version__, "numpy": np.__version__},
        "complete": True,
    }
    write_json(path / MANIFEST, manifest)


def _build_images(
    corpus: Corpus,
    dataset: DatasetConfig,
    preprocess: PreprocessConfig,
    path: Path,
    refused: list[dict[str, Any]],
    progress: bool,
) -> tuple[list[Record], np.ndarray, np.ndarray, list[dict[str, Any]]]:
    """Write the missing shards; then say of all of them which records have an image, and where.

    Appends to `refused`. Returns the kept Records, int32 [records, 2] locations, uint8 [records, 32]
    sha256 of each JPEG, and a summary a shard for the manifest.
    """
    folder = path / "images"
    folder.mkdir(exist_ok=True)
    records, size = corpus.records, preprocess.shard_images
    ranges = [range(start, min(start + size, len(records))) for start in range(0, len(records), size)]
    missing = [shard for shard in range(len(ranges)) if not shard_path(folder, shard).exists()]
    if missing:
        normalise = partial(
            normalise_image,
            image_size=dataset.image_size,
            quality=dataset.image_quality,
            max_pixels=dataset.max_pixels,
        )
        paths = (_image_of(records[number]) for shard in missing for number in ranges[shard])
        bar = tqdm(
            total=len(records),
            initial=len(records) - sum(len(ranges[shard]) for shard in missing),
            desc="images",
            unit="image",
            disable=None if progress else True,
            mininterval=0.5,
        )
        with closing(normalise_many(paths, normalise, preprocess.workers)) as results, bar:
            for shard in missing:
                images = islice(results, len(ranges[shard]))
                write_shard(folder, shard, _samples(records, ranges[shard], images, bar))

    reader = ShardReader(folder)
    summaries = [
        json.loads(shard_path(folder, shard).with_suffix(".json").read_text(encoding="utf-8"))
        for shard in range(len(ranges))
    ]
    for summary in summaries:
        for number, reason in summary.pop("refused"):
            record = records[number]
            refused.append({"image_id": record.image_id, "file": str(record.image), "reason": reason})
    indexes = [reader.index(shard) for shard in range(len(ranges))]
    locations = [(shard, row) for shard, index in enumerate(indexes) for row in range(len(index))]
    rows = np.concatenate(indexes)
    kept = [records[number] for number in rows["record"]]
    shards = [{"file": shard_path(folder, shard).name, **summary} for shard, summary in enumerate(summaries)]
    return kept, np.array(locations, np.int32).reshape(-1, 2), rows["sha256"], shards


def _samples(
    records: list[Record], numbers: range, images: Iterator[NormalisedImage | ImageRefused], bar: tqdm
) -> Iterator[tuple[int, dict[str, Any], NormalisedImage | ImageRefused]]:
    for number, image in zip(numbers, images, strict=True):
        record = records[number]
        yield number, {"image_id": record.image_id, "split": record.split, "captions": record.targets}, image
        bar.update()


def flat_captions(records: list[Record]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`caption_text`, `caption_offsets` and `record_captions` of the store (see ARRAYS)."""
    text = bytearray()
    offsets, ranges = array("q", [0]), array("q", [0])
    for record in records:
        assert record.source is None, "captioning has no source text; a store for such tasks is to be designed"
        for caption in record.targets:
            text += caption.encode(errors="replace")  # a lone surrogate from JSON has no UTF-8
            offsets.append(len(text))
        ranges.append(len(offsets) - 1)
    return np.frombuffer(bytes(text), np.uint8), np.array(offsets, np.int64), np.array(ranges, np.int64)


def _content_hash(kept: list[Record], splits: tuple[str, ...], image_hashes: np.ndarray, concepts: Concepts) -> str:
    """sha256 over what training can see; neither paths, times, shard sizes nor the source's format."""
    content = hashlib.sha256(f"velm store {STORE_FORMAT}\n".encode())
    content.update(_id_list(kept, splits))
    for values in (*flat_captions(kept), image_hashes, concepts.ids, concepts.offsets):
        content.update(f"{values.dtype.str} {values.shape}\n".encode())
        content.update(np.ascontiguousarray(values).data)
    content.update(json.dumps(concepts.names).encode())
    return content.hexdigest()


def _id_list(records: list[Record], splits: tuple[str, ...]) -> bytes:
    return json.dumps([splits, [(record.image_id, record.split) for record in records]]).encode()


def _image_of(record: Record) -> Path:
    assert record.image is not None, f"record {record.image_id} of a data set with images has none"
    return record.image


def _stamp(image: Path) -> bytes:
    try:
        status = image.stat()
    except OSError:
        return b"absent\n"
    return f"{status.st_size} {status.st_mtime_ns}\n".encode()


def count_splits(records: list[Record], splits: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Number of `records` and `captions` in each split, zeros included."""
    counts = {split: {"records": 0, "captions": 0} for split in splits}
    for record in records:
        counts[record.split]["records"] += 1
        counts[record.split]["captions"] += len(record.targets)
    return counts


def _write_rejects(path: Path, refused: list[dict[str, Any]]) -> None:
    lines = sorted(refused, key=lambda reject: (str(reject["image_id"]), str(reject["file"]), reject["reason"]))
    with whole_file(path) as file:
        for reject in lines:
            file.write(json.dumps(reject).encode() + b"\n")


def _plain(value: Any) -> Any:
    return value.name if isinstance(value, Enum) else value
