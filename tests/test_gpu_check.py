"""scripts/gpu_session.sh and gpu_check.py, run on the CPU: they work, and find what they are there to find."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
PARTS = {"parity", "runs", "compile", "ranks", "objectives", "transfer", "step", "decode", "loader"}
IMAGE = {"torch": "2.11.0", "torchvision": "0.26.0", "transformers": "5.17.0"}  # versions of a common GPU image


@pytest.fixture
def scripts(monkeypatch):
    """The scripts' own modules can be imported."""
    monkeypatch.syspath_prepend(str(SCRIPTS))


@pytest.mark.slow
def test_the_prepared_run_passes_on_a_cpu_without_java_and_installed_hydra(tmp_path):
    """In the environment VELM_GPU_IMAGE (`make test-gpu-image`), which has neither velm nor pycocoevalcap; else here."""
    image = os.environ.get("VELM_GPU_IMAGE")
    python = Path(image) / "bin" / "python" if image else Path(sys.executable)
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text(f"#!/bin/sh\ntouch {tmp_path / 'java-was-started'}\n")
    java.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "PATH": f"{java.parent}:{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    if image:
        probe = (
            "import importlib.util as u; print([n for n in ('hydra', 'pycocoevalcap', 'velm_cli') if u.find_spec(n)])"
        )
        assert subprocess.check_output([python, "-c", probe], text=True, cwd=tmp_path).strip() == "[]"
    wheels = [str(Path(image) / "wheels")] if image else []
    command = [SCRIPTS / "gpu_session.sh", tmp_path / "out", *wheels, "--device", "cpu", "--small"]
    began = time.monotonic()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    print(f"{time.monotonic() - began:.0f} s")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all checks passed" in done.stdout and not (tmp_path / "java-was-started").exists()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["gpu.json", "gpu.log"]
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert found["parts"].keys() == PARTS
    assert {part["state"] for part in found["parts"].values()} == {"done"}
    checks = {name: len(part["checks"]) for name, part in found["parts"].items()}
    assert checks == {
        "parity": 20, "runs": 6, "compile": 2, "ranks": 6, "objectives": 4, "transfer": 1, "step": 0, "decode": 2,
        "loader": 0,
    }  # fmt: skip
    figures = {figure["name"] for part in found["parts"].values() for figure in part["figures"]}
    assert {"training: share of the matrix peak", "decoding: velm against generate, 5 beams"} <= figures
    if image:
        assert {name: found["machine"][name].partition("+")[0] for name in IMAGE} == IMAGE
        if sys.version_info < (3, 12):  # the image's own Python may be newer than this one
            assert found["machine"]["numpy"].startswith("2.5.") or not found["machine"]["python"].startswith("3.12")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which `make gpu-check` checks")
