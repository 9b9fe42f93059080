"""What `make demo` runs, as it runs it: eight scores, and captions that name what is drawn."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from java_support import needs_spice

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.spice
def test_the_demo_names_objects_and_colours_of_unseen_kinds(tmp_path):
    needs_spice()
    program = tmp_path / "bin" / "velm"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m velm_cli "$@"\n')
    program.chmod(0o755)
    env = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    env["PATH"] = f"{program.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(ROOT / "scripts/demo.sh")], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs/evaluate").iterdir()
    scores = json.loads((folder / "scores.json").read_text())
    for name in ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr", "SPICE"):
        assert scores[name] is not None, scores["reasons"]
    facts = json.loads((folder / "facts.json").read_text())
    for fact in ("object_precision", "object_recall", "colour_precision", "colour_recall"):
        assert facts[fact] >= 0.95, facts
