"""A fusion of another installed package: the very files of docs/extending.md, installed with pip."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from velm import TINY, TINY_MODEL, velm

DOCS = (Path(__file__).resolve().parents[1] / "docs/extending.md").read_text("utf-8")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> dict[str, str]:
    """The environment in which `my-fusions` of the page is installed."""
    place = tmp_path_factory.mktemp("external")
    toml, code = (re.search(rf"```{kind}\n(.*?)```", DOCS, re.S)[1] for kind in ("toml", "python"))
    points = re.search(r'entry-points\."(.*?)"\]\n(\S+) = "(.*?)"', toml)
    info = "my_fusions-1.0.dist-info"
    with zipfile.ZipFile(place / "my_fusions-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("my_fusions.py", code)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: my-fusions\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/entry_points.txt", f"[{points[1]}]\n{points[2]} = {points[3]}\n")
        wheel.writestr(f"{info}/RECORD", "")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", place / "site",
         place / "my_fusions-1.0-py3-none-any.whl"], check=True,
    )  # fmt: skip
    path = os.pathsep.join([str(place / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"PYTHONPATH": path}


def test_it_trains_and_evaluates(installed, tmp_path):
    assert velm("preprocess", "dataset=shapes", *TINY, cwd=tmp_path).returncode == 0
    model = [option for option in TINY_MODEL if not option.startswith("fusion.")]
    command = re.search(r"^velm train (fusion=external .*)$", DOCS, re.M)[1].split()
    done = velm("train", *TINY, *model, *command, "run.max_steps=2", "name=mine", cwd=tmp_path, env=installed)
    assert done.returncode == 0, done.stderr
    done = velm("eval", "checkpoint=runs/train/mine", "metrics=fast", "limit=2", cwd=tmp_path, env=installed)
    assert done.returncode == 0, done.stderr


def test_what_is_not_installed_gets_one_line(installed, tmp_path):
    done = velm("train", "fusion=external", "fusion.name=scaled_ad", cwd=tmp_path, env=installed)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == (
        "velm: fusion.name=scaled_ad: no such fusion; did you mean 'scaled_add'?; installed are scaled_add "
        "(docs/extending.md)"
    )