def test_it_does_not_pass_where_there_is_no_gpu(tmp_path):
    command = [sys.executable, SCRIPTS / "gpu_check.py", "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "nothing was checked" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_session_says_what_it_is_given_and_what_is_missing(tmp_path):
    done = subprocess.run([SCRIPTS / "gpu_session.sh"], capture_output=True, text=True)
    assert done.returncode == 2 and "scripts/gpu_session.sh OUT [WHEELS]" in done.stderr
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # without what is installed
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python)}
    done = subprocess.run([SCRIPTS / "gpu_session.sh", tmp_path / "o"], capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and "lacks: torch" in done.stderr and "Traceback" not in done.stderr


def test_a_wrong_number_fails(scripts, tmp_path, capsys):
    from gpu_check import Report

    report = Report(tmp_path / "part.json")
    report.check("close enough", 1e-5, 1e-4)
    report.check("too far", 1e-3, 1e-4)
    report.check("no number", float("nan"), 1e-4)
    assert [check["ok"] for check in report.checks] == [True, False, False]
    assert capsys.readouterr().out.count("FAIL") == 2
    kept = json.loads((tmp_path / "part.json").read_text())
    assert [check["found"] for check in kept["checks"]] == [1e-5, 1e-3, "nan"]


def test_parity_notices_another_weight_and_another_word(scripts, monkeypatch):
    import gpu_right
    from gpu_check import Report

    def faulty(module):
        """The copy that goes to the device, with one number of its output's bias changed."""
        other = copy.deepcopy(module)
        if isinstance(other, gpu_right.WritingLearner):
            with torch.no_grad():
                other.model.output_bias[7] += 0.5
        return other

    monkeypatch.setattr(gpu_right, "CELLS", gpu_right.CELLS[:1])
    for deepcopy, wrong in ((copy.deepcopy, False), (faulty, True)):
        monkeypatch.setattr(gpu_right, "copy", SimpleNamespace(deepcopy=deepcopy))
        report = Report()
        gpu_right.parity(report, torch.device("cpu"))
        failed = {check["name"].partition(": ")[2] for check in report.checks if not check["ok"]}
        assert ("loss" in failed) is wrong and ("gradient" in failed) is wrong
        assert any("captions that differ" in name for name in failed) is wrong


def test_a_part_that_breaks_or_takes_too_long_is_told_and_the_others_run(scripts, monkeypatch, tmp_path, capsys):
    import gpu_check

    (tmp_path / "broken.py").write_text(
        "def parity(report, device):\n    report.check('before', 0, 1)\n    raise ValueError('no')\n"
    )
    (tmp_path / "slow.py").write_text(
        "import time\ndef runs(report, device):\n    report.figure('seen', 1, 's')\n    time.sleep(60)\n"
    )
    (tmp_path / "fine.py").write_text("def step(report, device):\n    report.check('right', 0, 0)\n")
    text = (SCRIPTS / "gpu_check.py").read_text()
    for old, new in (('"parity": ("gpu_right", 200)', '"parity": ("broken", 50)'), ('"runs": ("gpu_runs", 180)', '"runs": ("slow", 16)'),
                     ('"step": ("gpu_fast", 190)', '"step": ("fine", 50)')):  # fmt: skip
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "gpu_check.py").write_text(text)
    command = [sys.executable, tmp_path / "gpu_check.py", "--device=cpu", "--small", "--only=parity,runs,step"]
    done = subprocess.run([*command, f"--out={tmp_path / 'out'}"], capture_output=True, text=True)
    assert done.returncode == 1 and "2 of 3 parts have failures" in done.stdout
    parts = json.loads((tmp_path / "out" / "gpu.json").read_text())["parts"]
    assert {name: part["state"] for name, part in parts.items()} == {
        "parity": "failed (exit code 1)", "runs": "stopped after 16 s", "step": "done",
    }  # fmt: skip
    assert parts["parity"]["checks"][0]["name"] == "before" and "ValueError: no" in parts["parity"]["error"]
    assert parts["runs"]["figures"][0]["name"] == "seen"
    assert "ValueError: no" in (tmp_path / "out" / "gpu.log").read_text()
    assert gpu_check.PARTS.keys() == PARTS


def test_the_page_shows_what_was_found_and_what_was_not_run(scripts):
    import gpu_page

    nothing = gpu_page.tables(None)
    assert nothing.count(gpu_page.NOT_YET) == len(PARTS) + len(gpu_page.MEASURED)
    check = {"name": "vit: loss", "found": 5e-5, "bound": 1e-4, "ok": True}
    wrong = {"name": "lstm: loss", "found": "nan", "bound": 1e-4, "ok": False}
    speed = {"name": "training: velm, images", "value": 2000.0, "unit": "images/s", "aim": None}
    ratio = {"name": "training: velm against it", "value": 2.5, "unit": "x", "aim": 2.0, "low": 2.25, "high": 2.75}
    reading = [
        {"name": f"loader: {n} threads", "value": 300.0 * n, "unit": "images/s", "aim": None, "threads": n}
        for n in (1, 4)
    ]
    result = {
        "machine": {"gpu": "A GPU", "gpus": 1, "memory_gb": 80, "cores": 4, "torch": "2", "transformers": "5", "python": "3"},
        "date": "2026-01-02",
        "parts": {
            "parity": {"state": "done", "checks": [check, wrong], "figures": []},
            "step": {"state": "stopped after 9 s", "checks": [], "figures": [speed, ratio], "texts": {"where it goes": "mm 1"}},
            "loader": {"state": "done", "checks": [], "figures": reading},
        },
    }  # fmt: skip
    page = gpu_page.tables(result)
    assert "2026-01-02: 1 x A GPU, 80 GiB; 4 CPU cores; torch 2" in page
    assert "| 2 | 1 | vit: loss: 5.0e-05 of 1e-04 | done |" in page
    assert "Failed in parity: lstm: loss: nan, at most 1e-04." in page
    assert "| training: velm against it | 2.5 x | 2.25 to 2.75 | 2 |" in page
    assert "| CPU cores that read as many images as the training step takes | 6.7 | | |" in page
    assert "stopped after 9 s" in page and "```\nmm 1\n```" in page
    assert page.count(gpu_page.NOT_YET) == (len(PARTS) - 3) + 2  # parts; of what is measured: transfer and decode


def test_the_page_is_fresh_and_takes_no_figures_of_a_cpu(scripts, tmp_path, capsys):
    import gpu_page

    assert gpu_page.main(["--check"]) == 0, "run python scripts/gpu_page.py"
    (tmp_path / "gpu.json").write_text(json.dumps({"device": "cpu", "small": True}))
    assert gpu_page.main([str(tmp_path / "gpu.json")]) == 2
    assert "says nothing of a GPU" in capsys.readouterr().err
