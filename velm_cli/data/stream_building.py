"""Makes a stream store: scans shards that stay where they are, and builds the two stores that lie beside the scan."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import fields
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import numpy as np

from velm_cli import __version__
from velm_cli.data.building import MANIFEST, REJECTS, plain
from velm_cli.data.examples import Corpus, Example, Examples, captioned
from velm_cli.data.making import build_store, is_complete
from velm_cli.data.parts import sole_writer
from velm_cli.data.sources import list_shards
from velm_cli.data.store_folder import (
    LOCKS,
    empty,
    place_of_fresh,
    read_plan,
    real_folder,
    replace,
    write_plan,
)
from velm_cli.data.stream_scan import SPLITS, Job, Scan, examples_of, scan_all, scanned_rows
from velm_cli.data.stream_store import STREAM_FORMAT, StreamStore, content_hash
from velm_cli.errors import UserError
from velm_cli.files import crc32, refuse_links, remove_temporary, sealed, whole_file, write_json
from velm_cli.schema import Damaged, PreprocessConfig, WebDatasetConfig


def build_stream(
    dataset: WebDatasetConfig, preprocess: PreprocessConfig, path: Path, *, fresh: bool = False, progress: bool = True
) -> StreamStore:
    """The stream store of the shards of `dataset` at `path`: opened if it is there, continued if it was begun.

    `fresh` builds beside it and puts the new one in its place when it is complete. UserError if `path` is taken by
    something else, where shards cannot be read (see `dataset.damaged`) or hold nothing to train on.
    """
    urls = list_shards(dataset)
    val_urls = list_shards(dataset, "val_urls") if dataset.val_urls is not None else []
    plan = _plan(dataset, preprocess, urls, val_urls)
    named, path = path, real_folder(path)
    if is_complete(path, plan, fresh):
        return StreamStore.open(named, dataset)
    place = place_of_fresh(path) if fresh else path
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the store {place}: {error.strerror}") from error
    with sole_writer(place, None):
        refuse_links(place)
        if read_plan(place) != plan:
            empty(place, keep=LOCKS)  # of another build that was never finished
            write_plan(place, plan)
        (place / "scan").mkdir(exist_ok=True)
        remove_temporary(place)
        _build(dataset, preprocess, urls, val_urls, place, progress)
    if fresh:
        replace(path)
    return StreamStore.open(named, dataset)


def _plan(
    dataset: WebDatasetConfig, preprocess: PreprocessConfig, urls: list[str], val_urls: list[str]
) -> dict[str, Any]:
    plan: dict[str, Any] = {"stream": STREAM_FORMAT, "dataset.kind": dataset.kind}
    for option in ("image_size", "image_quality", "max_pixels", "num_val", "caption_key", "vocabulary"):
        plan[f"dataset.{option}"] = getattr(dataset, option)
    plan["preprocess.num_concepts"] = preprocess.num_concepts
    for key, shards in (("urls", urls), ("val_urls", val_urls)):
        names = f"{len(shards):,} shards {hashlib.sha256(json.dumps(shards).encode()).hexdigest()[:12]}"
        plan[f"dataset.{key}"] = names
    return plan


def _build(
    dataset: WebDatasetConfig, preprocess: PreprocessConfig, urls: list[str], val_urls: list[str], place: Path,
    progress: bool,
) -> None:  # fmt: skip
    keep = -(-dataset.vocabulary // len(urls))
    jobs = [
        Job(number, url, number >= len(urls), keep if number < len(urls) else 0, place / "scan", dataset)
        for number, url in enumerate([*urls, *val_urls])
    ]
    scans = scan_all(jobs, preprocess.workers, progress)
    if unreadable := [scan for scan in scans if scan.problem] if dataset.damaged is Damaged.error else []:
        first = unreadable[0]  # an earlier run was allowed to skip it
        raise UserError(f"shard {first.url}: {first.problem}; repair it and give fresh=true, or dataset.damaged=skip")
    total = sum(scan.counts["train"] for scan in scans)
    held = {split: sum(scan.counts[split] for scan in scans) for split in SPLITS[1:]}
    num_val = 0 if val_urls or held["val"] else min(dataset.num_val, total // 20)
    firsts = _firsts([scan.counts["train"] for scan in scans], num_val)
    if total - num_val == 0:
        refused = [(scan.url, *refusal) for scan in scans for refusal in scan.refused]
        first_refused = f", first {refused[0][1]} of {refused[0][0]} ({refused[0][2]})" if refused else ""
        raise UserError(f"dataset.urls: no sample to train on in {len(urls):,} shards{first_refused}")

    kept = [captions for scan, first in zip(scans, firsts, strict=True) for captions in scan.kept[first:]]
    corpus = Corpus(Examples(captioned(number, "train", None, captions) for number, captions in enumerate(kept)))
    captions_only = changed(dataset, images=False, pipes=False)
    captions = build_store(corpus, captions_only, preprocess, place / "captions", progress=progress)
    del corpus, kept

    examples = _held_out_examples(jobs, scans, firsts, place)
    hashes = [captions.hash]
    if examples:
        held_out = Corpus(Examples(sorted(examples, key=lambda example: SPLITS.index(example.split))))
        without_pipes = changed(dataset, pipes=False)
        hashes.append(build_store(held_out, without_pipes, preprocess, place / "held-out", progress=progress).hash)
        shutil.rmtree(place / "held-out-images")
    _write_rejects(place / REJECTS, scans)
    _write_manifest(dataset, jobs, scans, firsts, examples, hashes, place)


def _firsts(counts: list[int], wanted: int) -> list[int]:
    """How many of the `counts` of each shard belong to the first `wanted` of all."""
    before = np.cumsum([0, *counts])[:-1]
    return np.clip(wanted - before, 0, counts).tolist()


def _held_out_examples(jobs: list[Job], scans: list[Scan], firsts: list[int], place: Path) -> list[Example]:
    """Examples of the samples that are not trained on, their images under names of velm's own in `held-out-images`."""
    folder = place / "held-out-images"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    examples: dict[int | str, Example] = {}
    for job, scan, first in zip(jobs, scans, firsts, strict=True):
        if not (first or scan.counts["val"] or scan.counts["test"]):
            continue
        use = scanned_rows(job.array_path, scan.crc32)["use"]
        use[np.flatnonzero(use == 0)[:first]] = SPLITS.index("val")
        wanted = {int(number): SPLITS[use[number]] for number in np.flatnonzero((use == 1) | (use == 2))}
        for number, sample in examples_of(job, wanted):
            name = sample.image_id
            if name in examples:  # keys need not differ between shards
                name = f"{job.number:06d}/{number:06d}"
            image = folder / f"{len(examples):09d}"
            image.write_bytes(sample.image)
            os.utime(image, (0, 0))  # a build that was killed goes on where it was only if the files look the same
            examples[name] = captioned(name, wanted[number], image, sample.captions)
    return list(examples.values())


