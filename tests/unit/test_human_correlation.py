"""The correlation with people's judgements: tau-c by counting, and the pairs that are judged."""

from __future__ import annotations

import itertools
import json
import random
import runpy
from pathlib import Path

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "human_correlation.py"))


def test_tau_c_is_the_count_of_pairs():
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    rng = random.Random(seed)
    judged = [rng.randint(1, 4) for _ in range(200)]
    scores = [round(rng.random() + score / 5, 1) for score in judged]  # with ties
    agree = 0
    for (x, y), (u, v) in itertools.combinations(zip(scores, judged, strict=True), 2):
        agree += (x > u) * (y > v) + (x < u) * (y < v) - (x > u) * (y < v) - (x < u) * (y > v)
    m = min(len(set(scores)), len(set(judged)))
    assert SCRIPT["tau_c"](scores, judged) == pytest.approx(2 * m * agree / (200**2 * (m - 1)), abs=1e-12)
    assert SCRIPT["tau_c"]([1, 1, 2, 2], [1, 1, 2, 2]) == 1.0


def test_a_caption_of_the_image_itself_is_left_out(tmp_path):
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    annotations = [{"id": 9 - n, "image_id": 1 + n % 2, "caption": f"caption {n}"} for n in range(6)]
    (tmp_path / "captions_test.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    (tmp_path / "ExpertAnnotations.txt").write_text("a.jpg\tb.jpg#0\t1\t2\t4\nb.jpg\tb.jpg#1\t4\t4\t4\n")
    captions = SCRIPT["captions_of"](tmp_path)
    assert captions["b.jpg"] == ["caption 5", "caption 3", "caption 1"]
    assert SCRIPT["judgements"](tmp_path, captions) == [("a.jpg", "caption 5", [1, 2, 4])]
