"""Plants links and other people's files at the paths that velm writes, and looks whether anything of them is lost.

    python tests/faults/planted.py                 # every path
    python tests/faults/planted.py --paths 20      # some, by chance

*Links*: a store, a run or an evaluation that came from a stranger holds, at one of its paths, a link to a file or folder
of ours. Whatever the command does, nothing there may change. *Files*: a folder of ours happens to have a file of a name
that velm uses. Whatever `velm preprocess` does, with fresh=true and without, every byte of it must still be somewhere.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

SIZES = ["dataset.num_train=12", "dataset.num_val=4", "dataset.num_test=4", "tokenizer.min_count=1"]
COMMANDS = {
    "stores/shapes": ["preprocess", "dataset=shapes", "preprocess.shard_images=8", "preview=true", *SIZES],
    "runs/train/x": [
        "train", *SIZES, "vision=vit", "vision.width=16", "vision.layers=1", "vision.heads=2", "text.width=16",
        "text.layers=1", "text.heads=2", "fusion.layers=1", "fusion.heads=2", "run.log_every=1", "run.max_steps=2",
        "run.checkpoint_every=1", "run.validate_every=2", "run.batch_size=4", "vision.freeze=all", "data.cache=bf16",
        "metrics.names=[bleu]", "name=x",
    ],
    "runs/evaluate/x": ["evaluate", "checkpoint=runs/train/x", "metrics.names=[bleu]", "name=x"],
}  # fmt: skip
PRECIOUS = b"precious, and nowhere else\n"


def prepare() -> None:
    """A store with tokens and features, a run and its evaluation, in the working folder."""
    for command in COMMANDS.values():
        code, said = run(command)
        assert code == 0, said


def run(command: list[str]) -> tuple[int, str]:
    """The exit code and what was said to the user; a traceback is said as one."""
    from velm import call

    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            return call(*command), said.getvalue()
        except Exception as error:
            return -1, f"Traceback: {type(error).__name__}: {error}"


def written(folder: str) -> list[Path]:
    """Everything that velm has written into the folder, files and folders, and the names that come and go."""
    found = sorted(path for path in Path(folder).rglob("*") if path.name != "runs")
    return [*found, Path(folder, ".writing"), Path(folder, ".parts"), Path(folder, "checkpoints/step-00000009")]


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def plant_link(path: Path, victim: Path) -> None:
    """In place of `path` a link to `victim`, which looks as what was there."""
    shutil.rmtree(victim, ignore_errors=True)
    (victim / "a folder/images").mkdir(parents=True)
    for name in ("notes.txt", "step-00000001", "shard-00000.tar", "about.json", ".x.1-abcdef01.part"):
        (victim / "a folder" / name).write_bytes(PRECIOUS)
    (victim / "file").write_bytes(PRECIOUS)
    is_folder = path.is_dir()
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_folder:
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.symlink_to((victim / ("a folder" if is_folder else "file")).absolute())


def after_a_link(whole: Path, folder: str, path: Path, alone: bool, fresh: bool) -> str | None:
    """What is wrong after a command met a link at `path`: None if nothing is."""
    victim = Path("victim").absolute()
    for name in ("stores", "runs"):
        shutil.rmtree(name, ignore_errors=True)
        shutil.copytree(whole / name, name, symlinks=True)
    if alone:  # nothing but the link: a folder that is to become velm's
        kept_folder = path.is_dir()
        shutil.rmtree(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if kept_folder else path.touch()
    for marker in ("DONE", "manifest.json"):  # or there would be nothing to do
        if Path(folder, marker) != path:
            Path(folder, marker).unlink(missing_ok=True)
    plant_link(path, victim)
    before = contents(victim)
    code, said = run([*COMMANDS[folder], *["fresh=true"] * fresh])
    if contents(victim) != before:
        return f"what the link leads to was changed (exit code {code}: {said.strip()[-200:]})"
    if "Traceback" in said:
        return said.strip()[-300:]
    return None


def after_a_file(name: Path, fresh: bool) -> str | None:
    """What is wrong after `velm preprocess` met files of ours, one of them at a name of its own."""
    shutil.rmtree("stores", ignore_errors=True)
    for file in (name, Path("stores/shapes/thesis/a.tex")):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(PRECIOUS)
    code, said = run([*COMMANDS["stores/shapes"], *["fresh=true"] * fresh])
    kept = sum(content == PRECIOUS for content in contents(Path("stores")).values())
    if kept != 2:
        return f"{2 - kept} files are lost (exit code {code}: {said.strip()[-200:]})"
    return said.strip()[-300:] if "Traceback" in said else None


def campaign(paths: int | None, seed: int) -> tuple[int, list[str]]:
    """How many attempts there were, and a line for each that must not be. The working folder has been prepared."""
    rng = random.Random(seed)
    whole = Path("whole").absolute()
    whole.mkdir()
    for name in ("stores", "runs"):
        shutil.move(name, whole / name)
    with _inside(whole):
        places = [(folder, path) for folder in COMMANDS for path in written(folder)]
    links = [(*place, alone, fresh) for place in places for alone in (False, True) for fresh in (False, True)]
    files = [
        (path, fresh)
        for path in (*(p for _, p in places if not (whole / p).is_dir()), Path("stores/.shapes.old/a"),
                     Path("stores/.shapes.new/a"))
        if path.parts[0] == "stores" and path.name != ".writing" for fresh in (False, True)
    ]  # fmt: skip
    if paths is not None:
        links, files = rng.sample(links, paths), rng.sample(files, min(paths, len(files)))
    bad = []
    for folder, path, alone, fresh in links:
        if wrong := after_a_link(whole, folder, path, alone, fresh):
            bad.append(f"link at {path}{' alone' * alone}{' fresh=true' * fresh}: {wrong}")
    for path, fresh in files:
        if wrong := after_a_file(path, fresh):
            bad.append(f"file at {path}{' fresh=true' * fresh}: {wrong}")
    return len(links) + len(files), bad


@contextlib.contextmanager
def _inside(folder: Path):
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paths", type=int, help="so many links and so many files; all, if not given")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="velm-planted-") as folder:
        os.chdir(folder)
        prepare()
        attempts, bad = campaign(options.paths, options.seed)
        os.chdir("/")
    print(*bad, sep="\n")
    print(f"{attempts} attempts, {len(bad)} bad, {time.monotonic() - began:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
