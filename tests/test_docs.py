"""Every command of the README and of docs/*.md is executed or composed, every link leads somewhere, every example runs."""

import os
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
from documents import DOCUMENTS, FIRST, ROOT, blocks, commands, composed_commands, furnish, is_run_here, run
from hydra import compose as hydra_compose
from hydra import initialize_config_dir

from velm_cli import compose, schema, start_from, validate
from velm_cli.as_typed import for_hydra
from velm_cli.cli import ALIASES, STAGES
from velm_cli.metrics import submission

EXAMPLES = sorted((ROOT / "docs/examples").glob("*.py"))
# Longer than a test of every day may take; adding_a_task.md and extending.md have tests of their own.
SLOW = {"docs/tasks.md", "docs/sweeps.md"}
ELSEWHERE = {"docs/adding_a_task.md", "docs/extending.md"}


def name_of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


EXECUTED = [
    pytest.param(document, id=name_of(document), marks=[pytest.mark.slow] if name_of(document) in SLOW else [])
    for document in DOCUMENTS
    if name_of(document) not in ELSEWHERE and any(blocks(document, "bash", "python"))
]


@pytest.fixture(scope="module")
def furnished(tmp_path_factory) -> Path:
    """A reader's folder with one store and one trained run, which also stands for any run NAME."""
    folder = tmp_path_factory.mktemp("documents")
    furnish(folder)
    before = Path.cwd()
    os.chdir(folder)
    try:
        run("velm preprocess dataset=shapes", folder)
        run(FIRST, folder)
    finally:
        os.chdir(before)
    shutil.copytree(folder / "runs/train/first", folder / "runs/train/NAME")
    return folder


@pytest.fixture
def place(furnished, tmp_path, monkeypatch) -> Path:
    """A copy of that folder, which is the working folder."""
    folder = tmp_path / "place"
    shutil.copytree(furnished, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setitem(submission.SPLITS, "test2014", 4)  # COCO's server takes 40,775 test captions
    return folder


@pytest.mark.parametrize("document", EXECUTED)
def test_its_commands_run(document, place):
    for command in commands(document):
        if is_run_here(command):
            run(command, place)
    for block in blocks(document, "python"):
        exec(compile(block, str(document), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_its_other_commands_are_composed(document, furnished, monkeypatch):
    if name_of(document) in ELSEWHERE:
        pytest.skip("what it names is installed by a test of its own")
    monkeypatch.setattr(validate, "_root", lambda dataset: iter(()))  # a folder that only its reader has
    trained: dict[str, list[str]] = {}  # options of the document's own runs
    for _, stage, *args in composed_commands(document):
        stage = ALIASES.get(stage, stage)
        assert stage in STAGES, stage
        if stage in ("report", "doctor") or any(arg.startswith(("-sc", "hydra")) for arg in args):
            continue
        args = [re.sub(r"=([^\[(,]*),.*", r"=\1", arg) if "-m" in args else arg for arg in args]  # a point of a sweep
        args = [arg for arg in args if not arg.startswith(("config=", "-"))]
        if stage == "finetune":  # a training with the options of its run
            (checkpoint,) = (arg for arg in args if arg.startswith("checkpoint="))
            args.remove(checkpoint)
            stage, args = "train", [*trained.get(Path(checkpoint).name, ["dataset=shapes"]), *args]
        if stage == "evaluate":
            args = [f"checkpoint={furnished}/runs/train/first" if "checkpoint=" in arg else arg for arg in args]
        if stage == "score" and not any(arg.startswith("references=") for arg in args):
            args = [*args, "references=none"]  # rankings have theirs with them
        if names := [arg for arg in args if arg.startswith("name=")]:
            trained[names[-1].removeprefix("name=")] = args
        words = start_from.register(stage, for_hydra(stage, args, note=lambda _: None))
        with initialize_config_dir(str(compose.conf_dir()), version_base="1.3"):
            config = compose.to_dataclass(hydra_compose(stage, words))
        assert isinstance(config, schema.ROOTS[stage])
        problems = [each for each in validate._problems(config) if "no such file" not in each]
        assert not problems, problems


def test_the_readme_is_short_and_begins_with_two_commands():
    readme = DOCUMENTS[0]
    assert len(readme.read_text(encoding="utf-8").splitlines()) <= 120
    assert [command for command in commands(readme) if command.startswith("make")] == ["make demo", "make test"]
    assert len(commands(readme)) > 12


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_its_links_lead_somewhere(document):
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.S)
    for target in [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'src="([^"]+)"', text)]:
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}, target
    if name_of(document) not in ELSEWHERE:  # which name files of the reader's own
        for script in re.findall(r"`((?:scripts|tests)/[\w./]+\.\w+)", text):
            assert (ROOT / script).exists(), script


def test_every_document_is_in_the_index():
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"\]\(([\w.-]+\.md)\)", index))
    assert listed == {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}


def test_make_lists_its_targets_and_has_them():
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    targets = re.findall(r"^  make ([\w-]+)", done.stdout, re.M)
    assert {"setup", "demo", "test", "docs", "wheel"} <= set(targets)
    for target in targets:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_the_example_runs_on_drawn_scenes(example, place, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", [str(example)])
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out.strip()
