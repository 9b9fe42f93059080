"""Folders that are parts: train/, val/ and test/, at the top or further down."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from velm_cli.data.readers.splits import part_of_word


@dataclass
class Level:
    """At which depth of the paths (0 = the first name) folders are parts; `depth` None: nowhere.

    `hint`: words on a folder that looks like a part and was not taken for one.
    """

    depth: int | None = None
    folders: dict[str, str] = field(default_factory=dict)  # path of a folder -> its part
    hint: str = ""

    @property
    def found(self) -> bool:
        return self.depth is not None

    @property
    def names(self) -> str:
        return ", ".join(sorted(self.folders))

    def part_of(self, image: str) -> str | None:
        if self.depth is None:
            return None
        return self.folders.get("/".join(image.split("/")[: self.depth + 1]))


def find_level(images: Iterable[str]) -> Level:
    """The level at which the folders of `images` (paths with slashes) are parts.

    It is the first with a folder that is called so, looked for from the top as long as one folder holds all images;
    or else the level at which every image has such a folder (cats/train/, dogs/train/).
    """
    homes = {image.rpartition("/")[0] for image in images}
    paths = [home.split("/") if home else [] for home in homes]
    depth = 0
    while paths and all(len(path) > depth for path in paths):
        names = {path[depth] for path in paths}
        if any(part_of_word(name) for name in names):
            return _level(paths, depth)
        if len(names) > 1:
            break
        depth += 1
    if any(part_of_word(path[depth]) for path in paths if len(path) > depth):
        return _level(paths, depth)  # beside images that lie in no folder
    for depth in range(1, min(map(len, paths), default=0)):
        if all(part_of_word(path[depth]) for path in paths):
            return _level(paths, depth)
    strange = next(
        ("/".join(path[: at + 1]) for path in sorted(paths) for at, name in enumerate(path) if part_of_word(name)), None
    )
    hint = f" ({strange}/ was not taken for a part: not all images lie in such folders)" if strange else ""
    return Level(hint=hint)


def _level(paths: list[list[str]], depth: int) -> Level:
    folders = {"/".join(path[: depth + 1]): path[depth] for path in paths if len(path) > depth}
    return Level(depth, {folder: part for folder, name in folders.items() if (part := part_of_word(name))})
