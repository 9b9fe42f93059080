"""What `velm preprocess dataset=webdataset` makes of shards that stay where they are.

Every shard is read once, its images are checked (decoded, at an eighth of their size) and nothing of them is kept but
five bytes a sample: what it is for, and a CRC-32. That makes the counts exact, so that training can share the
shards among any number of processes, find its place again after a kill, and notice a shard that has changed. Beside
this lie two ordinary stores: the captions that vocabulary and concepts are learned from, and the held-out images.

    stores/webdataset/manifest.json, plan.json, rejects.jsonl
                      scan/000000.json, 000000.npy   of each shard; a kill loses the shards in work and no others
                      captions/                      a store of captions only
                      held-out/                      a store of the images to validate and test on, if there are any
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from dataclasses import replace as changed
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from velm_cli import __version__
from velm_cli.data.building import MANIFEST, REJECTS
from velm_cli.data.concepts import labels_of
from velm_cli.data.making import build_store, is_complete
from velm_cli.data.parts import sole_writer
from velm_cli.data.records import Corpus, Record, Records
from velm_cli.data.sources import list_shards
from velm_cli.data.store import Store, preprocess_command
from velm_cli.data.store_folder import (
    LOCKS,
    empty,
    place_of_fresh,
    read_plan,
    real_folder,
    replace,
    write_plan,
)
from velm_cli.data.stream_scan import SPLITS, Job, Scan, examples_of, first_change, scan_all, scanned_rows
from velm_cli.data.tokens import Tokens
from velm_cli.errors import UserError
from velm_cli.files import check_crc32, crc32, refuse_links, remove_temporary, sealed, whole_file, write_json
from velm_cli.schema import Damaged, DatasetConfig, PreprocessConfig, TokenizerConfig, WebDatasetConfig

STREAM_FORMAT = 1


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
        return _opened(named, dataset)
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
    return _opened(named, dataset)


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
        raise UserError(f"shard {first.url}: {first.problem}; mend it and say fresh=true, or dataset.damaged=skip")
    total = sum(scan.counts["train"] for scan in scans)
    held = {split: sum(scan.counts[split] for scan in scans) for split in SPLITS[1:]}
    num_val = 0 if val_urls or held["val"] else min(dataset.num_val, total // 20)
    firsts = _firsts([scan.counts["train"] for scan in scans], num_val)
    if total - num_val == 0:
        refused = [(scan.url, *refusal) for scan in scans for refusal in scan.refused]
        first_refused = f", first {refused[0][1]} of {refused[0][0]} ({refused[0][2]})" if refused else ""
        raise UserError(f"dataset.urls: no sample to train on in {len(urls):,} shards{first_refused}")

    kept = [captions for scan, first in zip(scans, firsts, strict=True) for captions in scan.kept[first:]]
    corpus = Corpus(Records(Record(number, "train", None, captions) for number, captions in enumerate(kept)))
    captions_only = changed(dataset, images=False, pipes=False)
    captions = build_store(corpus, captions_only, preprocess, place / "captions", progress=progress)
    del corpus, kept

    records = _held_out_records(jobs, scans, firsts, place)
    hashes = [captions.hash]
    if records:
        held_out = Corpus(Records(sorted(records, key=lambda record: SPLITS.index(record.split))))
        plain = changed(dataset, pipes=False)
        hashes.append(build_store(held_out, plain, preprocess, place / "held-out", progress=progress).hash)
        shutil.rmtree(place / "held-out-images")
    _write_rejects(place / REJECTS, scans)
    _write_manifest(dataset, jobs, scans, firsts, records, hashes, place)


def _firsts(counts: list[int], wanted: int) -> list[int]:
    """How many of the `counts` of each shard belong to the first `wanted` of all."""
    before = np.cumsum([0, *counts])[:-1]
    return np.clip(wanted - before, 0, counts).tolist()


def _held_out_records(jobs: list[Job], scans: list[Scan], firsts: list[int], place: Path) -> list[Record]:
    """Records of the samples that are not trained on, their images under names of velm's own in `held-out-images`."""
    folder = place / "held-out-images"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    records: dict[int | str, Record] = {}
    for job, scan, first in zip(jobs, scans, firsts, strict=True):
        if not (first or scan.counts["val"] or scan.counts["test"]):
            continue
        use = scanned_rows(job.array_path, scan.crc32)["use"]
        use[np.flatnonzero(use == 0)[:first]] = SPLITS.index("val")
        wanted = {int(number): SPLITS[use[number]] for number in np.flatnonzero((use == 1) | (use == 2))}
        for number, example in examples_of(job, wanted):
            name = example.image_id
            if name in records:  # keys need not differ between shards
                name = f"{job.number:06d}/{number:06d}"
            image = folder / f"{len(records):09d}"
            image.write_bytes(example.image)
            os.utime(image, (0, 0))  # a build that was killed goes on where it was only if the files look the same
            records[name] = Record(name, wanted[number], image, example.captions)
    return list(records.values())


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
    records: list[Record],
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
            - any(firsts) * sum(len(record.targets) for record in records if record.split == "val"),
        }
    }
    for split in SPLITS[1:]:
        mine = [record for record in records if record.split == split]
        splits[split] = {"records": len(mine), "captions": sum(len(record.targets) for record in mine)}
    manifest = {
        "format": STREAM_FORMAT,
        "hash": _content_hash(shards, hashes),
        "counts": {
            "records": sum(count["records"] for count in splits.values()),
            "images": sum(count["records"] for count in splits.values()),
            "captions": sum(count["captions"] for count in splits.values()),
            "refused": sum(len(scan.refused) + bool(scan.problem) for scan in scans),
            "splits": splits,
        },
        "splits": SPLITS,
        "options": {o.name: _plain(getattr(dataset, o.name)) for o in fields(dataset)},
        "stream": {"shards": shards, "most_captions": max(scan.most_captions for scan in scans)},
        "made_with": {"velm": __version__, "numpy": np.__version__},
        "crc32_of": {REJECTS: crc32(place / REJECTS)},
        "complete": True,
    }
    write_json(place / MANIFEST, sealed(manifest), indent=None)


