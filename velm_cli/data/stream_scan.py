"""Reading shards once before training: what each sample is good for, and how to know it again.

Images are decoded, JPEGs at an eighth of their size, and nothing of a shard is kept but five bytes a sample and the
captions of the first samples. A shard is scanned in a process of its own, and its two files are written last.
"""

from __future__ import annotations

import json
import zlib
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from velm_cli.data.arrays import read_array, write_array
from velm_cli.data.images import ImageRefused, check_image
from velm_cli.data.processes import available_cores, new_pool
from velm_cli.data.readers.assemble import clean_captions
from velm_cli.data.readers.cells import IMAGE_EXTENSIONS
from velm_cli.data.readers.splits import PARTS
from velm_cli.data.sources import SourceError, is_local, open_source, with_retries
from velm_cli.data.tars import Sample, samples
from velm_cli.errors import StageError, UserError
from velm_cli.files import SEAL, sealed, unsealed, write_json
from velm_cli.progress import progress_bar
from velm_cli.schema import Damaged, WebDatasetConfig

SCANNED = np.dtype([("crc32", "<u4"), ("use", "u1")])  # a row a sample of the tar
SPLITS = ("train", "val", "test")  # `use` is an index into this, or REFUSED
REFUSED = 255
TEXTS = ("txt", "json")
IMAGES = frozenset(extension.removeprefix(".") for extension in IMAGE_EXTENSIONS)


class Refused(Exception):
    """Why a sample cannot be used, as `kind: detail`."""


@dataclass(frozen=True, slots=True)
class Example:
    """What is in a sample."""

    image_id: int | str
    image: bytes
    captions: tuple[str, ...]
    split: str | None  # as KEY.json says: velm's own shards hold all splits


def is_wanted(extension: str) -> bool:
    """Whether velm reads members of this extension."""
    return extension in IMAGES or extension in TEXTS


def checksum(sample: Sample) -> int:
    """CRC-32 of the contents that were read, in the order of the tar."""
    value = 0
    for content in sample.parts.values():
        value = zlib.crc32(content or b"", value)
    return value


def understand(sample: Sample, caption_key: str | None) -> Example:
    """The image and captions of a sample whose wanted members were read. Raises Refused.

    Captions are the field `caption_key` of KEY.json; without one its list `captions` (velm's shards), else KEY.txt,
    else its `caption` (img2dataset writes both).
    """
    extension = next((name for name in sample.parts if name in IMAGES), None)
    if extension is None:
        raise Refused(f"no image: it has {', '.join(sample.parts) or 'none of the members that velm reads'}")
    image = sample.parts[extension]
    if image is None or any(content is None for content in sample.parts.values()):
        raise Refused("too large: a member of more than 256 MiB")
    about: dict[str, Any] = {}
    if content := sample.parts.get("json"):
        try:
            about = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise Refused(f"bad JSON: {str(error)[:100]}") from None
        if not isinstance(about, dict):
            raise Refused("bad JSON: not an object")
    if caption_key is not None:
        found = about.get(caption_key)
    elif isinstance(about.get("captions"), list):
        found = about["captions"]
    elif (content := sample.parts.get("txt")) is not None:
        try:
            found = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise Refused(f"bad text: the caption is not UTF-8 (byte {error.start})") from None
    else:
        found = about.get("caption")
    if found is None:
        raise Refused(f"no caption: neither KEY.txt nor {caption_key or 'caption'} in KEY.json")
    captions, reasons = clean_captions(found if isinstance(found, list) else [found])
    if not captions:
        raise Refused(f"no caption: {reasons[0] if reasons else 'an empty list'}")
    image_id = about.get("image_id")
    if isinstance(image_id, bool) or not isinstance(image_id, int | str):
        image_id = sample.key.encode(errors="backslashreplace").decode()
    split = about.get("split")
    return Example(image_id, image, captions, PARTS.get(split) if isinstance(split, str) else None)


