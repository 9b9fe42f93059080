"""The rules of the house: imports go one way, the command line is light, files stay readable."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "velm_cli"

# What each folder and each module beside them may import; all of them also LEAVES. Anything else is a mistake, and so is
# a line here that nobody needs.
LEAVES = {"errors", "files", "lines", "hub", "place", "progress", "surroundings", "quiet", "schema"}
MAY_IMPORT: dict[str, set[str]] = {
    "data": {"options", "relocating"},
    "models": {"data"},
    "metrics": {"data"},
    "objectives": {"metrics", "models"},
    "learners": {"data", "metrics", "models", "objectives"},
    "mixture": set(),
    "tasks": {"data", "learners", "metrics", "mixture", "models", "objectives"},
    "lineage": {"configs", "relocating"},
    "exported": set(),
    "loading": {"configs", "data", "exported", "learners", "lineage", "models", "objectives", "tasks"},
    "inference": {"configs", "data", "engine", "learners", "lineage", "loading", "metrics", "models", "tasks"},
    "exporting": {"configs", "inference", "lineage", "loading", "metrics", "models", "tasks"},
    "engine": {"configs", "console", "data", "learners", "models", "objectives", "observe"},
    "serving": {"data", "inference"},
    "report": {"configs", "data", "metrics"},
    "validate": {"data", "mixture", "models", "objectives", "tasks", "trackers"},
    "stages": {
        "compose", "configs", "console", "data", "engine", "exported", "exporting", "inference", "learners", "lineage",
        "loading", "metrics", "mixture", "models", "naming", "objectives", "observe", "relocating", "report", "serving", "tasks",
        "trackers", "validate",
    },
    "relocating": set(),
    "configs": {"relocating"},
    "compose": {"as_typed", "configs", "mixture", "options", "shared_configs"},
    "naming": {"as_typed", "configs"},
    "start_from": {"as_typed", "compose", "configs", "relocating"},
    "shared_configs": set(),
    "options": set(),
    "hints": {"options"},
    "as_typed": {"hints", "options"},
    "stage_help": {"options"},
    "usage": {"as_typed", "hints", "options", "stage_help"},
    "completion": {"options"},
    "console": set(),
    "observe": {"trackers"},
    "trackers": {"tracker_kinds"},
    "tracker_kinds": set(),
    "unexpected": set(),
    "sweep": {"compose", "console", "engine", "report", "stages", "start_from", "usage"},
    "cli": {
        "as_typed", "completion", "compose", "console", "engine", "options", "stage_help", "stages", "start_from",
        "sweep", "unexpected", "usage",
    },
    "__main__": {"cli"},
    "__init__": {"inference"},
}  # fmt: skip


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


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts)


def test_folders_import_what_the_graph_allows_and_nothing_else():
    used: dict[str, set[str]] = {name: set() for name in MAY_IMPORT}
    strange = []
    for file in FILES:
        own = module_of(file).split(".")[0]
        others = {module.split(".")[0] for module in imports_of(file)} - {own} - LEAVES
        if own in LEAVES:
            strange += [(module_of(file), other) for other in others]
            continue
        strange += [(module_of(file), other) for other in others - MAY_IMPORT[own]]
        used[own] |= others
    assert not strange
    assert used == MAY_IMPORT


def test_the_graph_has_no_cycle():
    order = TopologicalSorter(MAY_IMPORT)
    order.prepare()  # raises CycleError


def test_no_modules_import_each_other_in_a_circle():
    """Imports inside functions count: a circle that is put off is one all the same."""
    modules = {module_of(file).removesuffix(".__init__"): file for file in FILES}

    def target(name: str) -> str | None:
        while name not in modules and "." in name:
            name = name.rpartition(".")[0]
        return name if name in modules else None

    graph: dict[str, set[str]] = {}
    for name, file in modules.items():
        found = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("velm_cli."):
                base = node.module.removeprefix("velm_cli.")
                found |= {target(f"{base}.{alias.name}") for alias in node.names}
        graph[name] = {module for module in found if module} - {name}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("group", ["data", "models", "objectives", "learners", "metrics"])
def test_what_computes_knows_neither_engine_nor_hydra(group):
    for file in (PACKAGE / group).rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(import|from) (hydra|omegaconf)", text, re.M), file


def test_a_model_is_loaded_without_hydra_engine_or_store():
    code = (
        "import sys, velm_cli.loading\n"
        "loaded = set(sys.modules)\n"
        "print(sorted(name for name in loaded if name.split('.')[0] == 'hydra' or name.startswith('velm_cli.engine')"
        " or name == 'velm_cli.data.store'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


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
