"""Moving scenes: what moves is said right, one frame tells nothing of it, and the files are as dataset=frames reads them."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter

import numpy as np
import pytest

from velm_cli import schema
from velm_cli.data.readers import read
from velm_cli.data.shapes import SIDE
from velm_cli.data.shapes_motion import (
    FRAMES,
    HELD_OUT,
    MIDDLE,
    PAIRS,
    Moving,
    _path,
    frames_of,
    make_clip,
    write_captions,
    write_motion,
    write_questions,
)
from velm_cli.errors import UserError
from velm_cli.metrics.motion_facts import asserted, load_clips, score_motion

REVERSE = {one: other for pair in PAIRS for one, other in (pair, pair[::-1])}
BAND = (0.0, float(SIDE))


def path(motion: str, speed: str = "", seed: int = 0):
    return _path(Moving("red", "star", motion, speed), BAND, random.Random(seed))


@pytest.mark.parametrize("motion", REVERSE)
def test_the_middle_frame_is_that_of_the_reverse_motion(motion):
    for seed in range(20):
        speed = "quickly" if motion in ("left", "right", "up", "down") else ""
        here, other = (path(name, speed, seed)[MIDDLE] for name in (motion, REVERSE[motion]))
        slow = path(motion, "slowly", seed)[MIDDLE] if speed else here
        assert here == other == slow


def test_objects_do_what_is_said():
    for seed in range(20):
        for motion, (dx, dy) in {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}.items():
            slow, quick = path(motion, "slowly", seed), path(motion, "quickly", seed)
            way = np.array([slow[-1].x - slow[0].x, slow[-1].y - slow[0].y])
            assert way @ (dx, dy) > 10 and abs(way @ (dy, dx)) < 1e-9
            assert np.isclose(quick[-1].x - quick[0].x, 2 * way[0]) and np.isclose(quick[-1].y - quick[0].y, 2 * way[1])
            for place in (*slow, *quick):
                assert place.radius <= place.x <= SIDE - place.radius and place.radius <= place.y <= SIDE - place.radius
        grown = path("grow", seed=seed)
        assert grown[-1].radius > 2 * grown[0].radius and grown[0].x == grown[-1].x
        first, *_, last = path("leave", seed=seed)
        assert 0 < first.x < SIDE and not 0 < last.x < SIDE
        first, *_, last = path("enter", seed=seed)
        assert not 0 < first.x < SIDE and 0 < last.x < SIDE


def test_motions_are_as_frequent_as_their_reverse():
    rng = random.Random(0)
    clips = [make_clip(part, rng) for part in ("train", "test") for _ in range(2000)]
    count = Counter(moving.motion for clip in clips for moving in clip)
    for one, other in PAIRS:
        assert abs(count[one] - count[other]) < 4 * (count[one] + count[other]) ** 0.5
    answers = {kind: Counter() for kind in ("way", "speed", "size", "edge")}
    for clip in clips:
        for kind, _, answer in write_questions(clip, rng):
            answers[kind][answer] += 1
    assert {kind: len(each) for kind, each in answers.items()} == {"way": 4, "speed": 2, "size": 2, "edge": 2}
    for each in answers.values():
        assert max(each.values()) < 1.2 * min(each.values())


def test_test_clips_have_kinds_that_training_never_shows():
    rng = random.Random(1)
    shown = {
        part: [{(one.colour, one.shape) for one in make_clip(part, rng)} for _ in range(500)]
        for part in ("train", "val", "test")
    }
    assert all(kinds & {*HELD_OUT} for kinds in shown["test"])
    assert not any(kinds & {*HELD_OUT} for part in ("train", "val") for kinds in shown[part])


def test_captions_say_what_their_words_assert():
    rng = random.Random(2)
    for _ in range(300):
        clip = make_clip("train", rng)
        for caption in write_captions(clip, rng):
            assert set(asserted(caption)) == set(clip), caption
    clips = {"a": [Moving("red", "star", "left", "quickly"), Moving("blue", "ring", "grow")]}
    scored = score_motion({"a": "a red star moves right quickly and a blue hoop grows"}, clips)
    assert scored == {"objects": 2.0, "named": 1.0, "motion": 0.5, "speed": 1.0}
    other = score_motion({"a": "a red ring moves left slowly"}, clips)  # which is the red object, wrongly called
    assert other == {"objects": 2.0, "named": 0.0, "motion": 0.5, "speed": 0.0}
    assert score_motion({"a": "a green star moves left"}, clips)["motion"] == 0
    assert score_motion({"a": ""}, clips)["motion"] == 0


def test_files_are_clips_with_tables(tmp_path):
    config = schema.ShapesConfig(root=str(tmp_path), num_train=4, num_val=1, num_test=1, examples=schema.Drawn.motion)
    home = write_motion(config, tmp_path)
    before = {file: file.read_bytes() for file in home.rglob("*") if file.is_file()}
    assert write_motion(config, tmp_path) == home
    assert {file: file.read_bytes() for file in home.rglob("*") if file.is_file()} == before
    assert len(list(home.rglob("*.jpg"))) == 6 * FRAMES
    captions = read(config)
    assert [len(one.images) for one in captions.examples] == [FRAMES] * 6 and captions.counts()["train"] == 4
    clips = load_clips(home / "motion.json")
    assert all(set(asserted(text)) == set(clips[one.id]) for one in captions.examples for text in one.targets)
    one_frame = schema.ShapesConfig(
        root=str(tmp_path), num_train=4, num_val=1, num_test=1, examples=schema.Drawn.motion_questions, frames=1
    )
    asked = [json.loads(line) for line in (home / "questions.jsonl").read_text().splitlines()]
    questions = read(one_frame)
    assert {one.id: (one.source, one.targets) for one in questions.examples} == {
        row["id"]: (row["question"], tuple(row["answers"])) for row in asked
    }
    assert all(one.images[0].path.name == f"{MIDDLE}.jpg" for one in questions.examples)
    with pytest.raises(UserError, match="holds other moving scenes"):
        write_motion(schema.ShapesConfig(root=str(tmp_path), num_train=5), tmp_path)


def test_frames_differ_and_are_reproduced():
    clip = (Moving("red", "star", "left", "quickly"), Moving("blue", "ring", "grow"))
    one, again = (frames_of(clip, random.Random(3)) for _ in range(2))
    assert len(one) == FRAMES and all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert all(not np.array_equal(a, b) for a, b in itertools.pairwise(one))