def _write_rejects(path: Path, scans: list[Scan]) -> None:
    with whole_file(path) as file:
        for scan in scans:
            for key, reason in scan.refused:
                file.write(json.dumps({"image_id": key, "file": scan.url, "reason": reason}).encode() + b"\n")
            if scan.problem:
                file.write(json.dumps({"image_id": None, "file": scan.url, "reason": f"shard {scan.problem}"}).encode())
                file.write(b"\n")


def _write_manifest(
    dataset: WebDatasetConfig,
    jobs: list[Job],
    scans: list[Scan],
    firsts: list[int],
    examples: list[Example],
    hashes: list[str],
    place: Path,
) -> None:
    shards: list[dict[str, Any]] = [
        {"number": number, "url": scan.url, "train": scan.counts["train"] - first, "first": first, "crc32": scan.crc32}
        for number, (scan, first) in enumerate(zip(scans, firsts, strict=True))
        if not jobs[number].held_out
    ]
    splits = {
        "train": {
            "records": sum(shard["train"] for shard in shards),
            "captions": sum(scan.captions["train"] for scan in scans)
            - any(firsts) * sum(len(example.targets) for example in examples if example.split == "val"),
        }
    }
    for split in SPLITS[1:]:
        mine = [example for example in examples if example.split == split]
        splits[split] = {"records": len(mine), "captions": sum(len(example.targets) for example in mine)}
    manifest = {
        "format": STREAM_FORMAT,
        "hash": content_hash(shards, hashes),
        "counts": {
            "records": sum(count["records"] for count in splits.values()),
            "images": sum(count["records"] for count in splits.values()),
            "captions": sum(count["captions"] for count in splits.values()),
            "refused": sum(len(scan.refused) + bool(scan.problem) for scan in scans),
            "splits": splits,
        },
        "splits": SPLITS,
        "options": {o.name: plain(getattr(dataset, o.name)) for o in fields(dataset)},
        "stream": {"shards": shards, "most_captions": max(scan.most_captions for scan in scans)},
        "made_with": {"velm": __version__, "numpy": np.__version__},
        "crc32_of": {REJECTS: crc32(place / REJECTS)},
        "complete": True,
    }
    write_json(place / MANIFEST, sealed(manifest), indent=None)
