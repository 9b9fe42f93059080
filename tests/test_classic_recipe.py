"""scripts/classic_recipe.sh: train vision, train language, join, evaluate."""

import json
import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file
from velm import TINY, TINY_MODEL

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "classic_recipe.sh"


def test_vision_and_language_are_trained_alone_and_then_joined(tmp_path):
    def options(group: str) -> str:
        return " ".join(option for option in TINY_MODEL if option.startswith(group))

    bin_folder = tmp_path / "bin"  # `velm` of this very environment
    bin_folder.mkdir()
    (bin_folder / "velm").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m velm_cli "$@"\n')
    (bin_folder / "velm").chmod(0o755)
    environment = {
        **os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "NAME": "tiny", "STEPS": "4",
        "DATA": "dataset=shapes " + " ".join(option for option in TINY if option.startswith("dataset")),
        "VISION": options("vision"), "TEXT": options("text"), "FUSION": options("fusion"), "RUN": options("run"),
        "METRICS": "metrics.names=[bleu,cider]",
    }  # fmt: skip
    done = subprocess.run([SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = tmp_path / "runs/train"
    joined = [line for line in done.stdout.splitlines() if line.startswith("weights from")]
    assert len(joined) == 2 and "tiny-vision" in joined[0] and "tiny-language" in joined[1]
    for line in joined:
        taken, wanted = line.split(": ")[1].split(" tensors")[0].split(" of ")
        assert taken == wanted, line
    kinds = [json.loads(line) for line in (runs / "tiny-vision/metrics.jsonl").read_text().splitlines()]
    assert all("loss_text" not in line for line in kinds)
    language = load_file(runs / "tiny-language/model.safetensors")
    assert any(name.startswith("model.text.") for name in language)
    assert not any(name.startswith("model.vision.") for name in language)
    scores = json.loads((tmp_path / "runs/evaluate/tiny-shapes-test-beam5/scores.json").read_text())
    assert scores["CIDEr"] is not None and scores["Bleu_4"] is not None
