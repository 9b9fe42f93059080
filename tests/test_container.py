"""scripts/Containerfile: what it says holds for this checkout, and its steps make a velm that works (`make test-container`)."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "container_steps.py"
FILE = ROOT / "scripts" / "Containerfile"
PASSED = [word for name in ("PIP_CERT", "PIP_DEFAULT_TIMEOUT", "PIP_INDEX_URL") for word in ("--env", name)]


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import container_steps

    return container_steps


@pytest.fixture
def steps(module):
    return module.steps(FILE.read_text(encoding="utf-8"))


def of(steps, name: str) -> list[str]:
    return [rest for instruction, rest in steps if instruction == name]


def test_every_step_can_be_carried_out_and_every_copied_file_is_there(module, steps, tmp_path):
    image = module.Image(tmp_path)
    for name, rest in steps:
        image.step(name, rest, build=False)
    assert image.entry == ["velm"] and image.default == ["--help"] and steps[0][0] == "FROM"
    copied = [source for rest in of(steps, "COPY") for source in rest.split()[:-1]]
    assert copied and not [source for source in copied if not (ROOT / source).exists()]
    for rest in of(steps, "COPY"):
        image.copy(rest.split())
    # What the build of the wheel reads.
    assert {"pyproject.toml", "README.md", "LICENSE", "conf", "velm_cli"} == {
        path.name for path in (tmp_path / "opt/source").iterdir()
    }


def test_continued_lines_are_one_step_and_comments_none(module):
    assert module.steps("# a\nFROM x\nRUN a \\\n # b\n && c\n\nCMD []\n") == [
        ("FROM", "x"), ("RUN", "a  && c"), ("CMD", "[]"),
    ]  # fmt: skip


def test_it_runs_as_a_user_and_keeps_no_caches(steps):
    names = [name for name, _ in steps]
    assert of(steps, "USER") == ["velm"] and "RUN" not in names[names.index("USER") :]
    for rest in of(steps, "RUN"):
        assert ("apt-get update" in rest) == ("rm -rf /var/lib/apt/lists/*" in rest)
        assert "apt-get install" not in rest or "--no-install-recommends" in rest
    assert "PIP_NO_CACHE_DIR=1" in of(steps, "ENV")


def test_its_extras_exist_and_its_page_names_what_it_has(steps):
    extras = re.search(r"\[project.optional-dependencies\]\n(.*?)\n\n", (ROOT / "pyproject.toml").read_text(), re.S)[1]
    known = set(re.findall(r"^(\w+) = \[", extras, re.M))
    arguments = dict(rest.split("=", 1) for rest in of(steps, "ARG"))
    assert set(arguments["EXTRAS"].split(",")) <= known
    page = (ROOT / "docs" / "container.md").read_text(encoding="utf-8")
    assert set(re.findall(r"--build-arg (\w+)=", page)) == set(arguments)
    for extra in re.findall(r"EXTRAS=([\w,]+)", page):
        assert set(extra.split(",")) <= known
    assert of(steps, "WORKDIR")[0] in page and "/cache" in page


@pytest.mark.slow
def test_its_steps_make_a_velm_that_trains_and_scores(tmp_path_factory):
    """In a Debian root of its own, VELM_CONTAINER_ROOT if that is given: 10 GB and ten minutes."""
    if not Path("/proc/self/ns/mnt").exists() or os.geteuid() != 0 or not shutil.which("debootstrap"):
        pytest.skip("needs Linux, root and debootstrap")
    root = Path(os.environ.get("VELM_CONTAINER_ROOT") or tmp_path_factory.mktemp("image"))

    def velm(*words: str, build: bool = False) -> str:
        command = [sys.executable, str(SCRIPT), str(root), *([] if build else ["--skip-build"]), *PASSED, "--", *words]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    if not (root / "opt/velm/bin/velm").exists():
        subprocess.run(["debootstrap", "--variant=minbase", "bookworm", str(root)], check=True, capture_output=True)
        print(velm("--version", build=True))
    assert re.search(r"^ok +SPICE", said := velm("doctor"), re.M), said
    few = ["dataset.num_train=40", "dataset.num_val=8", "dataset.num_test=8", "tokenizer.min_count=1"]
    velm("preprocess", "dataset=shapes", *few)
    velm("train", "dataset=shapes", *few, "run.max_steps=4", "run.batch_size=4", "name=x", "metrics=fast", "fresh=true")
    said = velm("eval", "checkpoint=runs/train/x", "split=test", "fresh=true")
    for metric in ("METEOR", "SPICE", "CIDEr"):
        assert re.search(rf"^{metric} +\d", said, re.M), said
    work = root / "home/velm/work/runs/train/x"
    assert (work / "DONE").exists() and work.stat().st_uid == 1000
