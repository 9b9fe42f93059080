"""The benchmarks run, on little: what they print is theirs to say, that they still fit the code is tested here."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from java_support import needs_java
from PIL import Image

from velm_cli.engine.device import cpu_multiplies_bf16

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def bench(name: str, *options: str, out: Path) -> dict:
    command = [sys.executable, str(SCRIPTS / name), *options, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text())


def test_training_beside_transformers(tmp_path):
    found = bench(
        "bench_train.py", "--small", "--rounds", "2", "--warm", "1", "--images", "3", out=tmp_path / "train.json"
    )
    assert found["seconds"].keys() == {"velm", "repeated", "grouped", "both", "coca"}
    assert all(len(times) == 2 and min(times) > 0 for times in found["seconds"].values())
    assert 0 < found["share_of_peak"] < 1
    assert len(found["rows"]) == 3
    assert all(row["low"] <= row["median"] <= row["high"] for row in found["rows"])
    assert all(row["by_operations"] > 1 for row in found["rows"]), "velm does no operation that the others save"


def test_decoding_beside_transformers_and_open_clip(tmp_path):
    found = bench("bench_decode.py", "--small", "--rounds", "2", "--images", "4", out=tmp_path / "decode.json")
    assert all(len(times) == 2 and min(times) > 0 for times in found["seconds"].values())
    assert len(found["rows"]) == (9 if cpu_multiplies_bf16() else 6)
    assert found["same together and apart"] == 1
    assert all(row["low"] <= row["median"] <= row["high"] for row in found["rows"])
    for counts in found["agreement"].values():
        assert sum(counts.values()) == 8
        assert counts["other"] == 0
    assert 5 < found["tokens"]["mean"] < 20


def test_this_tree_beside_itself(tmp_path):
    tree = str(SCRIPTS.parent)
    found = bench("bench_base.py", "--base", tree, "--small", "--rounds", "2", out=tmp_path / "base.json")
    assert found["base"] == tree and found["seconds"].keys() == {"train", "decode", "read"}
    assert all(len(times) == 2 and min(times) > 0 for of in found["seconds"].values() for times in of.values())


def test_captions_of_photos_beside_a_loop_over_transformers(tmp_path):
    found = bench("bench_caption.py", "--small", "--images", "6", "--rounds", "2", out=tmp_path / "caption.json")
    assert len(found["rows"]) == 1 and {name: len(times) for name, times in found["seconds"].items()} == {
        "velm": 2, "loop": 2,
    }  # fmt: skip


def test_a_service_with_and_without_batching(tmp_path):
    found = bench(
        "bench_serve.py", "--small", "--rounds", "1", "--beams", "1", "--soak", "160", out=tmp_path / "serve.json"
    )
    assert len(found["figures"]) == 6 and len(found["rows"]) == 3
    assert all(0 < each["p50_s"] <= each["p95_s"] for each in found["figures"].values())
    assert len(found["memory"]) == 11


@pytest.mark.java
def test_scores_beside_pycocoevalcap(tmp_path):
    needs_java()
    found = bench("bench_metrics.py", "--images", "80", "--pairs", "1", out=tmp_path / "metrics.json")
    rows = {row["what"]: row for row in found["corpus"]}
    assert {"all", "raw captions", "raw captions, METEOR"} <= rows.keys()
    assert all(row["largest_difference"] <= 1e-6 for row in rows.values() if "largest_difference" in row)
    assert found["reward"]["largest_difference"] <= 1e-6


def test_images_beside_pillow_and_torchvision(tmp_path):
    found = bench("bench_images.py", "--small", "--rounds", "1", out=tmp_path / "images.json")
    assert [row["what"] for row in found["rows"]] == [
        "preparing camera photos: Pillow", "preparing camera photos: libjpeg alone",
        "reading an epoch: torchvision's CocoCaptions", "reading an epoch: CocoCaptions on files shrunk before",
        "reading an epoch: libjpeg alone",
    ]  # fmt: skip
    assert all(row["median"] > 0 for row in found["rows"])
    assert 1 < found["reading"]["bits_a_pixel"] < 10


def test_pictures_made_of_own_photos(tmp_path):
    for name, colour in (("a", "red"), ("b", "lime")):
        Image.new("RGB", (50, 40), colour).save(tmp_path / f"{name}.jpg")
    photos = sorted(tmp_path.glob("*.jpg"))
    (path,) = runpy.run_path(str(SCRIPTS / "bench_images.py"))["make_pictures"](
        tmp_path / "of", 1, (200, 90), 90, photos
    )
    picture = Image.open(path)
    assert picture.size == (200, 90)
    for x in (25, 75, 125, 175):
        for y in (20, 60, 85):
            red, green, blue = picture.getpixel((x, y))
            assert max(red, green) > 245 and min(red, green) < 10 and blue < 10, (x, y)


def test_training_from_cached_features_beside_encoding(tmp_path):
    found = bench("bench_cache.py", "--small", "--rounds", "1", out=tmp_path / "cache.json")
    assert found["seconds"].keys() == {"encode", "cached", "memory"}
    against_encoding, against_memory = found["rows"]
    assert against_encoding["median"] > 0 and against_memory["median"] > 0


def test_questions_that_share_an_image(tmp_path):
    pytest.importorskip("velm_cli.learners.judging")
    found = bench("bench_questions.py", "--small", "--rounds", "1", out=tmp_path / "questions.json")
    assert found["apart"] < 1e-5 and found["seconds"].keys() == {"shared", "alone"}
    assert found["rows"][0]["median"] > 0


def test_start_and_growth(tmp_path):
    found = bench("bench_start.py", "--small", "--rounds", "1", out=tmp_path / "start.json")
    assert found["start"]["seconds"]["velm train"][0] > found["start"]["seconds"]["import torch"][0]
    assert found["growth"]["runs"].keys() == {"64", "256"}
    assert {row["what"].split(":")[0] for row in found["rows"]} >= {"training step"}


def test_growth_of_a_store(tmp_path):
    found = bench("bench_store.py", "--small", "--reads", "100", out=tmp_path / "store.json")
    assert [found["found"][size]["access"]["samples"] for size in ("2000", "4000")] == [2000, 4000]
    assert len(found["rows"]) == 7
    assert all(row["median"] > 0 for row in found["rows"])


def test_ranking_both_ways(tmp_path):
    sizes = ["--images", "300", "--captions", "1503", "--widths", "16", "32", "--rounds", "1"]
    found = bench("bench_retrieval.py", *sizes, out=tmp_path / "retrieval.json")
    assert [row["wrong"] for row in found["rows"]] == [0, 0]
    assert all(0 < row["rsum"] < 600 and row["peak_mb"] < 1000 for row in found["rows"])
