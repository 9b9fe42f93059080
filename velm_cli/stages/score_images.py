"""The images of `velm score`: which file of a folder is which image, and their small pictures for the page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from velm_cli.data.images import ImageRefused
from velm_cli.errors import UserError
from velm_cli.metrics.matching import IMAGE_SUFFIX, listing, same_images
from velm_cli.metrics.scores import ImageId
from velm_cli.report.page import Picture, thumbnail


def image_files(
    folder: str, images: Sequence[ImageId], names: Mapping[ImageId, str]
) -> tuple[dict[ImageId, Path], list[str]]:
    """The files of those images that lie in `folder` or below, and what is to be said about the others.

    An image may be there under its name, its id or its COCO name. UserError when `folder` is none.
    """
    if not Path(folder).is_dir():
        raise UserError(f"images={folder} is not a folder")
    # The bare name: what a file from a stranger calls an image must not lead out of the folder.
    direct = {image: Path(folder, Path(names[image]).name) for image in images if image in names}
    found = {image: path for image, path in direct.items() if path.is_file()}
    left = [image for image in images if image not in found]
    if left:
        inside = {
            os.path.relpath(os.path.join(place, name), folder)
            for place, _, files in os.walk(folder)
            for name in files
            if IMAGE_SUFFIX.search(name)
        }
        pairs, _ = same_images(left, inside, names, {})
        found |= {match: Path(folder, str(name)) for name, match in pairs.items()}
        found |= {image: Path(folder, str(image)) for image in left if image in inside}
    print(f"images: {len(found):,} of {len(images):,} in {folder}")
    missing = [image for image in images if image not in found]
    return found, [f"no file in {folder} of {listing(missing)}"] if missing else []


def small_pictures(files: Mapping[ImageId, Path]) -> dict[ImageId, Picture]:
    """What the page shows; a line about those that cannot be read."""
    pictures: dict[ImageId, Picture] = {}
    unread: list[ImageId] = []
    for image, path in files.items():
        try:
            pictures[image] = Picture(thumbnail(path))
        except ImageRefused as refusal:  # its captions are shown without it
            unread.append(f"{image}: {str(refusal).replace('dataset.max_pixels=', 'at most ')}")
    if unread:
        print(f"note: the page has no picture of {listing(unread)}")
    return pictures
