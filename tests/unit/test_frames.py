"""dataset=frames: folders of frames and video files, of each of which so many frames become an example's images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from velm_cli import schema
from velm_cli.data.images import ImageRefused
from velm_cli.data.making import build_store
from velm_cli.data.readers import read
from velm_cli.data.video import normalise_frame, taken
from velm_cli.errors import UserError
from velm_cli.schema import PreprocessConfig

FORM = {"image_size": 32, "quality": 95, "max_pixels": 10**6, "max_seconds": 60.0, "min_frames": 2}


def level(number: int) -> int:
    return 20 + 9 * number


def folder(path: Path, frames: int, name: str = "frame{}.png") -> Path:
    path.mkdir(parents=True)
    for number in range(frames):
        Image.new("RGB", (32, 32), (level(number),) * 3).save(path / name.format(number))
    return path


def video(path: Path, frames: int, *, rate: int = 10, side: int = 64) -> Path:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            pixels = np.full((side, side, 3), level(number), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def table(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def frames(file: str, **options) -> schema.FramesConfig:
    return schema.FramesConfig(file=file, **options)


def shades(config: schema.FramesConfig, store: Path) -> dict[int | str, list[int]]:
    """Of each stored example the number of the frame that each of its images is."""
    made = build_store(read(config), config, PreprocessConfig(workers=1), store, say=lambda _: None, progress=False)
    from io import BytesIO

    found = {}
    for example in range(len(made)):
        images, shown = made.images_of(np.array([example]))
        grey = [np.asarray(Image.open(BytesIO(made.image_bytes(int(images[row]))))).mean() for row in shown[0]]
        found[made.example_id(example)] = [round((each - 20) / 9) for each in grey]
    return found


@pytest.mark.parametrize(
    ("of", "count", "expected"),
    [(8, 8, list(range(8))), (8, 1, [4]), (16, 4, [2, 6, 10, 14]), (3, 6, [0, 0, 1, 1, 2, 2]), (100, 3, [16, 50, 83])],
)
def test_frames_are_the_middles_of_equal_parts(of, count, expected):
    assert taken(of, count) == expected


def test_folders_of_frames_with_captions(tmp_path):
    folder(tmp_path / "a", 12)  # frame10 is after frame9
    folder(tmp_path / "b", 3)
    file = table(
        tmp_path / "clips.jsonl",
        {"frames": "a", "captions": ["up", "higher"], "split": "train"},
        {"frames": "b", "caption": "few", "split": "val"},
    )
    config = frames(file, frames=4)
    corpus = read(config)
    assert any("1 clips have fewer than dataset.frames=4" in note for note in corpus.notes)
    assert [example.targets for example in corpus.examples] == [("up", "higher"), ("few",)]
    assert shades(config, tmp_path / "store") == {"a": [1, 4, 7, 10], "b": [0, 1, 1, 2]}


def test_questions_about_clips_and_lists_of_frames(tmp_path):
    folder(tmp_path / "a", 6)
    listed = [f"a/frame{number}.png" for number in (5, 3, 1)]
    file = table(
        tmp_path / "clips.jsonl",
        {"clip": "a", "question": "which way", "answers": ["up"], "id": 1, "split": "train"},
        {"clip": "a", "question": "is it dark", "answers": ["no"], "id": 2, "split": "train"},
        {"clip": listed, "question": "and now", "answers": ["down"], "id": 3, "split": "train"},
    )
    config = frames(file, frames=3)
    assert [example.source for example in read(config).examples] == ["which way", "is it dark", "and now"]
    assert shades(config, tmp_path / "store") == {1: [1, 3, 5], 2: [1, 3, 5], 3: [5, 3, 1]}


def test_clips_that_are_of_no_use_are_listed_and_the_others_stay(tmp_path):
    folder(tmp_path / "good", 4)
    folder(tmp_path / "short", 1)
    (tmp_path / "empty").mkdir()
    (folder(tmp_path / "damaged", 4) / "frame2.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    (tmp_path / "text.mp4").write_text("not a video")
    rows = [
        {"video": name, "caption": "x", "split": "train"} for name in ("good", "short", "empty", "damaged", "text.mp4")
    ]
    config = frames(table(tmp_path / "clips.jsonl", *rows), frames=4)
    assert shades(config, tmp_path / "store") == {"good": [0, 1, 2, 3]}
    rejects = [json.loads(line) for line in (tmp_path / "store" / "rejects.jsonl").read_text().splitlines()]
    reasons = {str(each["image_id"]).split("#")[0]: each["reason"] for each in rejects}
    assert reasons["short"] == "too short: 1 frames, dataset.min_frames=2"
    assert reasons["empty"] == "too short: 0 frames, dataset.min_frames=2"
    assert reasons["damaged"].startswith(("damaged", "undecodable", "truncated")) and "text.mp4" in reasons


def test_absent_clips_are_an_error_or_left_out(tmp_path):
    folder(tmp_path / "a", 3)
    file = table(
        tmp_path / "clips.jsonl",
        {"video": "a", "caption": "x", "split": "train"},
        {"video": "gone.mp4", "caption": "y", "split": "train"},
    )
    with pytest.raises(UserError, match=r"1 of 2 examples have an image that is missing, first .*gone\.mp4"):
        read(frames(file))
    assert [example.id for example in read(frames(file, missing=schema.Missing.skip)).examples] == ["a"]


def test_frames_of_a_video(tmp_path):
    video(tmp_path / "clips" / "a.mp4", 20)
    video(tmp_path / "clips" / "b.avi", 9)
    rows = [{"video": f"clips/{name}", "caption": "x", "split": "train"} for name in ("a.mp4", "b.avi")]
    config = frames(table(tmp_path / "clips.jsonl", *rows), frames=5)
    found = shades(config, tmp_path / "store")
    assert found == {"clips/a.mp4": taken(20, 5), "clips/b.avi": taken(9, 5)}


def test_hostile_videos_are_refused_with_a_reason(tmp_path):
    good = video(tmp_path / "a.mp4", 20)

    def reason(path: Path, **other) -> str:
        with pytest.raises(ImageRefused) as refused:
            normalise_frame(Path(f"{path}#frame=0of4"), **(FORM | other))
        return str(refused.value)

    assert reason(good, max_seconds=1.0) == "too long: dataset.max_seconds=1"
    assert reason(good, max_pixels=1000) == "too many pixels: 64x64, dataset.max_pixels=1000"
    assert reason(video(tmp_path / "one.mp4", 1)) == "too short: 1 frames, dataset.min_frames=2"
    (tmp_path / "empty.mp4").write_bytes(b"")
    assert reason(tmp_path / "empty.mp4").startswith("empty")
    content = good.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 3])
    assert reason(tmp_path / "cut.mp4")
    for text in (f"ffconcat version 1.0\nfile '{good}'\n", f"#EXTM3U\n#EXTINF:1,\n{good}\n#EXT-X-ENDLIST\n"):
        (tmp_path / "list.mp4").write_text(text)
        assert reason(tmp_path / "list.mp4").startswith("undecodable"), text


def test_without_pyav_a_video_is_refused_in_words(tmp_path, monkeypatch):
    monkeypatch.setattr("velm_cli.data.video.can_decode", lambda: False)
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(ImageRefused, match=r'pip install "velm-cli\[video\]"'):
        normalise_frame(tmp_path / "a.mp4#frame=0of4", **FORM)
