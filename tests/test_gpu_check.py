"""scripts/gpu_check.py, run on the CPU: the script works, and finds what it is there to find."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "gpu_check.py"


@pytest.mark.slow
def test_it_passes_where_the_device_is_the_cpu():
    done = subprocess.run([sys.executable, SCRIPT, "--device", "cpu"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("  ok  ") > 20 and "all checks passed" in done.stdout
    assert "captions/s" in done.stdout and "TFLOP/s" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which `make gpu-check` checks")
def test_it_does_not_pass_where_there_is_no_gpu():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 2 and "nothing was checked" in done.stderr


def test_a_wrong_number_fails(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import gpu_check

    gpu_check.check("close enough", 1e-5, 1e-4)
    assert gpu_check.failures == 0
    gpu_check.check("too far", 1e-3, 1e-4)
    gpu_check.check("no number", float("nan"), 1e-4)
    assert gpu_check.failures == 2 and capsys.readouterr().out.count("FAIL") == 2
