"""Making a store: the folder it grows in, its one writer or its parts', and the swap when it is complete."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from velm_cli.data.array_store import ArrayStore
from velm_cli.data.building import ImageShards, Say, build, differences, make_plan
from velm_cli.data.concepts import MAX_CONCEPTS
from velm_cli.data.examples import Corpus
from velm_cli.data.image_table import ImageTable
from velm_cli.data.manifest import preprocess_command, read_manifest
from velm_cli.data.parts import Part, note_parts, sole_writer, was_in_parts
from velm_cli.data.store_folder import (
    LOCKS,
    empty,
    place_of_fresh,
    read_plan,
    real_folder,
    refuse_foreign,
    refuse_to_replace,
    replace,
    undo_cut_off_swap,
    write_plan,
)
from velm_cli.errors import UserError
from velm_cli.files import refuse_links, remove_temporary
from velm_cli.schema import (
    DatasetConfig,
    PreprocessConfig,
)


def build_store(
    corpus: Corpus,
    dataset: DatasetConfig,
    preprocess: PreprocessConfig,
    path: Path,
    *,
    fresh: bool = False,
    say: Say = print,
    progress: bool = True,
) -> ArrayStore:
    """The store of `corpus` at `path`: opened if it is there, continued if it was begun, else built.

    `fresh` builds beside it and puts the new one in its place when it is complete. UserError if `path`
    is taken by another store or by something else.
    """
    table = ImageTable(corpus.examples) if dataset.images else None
    plan = _plan(corpus, table, dataset, preprocess)
    named, path = path, real_folder(path)
    if is_complete(path, plan, fresh):
        return ArrayStore.open(named, dataset)
    command = preprocess_command(dataset, preprocess) + " fresh=true" * fresh
    with _open_to_write(path, plan, fresh, None, command) as place:
        remove_temporary(place)
        build(corpus, table, dataset, preprocess, place, plan, command=command, say=say, progress=progress)
    if fresh:
        replace(path)
    return ArrayStore.open(named, dataset)


def build_part(
    corpus: Corpus,
    dataset: DatasetConfig,
    preprocess: PreprocessConfig,
    path: Path,
    part: Part,
    *,
    fresh: bool = False,
    progress: bool = True,
) -> tuple[int, int]:
    """Make the image shards of one part of the store at `path`; how many that were now, and how many the part has.

    Any number of parts may be made at once; `build_store` completes what they have left. A part of a complete
    store has nothing to do. Raises UserError as `build_store` does, and where the store was begun from something else.
    """
    table = ImageTable(corpus.examples) if dataset.images else None
    plan = _plan(corpus, table, dataset, preprocess)
    path = real_folder(path)
    if is_complete(path, plan, fresh):
        return 0, 0
    assert table is not None, "a part is a share of the images (see validate)"
    command = preprocess_command(dataset, preprocess) + " fresh=true" * fresh
    with _open_to_write(path, plan, fresh, part, command) as place:
        shards = ImageShards(table, dataset, preprocess, place / "images", plan, progress)
        missing = shards.missing(part)
        shards.make(missing)
        return len(missing), sum(part.has(shard) for shard in range(len(shards)))


def _plan(
    corpus: Corpus, table: ImageTable | None, dataset: DatasetConfig, preprocess: PreprocessConfig
) -> dict[str, Any]:
    if not corpus.examples:
        raise UserError(f"dataset.kind={dataset.kind}: no examples found in {dataset.root}")
    if not 0 <= preprocess.num_concepts <= MAX_CONCEPTS:
        raise UserError(f"preprocess.num_concepts={preprocess.num_concepts}: must lie in 0 to {MAX_CONCEPTS}")
    if preprocess.shard_images < 1:
        raise UserError(f"preprocess.shard_images={preprocess.shard_images}: must be at least 1")
    for option in ("seconds_per_image", "memory_per_image"):
        if not 0 < (value := getattr(preprocess, option)) <= 1e6:  # nor NaN
            raise UserError(f"preprocess.{option}={value}: must lie above 0, and be at most 1000000")
    return make_plan(corpus, table, dataset, preprocess)


def is_complete(path: Path, plan: dict[str, Any], fresh: bool) -> bool:
    """Whether the store of `plan` is at `path` and wanted; UserError if another one is, or something else."""
    undo_cut_off_swap(path)
    refuse_foreign(path)
    if fresh:
        refuse_to_replace(path)
    if fresh or read_manifest(path) is None:
        return False
    if differs := differences(read_plan(path) or {}, plan):
        raise UserError(
            f"the store {path} was made from something else: {differs}; "
            "replace it with fresh=true or keep both with dataset.store=..."
        )
    return True


@contextmanager
def _open_to_write(path: Path, plan: dict[str, Any], fresh: bool, part: Part | None, command: str) -> Iterator[Path]:
    """The folder to build the store `path` in, locked, with its plan in it. What was begun from another plan is
    removed, unless parts of an array job have begun it: their hours of work are not to end by a forgotten option.
    """
    place = place_of_fresh(path) if fresh else path
    try:
        place.mkdir(parents=True, exist_ok=True)
        with sole_writer(place, part):
            refuse_links(place)
            found = read_plan(place)
            if found is not None and found != plan and (part is not None or was_in_parts(place)):
                raise UserError(
                    f"the unfinished store {place} was begun from something else: {differences(found, plan)}; "
                    "give the options that its parts had, or delete the folder"
                )
            if found is not None and found != plan:
                empty(place, keep=LOCKS)
            if found != plan:  # also when other parts write the same just now
                write_plan(place, plan)
            if part is not None:
                note_parts(place, part)
            yield place
    except OSError as error:
        raise UserError(
            f"cannot build the store {place}: {error.strerror or error}; what is complete stays, go on with: {command}"
        ) from error
