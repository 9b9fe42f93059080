"""docs/adding_a_task.md is complete: a copy of velm with the page's four pieces trains and scores the new task."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/adding_a_task.md").read_text("utf-8")
# The one file that is there already, and to which the page adds; all others are new.
ADDED_TO = "velm_cli/schema/tasks.py"
PIECES = {ADDED_TO, "conf/task/count.yaml", "velm_cli/tasks/count.py", "tests/tasks/test_count.py"}


def pieces() -> dict[str, str]:
    """File -> code of each block of the page: the file is the last one that the text before it names."""
    found = {}
    for match in re.finditer(r"```(?:python|yaml)\n(.*?)```", PAGE, re.S):
        before = PAGE[: match.start()].rpartition("```")[2]
        named = [name for name in re.findall(r"`([\w/]+\.(?:py|yaml))`", before) if name in PIECES]
        found[named[-1]] = match[1]
    return found


@pytest.fixture
def copy(tmp_path) -> Path:
    """velm with the new task."""
    skip = shutil.ignore_patterns("__pycache__")
    for folder in ("velm_cli", "conf"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=skip)
    (tmp_path / "tests/tasks").mkdir(parents=True)
    for file in ("pyproject.toml", "tests/conftest.py", "tests/velm.py"):
        shutil.copy(ROOT / file, tmp_path / file)
    for name, code in pieces().items():
        file = tmp_path / name
        assert file.exists() == (name == ADDED_TO), name
        with file.open("a") as out:
            out.write(f"\n\n{code}" if name == ADDED_TO else code)
    return tmp_path


def test_the_page_has_one_module_one_dataclass_one_yaml_and_one_test():
    assert pieces().keys() == PIECES


def test_the_new_task_needs_nothing_else(copy):
    (copy / "tests/unit").mkdir()
    shutil.copy(ROOT / "tests/unit/test_architecture.py", copy / "tests/unit")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n0", "-p", "no:cacheprovider", "tests/tasks/test_count.py",
         "tests/unit/test_architecture.py", "-k", "count or numbers or import"],
        cwd=copy, env={**os.environ, "PYTHONPATH": str(copy)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= 9 and "skipped" not in done.stdout, done.stdout
