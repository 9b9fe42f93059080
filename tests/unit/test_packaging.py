"""What the project is called, and what it tells people to install: nothing of a stranger's."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

from velm_cli import __version__
from velm_cli.data.sources import EXTRA
from velm_cli.engine.folder import environment

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [
    ROOT / "README.md", ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / ".ci/run", ROOT / ".github/workflows/ci.yml",
    ROOT / "scripts/Containerfile",
    *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("conf/**/*.yaml")),
    *sorted(ROOT.glob("scripts/*.*")), *sorted(ROOT.glob("velm_cli/**/*.py")),
]  # fmt: skip
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def requirements() -> set[str]:
    """Names of all packages that velm-cli and its extras depend on."""
    return {NAME.match(line)[0].lower() for line in importlib.metadata.requires("velm-cli")}


def advised(text: str) -> set[str]:
    """Names of packages that `text` tells its reader, or another package, to install."""
    found = set()
    for words in re.findall(r"pip3? install\b([^\n`]*)", text):
        for word in words.split():
            word = word.lstrip("'\"")
            if word.startswith("-"):
                continue
            if not (name := NAME.match(word)):
                break
            found.add(name[0].rstrip(".").lower())
            if not re.search(r"[\w\]]['\"]?$", word):
                break  # the sentence or the string ends here
    for listed in re.findall(r"^dependencies = \[([^\]]*)\]", text, re.M):
        found |= {NAME.match(item)[0].lower() for item in re.findall(r'"([^"]+)"', listed)}
    return found


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("pip install 'velm[lora]'", {"velm"}),
        ("run `uv pip install -U velm` or", {"velm"}),
        ("needs peft: pip install peft==1\") from None", {"peft"}),
        ("pip install fsspec {package}' if package", {"fsspec"}),
        ("pip install -e '.[dev]'", set()),
        ('dependencies = ["velm>=1", "torch"]', {"velm", "torch"}),
    ],
)  # fmt: skip
def test_the_search_finds_advice(text, names):
    assert advised(text) == names


def test_nobody_is_told_to_install_a_strangers_package():
    """`velm` on PyPI is another project's: advice names velm-cli, or what velm-cli itself depends on."""
    known = requirements() | {
        "velm-cli",
        "pip",
        "uv",
        "hydra-optuna-sweeper",
        "fsspec",
        "pyarrow",
        "num2words",
        *EXTRA.values(),
    }
    texts = {str(file.relative_to(ROOT)): file.read_text("utf-8") for file in TEXTS}
    assert not {file: names for file, text in texts.items() if (names := advised(text) - known)}
    assert not [file for file, text in texts.items() if "velm[" in text]


def test_every_requirement_says_from_which_version_on():
    """Without one `make test-oldest` would take the first that was ever published."""
    assert not [line for line in importlib.metadata.requires("velm-cli") if ">=" not in line]


@pytest.mark.parametrize(
    ("schema", "file"),
    [
        ("vendor.github-workflows", ".github/workflows/ci.yml"),
        ("custom.github-workflows-require-timeout", ".github/workflows/ci.yml"),
        ("vendor.citation-file-format", "docs/CITATION.cff"),
    ],
)
def test_what_other_programs_read_has_their_form(schema, file):
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(ROOT / file)]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_workflow_runs_targets_and_tests_that_there_are():
    workflow = (ROOT / ".github/workflows/ci.yml").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    used = set(re.findall(r"run: make ([a-z-]+)", workflow))
    assert {"setup", "check", "test", "test-oldest"} == used <= targets
    assert "sudo" not in workflow and "apt" not in workflow


def test_the_citation_has_the_version():
    assert f"version: {__version__}\n" in (ROOT / "docs/CITATION.cff").read_text("utf-8")


def test_the_distribution_is_velm_cli():
    distribution = importlib.metadata.distribution("velm-cli")
    assert distribution.version == __version__ == environment()["packages"]["velm-cli"]
    assert [(p.name, p.value) for p in distribution.entry_points] == [("velm", "velm_cli.cli:main")]
