"""Several runs' captions side by side in one page, each compared to the first."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from velm_cli import configs
from velm_cli.data.images import ImageRefused
from velm_cli.data.opening import open_store
from velm_cli.data.store import first_image, store_path
from velm_cli.errors import UserError
from velm_cli.metrics.comparison import Difference, differences, verdict
from velm_cli.metrics.scores import ImageId
from velm_cli.metrics.significance import Summands
from velm_cli.report.evaluations import Evaluated
from velm_cli.report.page import Picture, thumbnail, write_page


def compare_page(evaluations: Mapping[Path, Evaluated], names: Sequence[str], path: Path) -> list[str]:
    """Write the page of finished run folders, with the images of their data set where its store is to be found.

    Returns what is said of them: how each one differs from the first, and what could not be tested.
    """
    runs = [dataclasses.replace(run, name=name) for run, name in zip(evaluations.values(), names, strict=True)]
    compared, said = [runs[0]], []
    for run in runs[1:]:
        found, untested = _differences(run, runs[0])
        compared.append(dataclasses.replace(run, differences=found))
        said += [*([_verdict(run, runs[0], found)] if found else []), *untested]
    # Where several examples share an image, they name it; of captions the example is the image.
    image_of = {}
    for run in runs:
        for example in run.per_image:
            image = run.examples.get(example, {}).get("image")
            image_of[example] = image if isinstance(image, (int, str)) else example
    title = f"{len(runs)} runs" if len(runs) > 2 else " against ".join(run.name for run in reversed(runs))
    pictures = _pictures(next(iter(evaluations)), set(image_of.values()))
    shown = {example: pictures[image] for example, image in image_of.items() if image in pictures}
    write_page(path, compared, shown, title=title, notes=said)
    return said


def _verdict(ours: Evaluated, theirs: Evaluated, found: Mapping[str, Difference]) -> str:
    return verdict(ours.name, theirs.name, found, columns=ours.columns, primary=ours.primary)


def _differences(ours: Evaluated, theirs: Evaluated) -> tuple[dict[str, Difference], list[str]]:
    """Of the scores on the images of both, if these are all; and notes on the scores that are not tested."""
    if ours.per_image.keys() != theirs.per_image.keys():
        shared = len(ours.per_image.keys() & theirs.per_image.keys())
        what = "images" if ours.task == "caption" else "examples"
        counts = f"{len(ours.per_image):,} and {len(theirs.per_image):,} {what}, {shared:,} of them in both"
        return {}, [f"{ours.name} and {theirs.name} are not tested against each other: they have {counts}"]
    place = {image: number for number, image in enumerate(ours.per_image)}
    order = [place[image] for image in theirs.per_image]
    aligned = {name: Summands(one.rows_IS[order], one.score) for name, one in ours.summands.items()}
    found = differences(aligned, theirs.summands, columns=ours.columns)
    both = [name for name, value in ours.scores.items() if value is not None and theirs.scores.get(name) is not None]
    untested = ", ".join(column.label for column in ours.columns if column.key in both and column.key not in found)
    return found, [f"no test of {untested}: an older velm scored one of them; evaluate again"] if untested else []


def _pictures(folder: Path, wanted: set[ImageId]) -> Mapping[ImageId, Picture]:
    try:
        dataset = configs.load_dataset(folder)
        store = open_store(store_path(dataset), dataset)
    except UserError as error:
        print(f"note: no images in the page: {error}")
        return {}
    if not store.has_images:
        return {}
    places = {store.example_id(number): number for number in range(len(store))}
    shown = {example: first_image(store, places[example]) for example in wanted & places.keys()}
    of_image = {}
    for image in set(shown.values()) - {-1}:
        with contextlib.suppress(ImageRefused, UserError):  # its captions are shown without it
            of_image[image] = Picture(thumbnail(store.image_bytes(image)))
    return {example: of_image[image] for example, image in shown.items() if image in of_image}
