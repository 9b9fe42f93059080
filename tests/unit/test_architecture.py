"""The rules of the house: imports go one way, the command line is light, files stay readable."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "velm_cli"

# A module may import from its own layer and from those before it.
LAYERS = [
    {"errors", "files", "hub", "lines", "place", "schema", "console", "surroundings", "quiet", "__init__"},
    {"options", "hints", "stage_help", "completion", "as_typed"},
    {
        "data",
        "models",
        "objectives",
        "metrics",
        "compose",
        "naming",
        "relocating",
        "start_from",
        "shared_configs",
        "usage",
        "unexpected",
        "observe",
    },
    {"tasks"},
    {"engine", "report", "validate"},
    {"stages"},
    {"sweep"},
    {"cli", "__main__"},
]


def layer_of(module: str) -> int:
    top = module.split(".")[0]
    return next(index for index, names in enumerate(LAYERS) if top in names)


def imports_of(file: Path) -> set[str]:
    """Modules of velm_cli that `file` imports, without the package's name."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("velm_cli"):
            base = node.module.removeprefix("velm_cli").lstrip(".")
            names = [base] if base else [alias.name for alias in node.names]
            found |= {name for name in names if name != "__version__"}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("velm_cli.") for a in node.names if a.name.startswith("velm_cli.")}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_go_one_way(file):
    own = ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
    for module in imports_of(file):
        assert layer_of(module) <= layer_of(own), f"{own} imports {module}"


@pytest.mark.parametrize("group", ["models", "objectives"])
def test_models_and_objectives_know_neither_engine_nor_hydra(group):
    for file in (PACKAGE / group).glob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(import|from) (hydra|omegaconf)", text, re.M), file
        assert not any(name.startswith(("engine", "compose", "stages", "tasks")) for name in imports_of(file))


def test_every_module_says_why_it_exists():
    for file in FILES:
        assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))), file


def test_files_stay_readable_in_one_sitting():
    assert not {str(f.relative_to(PACKAGE)): n for f in FILES if (n := len(f.read_text().splitlines())) > 380}


@pytest.mark.parametrize("command", [["--help"], ["train", "--cfg", "job"], ["eval", "--help"], ["-sc", "query=bash"]])
def test_the_command_line_imports_no_torch(command):
    """Where torch or transformers cannot be imported at all, these still work."""
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from velm_cli.cli import main\n"
        f"main({command!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PATH": "", "COMP_LINE": "velm tr"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_readers_and_metrics_import_no_torch():
    modules = "velm_cli.data.readers, velm_cli.data.store, velm_cli.metrics.captions, velm_cli.stages.preprocess"
    code = f"import sys; sys.modules['torch'] = None; import {modules}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