def _content_hash(shards: list[dict[str, Any]], hashes: list[str]) -> str:
    """sha256 of what is trained on in each shard, and of the stores inside."""
    return hashlib.sha256(
        json.dumps([[(s["train"], s["first"], s["crc32"]) for s in shards], hashes]).encode()
    ).hexdigest()


# ------------------------------------------------------------------------------------------ open


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard to train on: `train` samples, after the `first` ones, which are held out."""

    number: int
    url: str
    train: int
    first: int
    crc32: int


class StreamStore(Store):
    """A store whose training part lies in shards elsewhere; its records are the held-out images, if there are any."""

    def __init__(self, path: Path, manifest: dict[str, Any], dataset: DatasetConfig | None) -> None:
        """Maps the held-out images; `Store.open` is the way in for everyone else."""
        self._learning = Store.open(path / "captions")
        held_out = path / "held-out" if (path / "held-out").exists() else None
        self._held_out = Store.open(held_out) if held_out else None
        _refuse_other_parts(path, manifest, self._learning, self._held_out)
        inner = self._held_out or self._learning
        super().__init__(inner.path, inner.manifest)
        self.path, self.manifest = path, manifest
        self.dataset = dataset if isinstance(dataset, WebDatasetConfig) else WebDatasetConfig(images=True)
        self.most_captions: int = manifest["stream"]["most_captions"]

    def __reduce__(self):
        return Store.open, (self.path, self.dataset)

    @property
    def counts(self) -> dict[str, int]:
        """Number of samples in each split; those to train on are in `shards`."""
        return {split: count["records"] for split, count in self.manifest["counts"]["splits"].items()}

    @property
    def has_images(self) -> bool:
        return True

    @property
    def concept_names(self) -> list[str]:
        return self._learning.concept_names

    @cached_property
    def ids(self) -> Sequence[int | str]:
        return (self._held_out or self._learning).ids

    @cached_property
    def concept_numbers(self) -> dict[str, int]:
        """The concept words with their labels."""
        return {name: label for label, name in enumerate(self.concept_names)}

    @cached_property
    def shards(self) -> list[Shard]:
        """The shards to train on, in order; their places are those of `dataset.urls`, if it is given now.

        UserError if that names another number of shards than the store was made from.
        """
        shards = [Shard(**shard) for shard in self.manifest["stream"]["shards"]]
        if self.dataset.urls is not None:
            urls = list_shards(self.dataset)
            if len(urls) != len(shards):
                raise UserError(
                    f"dataset.urls names {len(urls):,} shards, and the store {self.path} was made from "
                    f"{len(shards):,}: leave dataset.urls out, or run {preprocess_command(self.dataset)} fresh=true"
                )
            shards = [changed(shard, url=url) for shard, url in zip(shards, urls, strict=True)]
        return [shard for shard in shards if shard.train]

    def scanned(self, shard: Shard) -> np.ndarray:
        """What the scan found in a shard: a SCANNED row a sample, the `use` of those held out is val's."""
        path = self.path / "scan" / f"{shard.number:06d}.npy"
        try:
            rows = scanned_rows(path, shard.crc32)
        except (OSError, ValueError) as error:
            raise UserError(
                f"the store {self.path} is damaged ({path.name}: {error}); preprocess again with fresh=true"
            ) from error
        rows["use"][np.flatnonzero(rows["use"] == 0)[: shard.first]] = SPLITS.index("val")
        return rows

    def damage(self) -> Iterator[str | None]:
        """Read everything: the held-out images, and the shards to train on wherever they lie."""
        for store in filter(None, (self._learning, self._held_out)):
            yield from (line and f"{store.path.name}: {line}" for line in store.damage())
        for shard in self.shards:
            try:
                yield first_change(shard.url, self.dataset, self.scanned(shard))
            except UserError as error:
                yield str(error)

    def split(self, name: str) -> np.ndarray:
        """Numbers of the held-out records in split `name`; none for training, whose samples stream."""
        if name not in SPLITS or (name != "train" and self._held_out is not None):
            return super().split(name)
        return np.zeros(0, np.int64)

    def concepts(self, i: int) -> np.ndarray:
        return labels_of(self.captions(i), self.concept_numbers)

    def tokens(self, config: TokenizerConfig) -> Tokens:
        """The held-out captions, by the tokenizer that `config` makes of the training captions."""
        return self.encode(self._learning.tokens(config).tokenizer, config.max_tokens)


