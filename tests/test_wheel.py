"""The wheel, installed where nothing of this checkout is, run outside the repository."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the source distribution, and the wheel that was made of it."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    (wheel,) = built.glob("velm_cli-*.whl")
    return wheel


@pytest.fixture(scope="module")
def program(wheel, tmp_path_factory) -> Path:
    """`velm` of an environment that holds the wheel; its dependencies are borrowed from this one.

    Installing torch again would take minutes; velm itself cannot leak in, since an editable install is
    made by a .pth file, and those of a borrowed folder are not read.
    """
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
    site = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    (Path(site.strip()) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "velm"


def run(program: Path, *args: str, cwd: Path) -> subprocess.CompletedProcess:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run([str(program), *args], cwd=cwd, env=env, capture_output=True, text=True)


def test_the_wheel_holds_configs_and_the_spice_engine_and_nothing_of_the_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "velm_cli/conf/train.yaml" in names and "velm_cli/py.typed" in names
    assert "velm_cli/conf/fusion/concat.yaml" in names
    assert any(name.endswith("engine.jar") for name in names)
    assert not [name for name in names if name.startswith(("tests", "docs", "scripts"))]


def test_the_source_distribution_holds_all_of_the_checkout(built):
    (archive,) = built.glob("velm_cli-*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) - names <= {".gitignore"}


def test_the_installed_command_runs_outside_the_repository(program, tmp_path):
    code = "import velm_cli, pathlib; print(pathlib.Path(velm_cli.__file__).parent)"
    where = subprocess.check_output([program.parent / "python", "-c", code], text=True, cwd=tmp_path).strip()
    assert where.startswith(str(program.parent.parent)), "the test would prove nothing: this is not the wheel"
    assert run(program, "--version", cwd=tmp_path).stdout.startswith("velm ")
    config = run(program, "train", "--cfg", "job", cwd=tmp_path)
    assert "kind: shapes" in config.stdout, config.stderr
    page = run(program, "train", "--help", cwd=tmp_path)  # meanings are read from the schema's source
    assert "optimiser steps" in page.stdout and "cross_modal" in page.stdout, page.stderr
    done = run(
        program, "preprocess", "dataset=shapes", "dataset.num_train=8", "dataset.num_val=2", "dataset.num_test=2",
        "tokenizer.min_count=1", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "stores/shapes/manifest.json").exists()
    done = run(
        program, "train", "dataset.num_train=8", "dataset.num_val=2", "dataset.num_test=2", "tokenizer.min_count=1",
        "run.max_steps=2", "run.batch_size=2", "name=w", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/train/w/DONE").exists()

    # The model goes to somebody else, who has nothing but the wheel.
    assert run(program, "export", "checkpoint=runs/train/w", "out=given", cwd=tmp_path).returncode == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "given").rename(elsewhere / "given")
    photo = next((tmp_path / "data/shapes").glob("val2014/*.jpg")).rename(elsewhere / "photo.jpg")
    for name in ("runs", "stores", "data"):
        shutil.rmtree(tmp_path / name)
    done = run(program, "caption", "checkpoint=given", f"images={photo}", "out=found.json", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads((elsewhere / "found.json").read_text())
    assert found["image"] == str(photo) and isinstance(found["caption"], str)
