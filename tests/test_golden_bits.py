"""scripts/golden.py: the same tree gives the same bits, and one changed character does not."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def compared_with(base: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts/golden.py"), "--base", str(base), "--only", "lstm"]
    return subprocess.run(command, capture_output=True, text=True)


def test_bits_of_two_trees_are_compared(tmp_path):
    done = compared_with(ROOT)
    assert done.returncode == 0, done.stderr
    assert "lstm        the same bits" in done.stdout
    for part in ("velm_cli", "conf"):
        shutil.copytree(ROOT / part, tmp_path / part)
    optim = tmp_path / "velm_cli/engine/optim.py"
    right = "return config.lr * (step + 1) / config.warmup_steps"
    assert right in optim.read_text()
    optim.write_text(optim.read_text().replace(right, right.replace("step + 1", "step + 2")))
    done = compared_with(tmp_path)
    assert done.returncode == 1, done.stderr
    assert "lstm        from step 1 on (train): lr 2e-05 -> 1e-05" in done.stdout
    assert "1 of 1 runs differ" in done.stdout
