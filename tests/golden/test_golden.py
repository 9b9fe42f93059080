"""Thirty fixed steps against stored losses: a refactoring must leave them bit-identical.

    make golden                                   compares
    VELM_GOLDEN=write make golden                 writes them anew: give the reason in the commit

Floating-point results depend on the machine, so bits are compared where the stored fingerprint is this
machine's, and values within 1e-3 elsewhere.
"""

import json
import os
import platform
from pathlib import Path

import pytest
import torch
from PIL import Image
from velm import TINY, TINY_MODEL, call

FOLDER = Path(__file__).parent
RUNS = {
    "vit-transformer-cross_modal": ["loss.beta=0.1", "loss.gamma=0.1", "data.crop_scale=0.7"],
    "vit-lstm-concat": ["text=lstm", "fusion=concat", "run.accumulation=2"],
    "resnet18-transformer-concat": ["vision=resnet18", "vision.weights=none", "vision.image_size=64", "fusion=concat"],
}  # fmt: skip


def fingerprint() -> dict[str, str]:
    """What the bits depend on."""
    return {
        "torch": torch.__version__,
        "pillow": Image.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "processor": next(
            (
                line.split(":")[1].strip()
                for line in Path("/proc/cpuinfo").read_text().splitlines()
                if "model name" in line
            ),
            "",
        )
        if Path("/proc/cpuinfo").exists()
        else "",
        "threads": str(torch.get_num_threads()),
    }


@pytest.mark.parametrize("name", RUNS)
def test_thirty_steps_give_the_stored_losses(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("preprocess", "dataset=shapes", *TINY) == 0
    options = [
        option for option in TINY_MODEL
        if not (option.startswith("vision") and "resnet" in name)
        and not (option.startswith("fusion") and "concat" in name)
        and not (option == "text.heads=2" and "lstm" in name)
    ]  # fmt: skip
    code = call("train", *TINY, *options, *RUNS[name], "name=golden", "run.max_steps=30", "run.validate_every=0",
                "run.precision=fp32")  # fmt: skip
    assert code == 0
    lines = map(json.loads, Path("runs/train/golden/metrics.jsonl").read_text().splitlines())
    losses = [
        {key: value for key, value in line.items() if key.startswith("loss_") or key == "grad_norm"}
        for line in lines
        if line["kind"] == "train"
    ]
    assert len(losses) == 30
    file = FOLDER / f"{name}.json"
    if os.environ.get("VELM_GOLDEN") == "write":
        file.write_text(json.dumps({"fingerprint": fingerprint(), "losses": losses}, indent=1) + "\n")
    stored = json.loads(file.read_text())
    if stored["fingerprint"] == fingerprint():
        assert losses == stored["losses"]
    else:
        for found, expected in zip(losses, stored["losses"], strict=True):
            assert found == pytest.approx(expected, rel=1e-3)
