"""Several runs' captions side by side in one page, each compared to the first."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from velm_cli import compose
from velm_cli.data.store import Store, store_path
from velm_cli.errors import UserError
from velm_cli.metrics.scores import ImageId
from velm_cli.metrics.significance import mean_of, paired_permutation
from velm_cli.report.evaluations import Evaluated
from velm_cli.report.page import Picture, thumbnail, write_page
from velm_cli.report.runs import AVERAGES


def compare_page(evaluations: Mapping[Path, Evaluated], path: Path) -> None:
    """Write the page of finished run folders, with the images of their data set where its store is to be found."""
    runs = list(evaluations.values())
    compared = [runs[0], *(dataclasses.replace(run, p_values=_p_values(runs[0], run)) for run in runs[1:])]
    wanted = {image for run in runs for image in run.per_image}
    write_page(
        path, compared, _pictures(next(iter(evaluations)), wanted), title=" against ".join(run.name for run in runs[:3])
    )


def _p_values(first: Evaluated, other: Evaluated) -> dict[str, float]:
    """Of the paired test on the images of both, for the scores that are means of the images' own."""
    images = [image for image in first.per_image if image in other.per_image]
    found = {}
    for name in AVERAGES:
        if images and first.scores.get(name) is not None and other.scores.get(name) is not None:
            ours, theirs = (mean_of([run.per_image[image][name] for image in images]) for run in (first, other))
            found[name] = paired_permutation(ours, theirs)
    return found


def _pictures(folder: Path, wanted: set[ImageId]) -> Mapping[ImageId, Picture]:
    try:
        dataset = compose.load_dataset(folder)
        store = Store.open(store_path(dataset), dataset)
    except UserError as error:
        print(f"note: no images in the page: {error}")
        return {}
    if not store.has_images:
        return {}
    places = {store.image_id(number): number for number in range(len(store))}
    pictures = {}
    for image in wanted & places.keys():
        with contextlib.suppress(OSError, UserError):  # its captions are shown without it
            pictures[image] = Picture(thumbnail(store.image_bytes(places[image])))
    return pictures
