"""Clips: folders of frames and video files, of each of which so many frames are taken, evenly spread.

Which frames these are depends on the clip alone: frame (2k + 1) F / 2n of F, the middles of n equal parts, for k of n.
A clip with fewer frames than that shows some of them again. Frames of a video are named, not decoded: a path such as
`clip.mp4#frame=3of8` is an image that `data/video.py` decodes where images are checked, in a process of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from velm_cli import schema
from velm_cli.data.examples import ImageRef
from velm_cli.data.readers.assemble import Listing
from velm_cli.data.readers.cells import IMAGE_EXTENSIONS
from velm_cli.data.video import OF_VIDEO, taken
from velm_cli.lines import Refused


class ClipListing(Listing):
    """Which files exist, frames of video files among them."""

    def __contains__(self, path: Path) -> bool:
        return super().__contains__(Path(OF_VIDEO.sub("", str(path))))


class Clips:
    """The frames of the clips that a table names."""

    def __init__(self, config: schema.FramesConfig, refused: Refused) -> None:
        self._count, self._least, self._refused = config.frames, config.min_frames, refused
        self.short = 0  # clips with fewer frames than are taken

    def locate(self, clip: str, root: Path | None, file: Path) -> Path:
        """The folder or video; where it should be, if it is not there."""
        candidates = [folder / clip for folder in (root, file.parent) if folder]
        return next((path for path in candidates if path.exists()), candidates[0])

    def frames(self, name: str, path: Path) -> tuple[ImageRef, ...] | None:
        """The frames taken of the clip at `path`; None, with a reason among the refused, where it is of no use."""
        if not path.is_dir():
            count = self._count
            return tuple(ImageRef(f"{name}#{k}", Path(f"{path}#frame={k}of{count}")) for k in range(count))
        try:
            with os.scandir(path) as found:
                names = [item.name for item in found if item.is_file() and not item.name.startswith(".")]
        except OSError as error:
            self._refused.append((name, f"unreadable: {error.strerror}"))
            return None
        images = [one for one in names if os.path.splitext(one)[1].lower() in IMAGE_EXTENSIONS]
        return self.of_list(name, [path / one for one in sorted(images, key=_in_order)])

    def of_list(self, name: str, paths: Sequence[Path]) -> tuple[ImageRef, ...] | None:
        """The frames taken of these."""
        if len(paths) < self._least:
            self._refused.append((name, f"too short: {len(paths)} frames, dataset.min_frames={self._least}"))
            return None
        self.short += len(paths) < self._count
        return tuple(ImageRef(f"{name}#{k}", paths[at]) for k, at in enumerate(taken(len(paths), self._count)))

    def notes(self) -> list[str]:
        """A line on the clips whose frames are shown more than once."""
        if not self.short:
            return []
        return [f"{self.short:,} clips have fewer than dataset.frames={self._count} frames: some are shown again"]


def _in_order(name: str) -> list[tuple[int, int | str]]:
    """frame2 before frame10."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name) if part]