@dataclass
class Scan:
    """What is in a shard, beside its array of SCANNED."""

    url: str
    counts: dict[str, int]  # samples a split
    captions: dict[str, int]  # captions a split
    most_captions: int  # of a training sample
    refused: list[tuple[str, str]]  # key, reason
    kept: list[tuple[str, ...]]  # captions of the first training samples
    problem: str | None  # why it could not be read to its end
    crc32: int = 0  # of the array's bytes


@dataclass(frozen=True)
class Job:
    """A shard to scan."""

    number: int
    url: str
    held_out: bool  # named by val_urls
    keep: int  # captions of so many training samples are kept
    folder: Path
    dataset: WebDatasetConfig

    @property
    def array_path(self) -> Path:
        return self.folder / f"{self.number:06d}.npy"

    @property
    def summary_path(self) -> Path:
        return self.folder / f"{self.number:06d}.json"


@dataclass
class _Rows:
    """A scan as it grows; what is in it when a shard breaks off is what can be used of it."""

    rows: list[tuple[int, int]] = field(default_factory=list)
    scan: Scan = field(default_factory=lambda: Scan("", dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0), 0, [], [],
                                                      None))  # fmt: skip


def _scan(job: Job) -> None:
    """Read a shard and write what is in it; UserError for one that stays unreadable, unless it may be skipped."""
    latest = _Rows()

    def once() -> None:
        nonlocal latest
        latest = _Rows()
        _read_shard(job, latest)

    try:
        with_retries(once, 0 if is_local(job.url) else job.dataset.retries)
    except SourceError as error:
        if job.dataset.damaged is Damaged.error:
            raise UserError(
                f"shard {job.url}: {error}; repair it, or continue without it by dataset.damaged=skip"
            ) from None
        latest.scan.problem = str(error)
    _write_scan(job, latest)


def _read_shard(job: Job, into: _Rows) -> None:
    scan = into.scan
    with open_source(job.url, pipes=job.dataset.pipes) as file:
        refuse = lambda name, reason: scan.refused.append((name[:200], reason))  # noqa: E731
        for _, sample in samples(file, lambda number, extension: is_wanted(extension), refuse):
            crc32 = checksum(sample)
            try:
                example = understand(sample, job.dataset.caption_key)
                check_image(example.image, max_pixels=job.dataset.max_pixels)
            except (Refused, ImageRefused) as reason:
                into.rows.append((crc32, REFUSED))
                scan.refused.append((sample.key[:200], str(reason)))
                continue
            split = example.split or "train"
            if job.held_out and split == "train":
                split = "val"
            into.rows.append((crc32, SPLITS.index(split)))
            scan.counts[split] += 1
            scan.captions[split] += len(example.captions)
            if split == "train":
                scan.most_captions = max(scan.most_captions, len(example.captions))
                if len(scan.kept) < job.keep:
                    scan.kept.append(example.captions)


def _write_scan(job: Job, found: _Rows) -> None:
    array = np.array(found.rows, SCANNED)
    found.scan.url, found.scan.crc32 = job.url, zlib.crc32(array.tobytes())
    write_array(job.array_path, array)
    write_json(job.summary_path, sealed({"scan": asdict(found.scan)}), indent=None)


def scanned_rows(path: Path, crc32: int) -> np.ndarray:
    """The SCANNED rows that a scan has left in `path`; OSError or ValueError when they are not those it wrote."""
    try:
        rows = read_array(path)
    except (OSError, ValueError):
        raise
    except Exception as error:  # numpy raises nearly every type on a damaged header
        raise ValueError(str(error)) from error
    if rows.dtype != SCANNED or zlib.crc32(rows.tobytes()) != crc32:
        raise ValueError(f"{path.name} has changed since it was written")
    return rows


