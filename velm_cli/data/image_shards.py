"""The image shards of a store: which there are, making them, and checking all of them before a manifest is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from velm_cli.data.image_table import ImageTable
from velm_cli.data.images import ImageRefused, Normalise, NormalisedImage, normalise_image, normalise_many
from velm_cli.data.parts import Part, parts_of
from velm_cli.data.processes import Limits, available_cores
from velm_cli.data.shards import check_shard, shard_path, write_shard
from velm_cli.data.table_images import normalise_any
from velm_cli.data.video import normalise_frame
from velm_cli.errors import StageError, UserError
from velm_cli.progress import progress_bar
from velm_cli.schema import ChatConfig, DatasetConfig, FramesConfig, PreprocessConfig

Summary = dict[str, Any]  # of a shard
Say = Callable[[str], object]  # tells the user


class ImageShards:
    """The image shards of one plan in the folder of a store, there or not yet."""

    def __init__(
        self,
        images: ImageTable,
        dataset: DatasetConfig,
        preprocess: PreprocessConfig,
        folder: Path,
        plan: dict[str, Any],
        progress: bool,
    ) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self._images, self._dataset, self._preprocess, self._progress = images, dataset, preprocess, progress
        self._plan = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
        size = preprocess.shard_images
        self._ranges = [range(start, min(start + size, len(images))) for start in range(0, len(images), size)]

    def __len__(self) -> int:
        return len(self._ranges)

    def missing(self, part: Part | None = None) -> list[int]:
        """Shards that are not there, of all or of a part."""
        shards = (shard for shard in range(len(self)) if part is None or part.has(shard))
        return [shard for shard in shards if not shard_path(self.folder, shard).exists()]

    def make(self, shards: list[int]) -> None:
        """Write these shards, in place of any of the same number."""
        dataset = self._dataset
        form: dict[str, Any] = {
            "image_size": dataset.image_size,
            "quality": dataset.image_quality,
            "max_pixels": dataset.max_pixels,
        }
        normalise: Normalise = partial(normalise_any if isinstance(dataset, ChatConfig) else normalise_image, **form)
        if isinstance(dataset, FramesConfig):
            seconds, frames = dataset.max_seconds, dataset.min_frames
            normalise = partial(normalise_frame, **form, max_seconds=seconds, min_frames=frames)
        limits = Limits(self._preprocess.seconds_per_image, round(1e9 * self._preprocess.memory_per_image))
        paths = (Path(path) for shard in shards for path in self._images.paths(self._ranges[shard]))
        total = sum(len(self._ranges[shard]) for shard in shards)
        with (
            closing(normalise_many(paths, normalise, self._preprocess.workers, limits)) as results,
            self._bar(total, "images", "image") as bar,
        ):
            for shard in shards:
                numbers = self._ranges[shard]
                samples = zip(numbers, self._images.about(numbers), islice(results, len(numbers)), strict=True)
                write_shard(self.folder, shard, _watched(samples, bar), self._plan)

    def check(self, shards: list[int]) -> tuple[dict[int, Summary], dict[int, str]]:
        """Read these shards wholly: summaries of the good ones, what is wrong with the others."""
        good: dict[int, Summary] = {}
        damaged: dict[int, str] = {}

        def check(shard: int) -> Summary | str:
            try:
                return check_shard(self.folder, shard, self._ranges[shard], self._plan)
            except ValueError as error:
                return str(error)

        with (
            ThreadPoolExecutor(self._preprocess.workers or available_cores()) as pool,
            self._bar(len(shards), "checked", "shard") as bar,
        ):
            for shard, found in zip(shards, pool.map(check, shards), strict=True):
                if isinstance(found, str):
                    damaged[shard] = found
                else:
                    good[shard] = found
                bar.update()
        return good, damaged

    def _bar(self, total: int, what: str, unit: str) -> tqdm:
        return progress_bar(what=what, shown=self._progress, total=total, unit=unit)


def completed(shards: ImageShards, path: Path, command: str, say: Say) -> list[Summary]:
    """Make what is missing, check all, make again what is damaged."""
    shards.make(shards.missing())
    good, damaged = shards.check(list(range(len(shards))))
    if damaged:
        for reason in damaged.values():
            say(f"made again: {reason}")
        shards.make(list(damaged))
        mended, damaged = shards.check(list(damaged))
        if damaged:
            raise StageError(
                f"{next(iter(damaged.values()))}, just after it was written: is the disk of {path} failing?"
            )
        good |= mended
    return [good[shard] for shard in range(len(shards))]


def merged(shards: ImageShards, path: Path, command: str, say: Say) -> list[Summary]:
    """Check all; the damaged ones are removed, so that their part makes them again."""
    if missing := shards.missing():
        what = f"{len(missing)} of {len(shards)} shards are missing, first {shard_path(path, missing[0]).name}"
        raise UserError(f"the store {path} is not finished ({what}); run: {_cure(path, missing, command)}")
    good, damaged = shards.check(list(range(len(shards))))
    if damaged:
        for shard in damaged:
            shard_path(shards.folder, shard).unlink()
        what = f"{len(damaged)} of {len(shards)} shards, now removed: {next(iter(damaged.values()))}"
        raise UserError(f"the store {path} is damaged ({what}); run: {_cure(path, list(damaged), command)}")
    return [good[shard] for shard in range(len(shards))]


def _cure(path: Path, shards: list[int], command: str) -> str:
    """The command line that makes these shards."""
    parts = parts_of(path, shards)
    if not parts:
        return command
    also = f" (and parts {', '.join(map(str, parts[1:]))})" if parts[1:] else ""
    return f"{command} preprocess.part={parts[0]}{also}, or without preprocess.part to make all here"


def look_up(
    images: ImageTable, shards: list[Summary], refused: list[dict[str, Any]]
) -> tuple[list[int], list[dict[str, Any]]]:
    """The images that were refused, and a summary a shard for the manifest. Appends to `refused`."""
    summaries, without = [], []
    for shard, summary in enumerate(shards):
        for number, reason in summary["refused"]:
            image = images[number]
            about: dict[str, Any] = {"image_id": image.id, "file": str(image.path), "reason": reason}
            if not images.one_each:
                about["examples"] = images.examples_of(number)  # which are left out with it
            refused.append(about)
            without.append(number)
        kept_of_it = {key: summary[key] for key in ("rows", "bytes", "sha256", "index")}
        summaries.append({"file": shard_path(Path(), shard).name, **kept_of_it})
    return without, summaries


def _watched(
    samples: Iterable[tuple[int, dict[str, Any], NormalisedImage | ImageRefused]], bar: tqdm
) -> Iterator[tuple[int, dict[str, Any], NormalisedImage | ImageRefused]]:
    for sample in samples:
        yield sample
        bar.update()