def _refuse_other_parts(path: Path, manifest: dict[str, Any], learning: Store, held_out: Store | None) -> None:
    """UserError where the stores inside are not those that the manifest was written for: without the held-out images
    a training would go without validation, and say nothing."""
    held = sum(count["records"] for split, count in manifest["counts"]["splits"].items() if split != "train")
    problem = None
    if held and held_out is None:
        problem = f"held-out, with {held:,} images to validate and test on, is gone"
    elif "crc32_of" in manifest:  # an older velm's may have made the hash in another way
        parts = [learning.hash, *([held_out.hash] if held_out else [])]
        if _content_hash(manifest["stream"]["shards"], parts) != manifest["hash"]:
            problem = "captions or held-out is of another store"
    if problem is not None:
        raise UserError(f"the store {path} is damaged ({problem}); preprocess again with fresh=true")


def open_stream(path: Path, manifest: dict[str, Any], dataset: DatasetConfig | None) -> StreamStore:
    """The complete stream store at `path`; UserError with the command to run where it is not usable."""
    if manifest["format"] != STREAM_FORMAT:
        raise UserError(f"the stream store {path} has format {manifest['format']}, this velm reads {STREAM_FORMAT}")
    try:
        for name, expected in manifest.get("crc32_of", {}).items():  # an older velm's store has none
            check_crc32(path / name, expected)
    except (OSError, ValueError) as error:
        raise UserError(f"the store {path} is damaged ({error}); preprocess again with fresh=true") from error
    return StreamStore(path, manifest, dataset)


def _opened(path: Path, dataset: WebDatasetConfig) -> StreamStore:
    store = Store.open(path, dataset)
    if not isinstance(store, StreamStore):
        raise UserError(f"{path} is a store of another kind; name another folder with dataset.store=...")
    return store


def _plain(value: Any) -> Any:
    return value.name if isinstance(value, Enum) else value