def _found(job: Job) -> Scan | None:
    """What an earlier scan has left of a shard, if all of it is there and whole."""
    try:
        value = json.loads(job.summary_path.read_text(encoding="utf-8"))
        scan = Scan(**(unsealed(value)["scan"] if SEAL in value and "scan" in value else value))  # or an older velm's
        scan.kept = [tuple(captions) for captions in scan.kept]
        scanned_rows(job.array_path, scan.crc32)
        return scan
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        tqdm.write(f"scanned again: {job.summary_path.name} or its array is damaged ({' '.join(str(error).split())})")
        job.summary_path.unlink(missing_ok=True)
        return None


def scan_all(jobs: list[Job], workers: int, progress: bool) -> list[Scan]:
    """Scans of all shards, those that were already there as they are, if they are whole."""
    scans = {job.number: _found(job) for job in jobs}
    missing = [job for job in jobs if scans[job.number] is None]
    workers = min(workers or available_cores(), max(1, len(missing)))
    with progress_bar(
        what="shards", shown=progress, total=len(jobs), initial=len(jobs) - len(missing), unit="shard"
    ) as bar:
        if missing:
            broken = _scan_in_pool(missing, workers, bar)
            for job in broken:  # one by one, so that the one that kills its process is known
                if _scan_in_pool([job], 1, bar):
                    reason = "fatal: the process that read it died (a crash, or out of memory)"
                    if job.dataset.damaged is Damaged.error:
                        raise UserError(f"shard {job.url}: {reason}; leave it out with dataset.damaged=skip")
                    nothing = _Rows()
                    nothing.scan.problem = reason
                    _write_scan(job, nothing)
                    bar.update()
    whole = [scans[job.number] or _found(job) for job in jobs]
    if lost := [job.url for job, scan in zip(jobs, whole, strict=True) if scan is None]:
        raise StageError(f"the scan of {lost[0]} is damaged just after it was written: is the disk failing?")
    return [scan for scan in whole if scan is not None]


def _scan_in_pool(jobs: list[Job], workers: int, bar: tqdm) -> list[Job]:
    """Scan in processes; the jobs that were lost because a process died."""
    pool = new_pool(workers)
    try:
        flying: dict[Future, Job] = {}
        try:
            flying = {pool.submit(_scan, job): job for job in jobs}
            for done in as_completed(flying):
                done.result()
                bar.update()
        except BrokenProcessPool:
            return [job for job in jobs if not job.summary_path.exists()]
        return []
    finally:
        pool.shutdown(cancel_futures=True)


def examples_of(job: Job, wanted: dict[int, str]) -> list[tuple[int, Example]]:
    def once() -> list[tuple[int, Example]]:
        found: list[tuple[int, Example]] = []
        with open_source(job.url, pipes=job.dataset.pipes) as file:
            for number, sample in samples(file, lambda number, extension: number in wanted and is_wanted(extension)):
                if number in wanted:
                    found.append((number, understand(sample, job.dataset.caption_key)))
                if len(found) == len(wanted):
                    return found
        raise SourceError("it has changed since it was scanned")

    try:
        return with_retries(once, 0 if is_local(job.url) else job.dataset.retries)
    except (SourceError, Refused) as error:
        raise UserError(f"shard {job.url}, which holds images to validate on: {error}") from None


def first_change(url: str, dataset: WebDatasetConfig, rows: np.ndarray) -> str | None:
    """Read a shard to its end: what has changed first since the scan that found `rows`, in a line; None if nothing."""
    number = -1
    try:
        with open_source(url, pipes=dataset.pipes) as file:
            for number, sample in samples(file, lambda _, extension: is_wanted(extension)):
                if number >= len(rows) or checksum(sample) != rows["crc32"][number]:
                    return f"{url}: sample {sample.key} has changed since it was scanned"
        return None if number + 1 == len(rows) else f"{url}: it has fewer samples than when it was scanned"
    except (SourceError, UserError) as error:
        return f"{url}: {error}"
