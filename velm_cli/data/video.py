"""One frame of a video file, as the store keeps images. PyAV decodes (`pip install "velm-cli[video]"`), nothing else.

A video is looked at twice. Its packets say how many frames it has and when each is shown, without decoding any; then
decoding begins at the key frame before the wanted one. This runs where images are checked, in a process that may take
so much time and memory and whose death costs one frame: decoders of video have a history of crashes on hostile files.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from velm_cli.data.images import ImageRefused, NormalisedImage, normalise_image

OF_VIDEO = re.compile(r"#frame=(\d+)of(\d+)$")  # of the path of a frame: its number, and how many are taken
NEEDED = 'it needs PyAV: pip install "velm-cli[video]"'
MOST_FRAMES = 10**6  # of a video, whose packets are counted
# FFmpeg's names of what is read. Its others include playlists and lists, which make it open other files.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,ogg,gif,asf,flv"


def taken(frames: int, count: int) -> list[int]:
    """Which `count` of so many frames are taken, in their order."""
    return [(2 * k + 1) * frames // (2 * count) for k in range(count)]


def can_decode() -> bool:
    """Whether PyAV is installed."""
    try:
        import av  # noqa: F401
    except ImportError:
        return False
    return True


def normalise_frame(
    path: Path, *, image_size: int, quality: int, max_pixels: int, max_seconds: float, min_frames: int
) -> NormalisedImage:
    """As `normalise_image`, of a path such as `clip.mp4#frame=3of8` too. Raises ImageRefused as it does."""
    limits = {"image_size": image_size, "quality": quality, "max_pixels": max_pixels}
    named = OF_VIDEO.search(str(path))
    if named is None:
        return normalise_image(path, **limits)
    file = Path(str(path)[: named.start()])
    if not can_decode():
        raise ImageRefused(f"unsupported: a video: {NEEDED}")
    try:
        frame = _frame(file, int(named[1]), int(named[2]), max_pixels, max_seconds, min_frames)
    except ImageRefused:
        raise
    except MemoryError:
        raise ImageRefused("too large: decoding it needs more than preprocess.memory_per_image") from None
    except Exception as error:  # FFmpeg's errors are of many types
        raise ImageRefused(f"undecodable: {' '.join(str(error).split())[:200] or type(error).__name__}") from None
    return normalise_image(frame, **limits)


def _frame(file: Path, number: int, count: int, max_pixels: int, max_seconds: float, min_frames: int) -> Any:
    """Frame `number` of the `count` that are taken, as Pillow's image."""
    status = file.stat()
    if not status.st_size:
        raise ImageRefused("empty: the file has 0 bytes")
    times = _times(file, status.st_mtime_ns, max_pixels, max_seconds)
    if len(times) < min_frames:
        raise ImageRefused(f"too short: {len(times)} frames, dataset.min_frames={min_frames}")
    wanted = times[taken(len(times), count)[number]]
    with _opened(file) as container:
        stream = container.streams.video[0]
        container.seek(wanted, stream=stream, backward=True)
        last = None
        for frame in container.decode(stream):
            last = frame if frame.pts is not None and (last is None or frame.pts <= wanted) else last
            if frame.pts is not None and frame.pts >= wanted:
                break
        if last is None:
            raise ImageRefused(f"truncated: frame {number + 1} of {count} cannot be decoded")
        return _upright(last)


def _upright(frame: Any) -> Any:
    """Pillow's image, turned as phones note it."""
    from PIL.Image import Transpose

    image = frame.to_image()
    turn = {90: Transpose.ROTATE_90, 180: Transpose.ROTATE_180, 270: Transpose.ROTATE_270}
    quarter = round(getattr(frame, "rotation", 0) or 0) % 360
    return image.transpose(turn[quarter]) if quarter in turn else image


@lru_cache(maxsize=8)
def _times(file: Path, _changed: int, max_pixels: int, max_seconds: float) -> list[int]:
    """When each frame is shown, rising, in the stream's own unit. ImageRefused beyond the limits."""
    times: set[int] = set()
    with _opened(file) as container:
        if not container.streams.video:
            raise ImageRefused("not a video: it has no pictures")
        stream = container.streams.video[0]
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > max_pixels:
            raise ImageRefused(f"too many pixels: {width}x{height}, dataset.max_pixels={max_pixels}")
        for packet in container.demux(stream):
            if packet.pts is not None and packet.size:
                times.add(packet.pts)
            if len(times) > MOST_FRAMES:
                raise ImageRefused(f"too long: over {MOST_FRAMES:,} frames")
        if times and (max(times) - min(times)) * float(stream.time_base) > max_seconds:
            raise ImageRefused(f"too long: dataset.max_seconds={max_seconds:g}")
    return sorted(times)


def _opened(file: Path) -> Any:
    """The file, which FFmpeg may read as one of FORMATS and from which it may open nothing else."""
    import av

    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
    return av.open(str(file.resolve()), options=options, metadata_errors="ignore")
