"""The benchmarks run, on little: what they print is theirs to say, that they still fit the code is tested here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from java_support import needs_java

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def bench(name: str, *options: str, out: Path) -> dict:
    command = [sys.executable, str(SCRIPTS / name), *options, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text())


def test_training_beside_transformers(tmp_path):
    found = bench("bench_train.py", "--small", "--rounds", "2", "--images", "3", out=tmp_path / "train.json")
    assert found["seconds"].keys() == {"velm", "repeated", "grouped", "both", "coca"}
    assert all(len(times) == 2 and min(times) > 0 for times in found["seconds"].values())
    assert 0 < found["share_of_peak"] < 1
    assert len(found["rows"]) == 3
    assert all(row["low"] <= row["median"] <= row["high"] for row in found["rows"])
    assert all(row["by_operations"] > 1 for row in found["rows"]), "velm does no operation that the others save"


@pytest.mark.java
def test_scores_beside_pycocoevalcap(tmp_path):
    needs_java()
    found = bench("bench_metrics.py", "--images", "80", "--pairs", "1", out=tmp_path / "metrics.json")
    rows = {row["what"]: row for row in found["corpus"]}
    assert {"all", "raw captions", "raw captions, METEOR"} <= rows.keys()
    assert all(row["largest_difference"] <= 1e-6 for row in rows.values() if "largest_difference" in row)
    assert found["reward"]["largest_difference"] <= 1e-6
