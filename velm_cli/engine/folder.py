"""A run's folder: found again by the same command, guarded against another one, telling its own state.

runs/STAGE/NAME/ holds config.yaml, command.txt, environment.json, metrics.jsonl, checkpoints/, samples/,
the weights and scores at the end, and one of DONE, PREEMPTED, FAILED.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from velm_cli import configs
from velm_cli.console import kept_in
from velm_cli.errors import StageError, UserError
from velm_cli.files import crc32, locked, read_log, refuse_links, write_bytes, write_json, write_text
from velm_cli.schema import Resize

MARKERS = ("DONE", "PREEMPTED", "FAILED")
NO_FIGURES = ("kind", "step", "moving")  # of a line about a validation
LOG = "log.txt"  # what the console was told
WRITTEN = (
    *MARKERS, LOG, "command.txt", "environment.json", "metrics.jsonl", "sources.json", "model.safetensors",
    "best.safetensors", "frozen.safetensors", "predictions.json", "scores.json", "per_image.jsonl", "report.html",
    "weights.json",
)  # fmt: skip


def run_path(config: Any) -> Path:
    """Where a run lives; with `fresh=true` the first free of NAME, NAME.2, NAME.3 ..."""
    path = Path(config.run.dir) / config.stage / config.name
    if config.fresh:
        number = 2
        while os.path.lexists(path):
            path = path.with_name(f"{config.name}.{number}")
            number += 1
    return path


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run folder that this process holds, or that another rank holds for it."""

    path: Path
    _lock: tuple[int, int] | None = None  # device and inode of the lock file

    def refuse_if_gone(self) -> None:
        """StageError when the folder is no longer where it was: nothing must be written into whatever is there now."""
        if not self.is_there():
            raise StageError(
                f"{self.path} was removed or renamed while velm worked in it: nothing more is written; if it was "
                "renamed, name it back, and the same command goes on from its last checkpoint"
            )

    def is_there(self) -> bool:
        return self._lock is None or self._lock == _identity(self.path / ".lock")


@contextlib.contextmanager
def open_run(
    path: Path, config: Any, *, writes: bool = True, check: Callable[[], None] | None = None
) -> Iterator[OpenRun]:
    """The run's folder, locked, with the config in it; marks it FAILED when the block raises.

    UserError when the folder belongs to another experiment or another process works in it, and whatever `check` raises,
    which looks at the folder before anything in it changes. A rank that does not write leaves all that to the one that
    does.
    """
    if not writes:
        yield OpenRun(path)
        return
    refuse_foreign(path)
    with lock_folder(path):
        run = OpenRun(path, _identity(path / ".lock"))
        refuse_other_experiment(path, config)
        if check is not None:
            check()
        for marker in MARKERS:
            (path / marker).unlink(missing_ok=True)
        for left_by_a_kill in (*path.glob(".*.part"), *path.glob("*.safetensors.part")):
            left_by_a_kill.unlink()
        configs.write_config(path / "config.yaml", config)
        _note_command(path / "command.txt")
        write_json(path / "environment.json", environment())
        try:
            with kept_in(path / LOG, _command()):
                yield run
        except BaseException as error:
            with contextlib.suppress(OSError):  # of a full disk: the error itself is what matters
                if run.is_there():
                    explained = isinstance(error, (UserError, StageError)) or not isinstance(error, Exception)
                    where = "" if explained else f" (the traceback is in {LOG})"
                    mark(path, "FAILED", (str(error) or type(error).__name__) + where)
            raise


def _command() -> str:
    return shlex.join([*sys.argv[0].split(), *sys.argv[1:]])


def _note_command(file: Path) -> None:
    """Add this command. The file is replaced, not written into: it may have another name in somebody's home."""
    before = file.read_bytes() if file.exists() else b""
    write_bytes(file, [before, os.fsencode(_command() + "\n")])


def refuse_foreign(path: Path) -> None:
    """UserError for a folder that is no run's and has files of the names that a run writes: they are the user's."""
    if any(os.path.lexists(path / name) for name in (".lock", "config.yaml")):
        return
    for name in WRITTEN:
        if (path / name).is_file() and not (path / name).is_symlink():
            raise UserError(f"{path} is not a run of velm and holds {name}: give another name=, or move it away")


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def resize_of(path: Path, config: Any) -> Resize:
    """`vision.resize`; where the command leaves it open, that of the run which goes on in `path`."""
    file = path / "config.yaml"
    if config.vision.resize is not Resize.auto or not file.exists() or not has_begun(path):
        return config.vision.resize
    vision = configs.read_config(file).get("vision") or {}
    return Resize.__members__.get(str(vision.get("resize")), Resize.auto)


def refuse_to_restart(path: Path, notes: Sequence[str] = ()) -> None:
    """UserError where training from the first step on would replace weights: a run's whose checkpoints are gone.

    `notes`: lines about its checkpoints, which are said first.

    For a run that has no usable checkpoint. One that was killed before its first, after a validation, has weights, too,
    and begins again: nothing shows that there was more.
    """
    weights = [name for name in ("model.safetensors", "best.safetensors") if (path / name).exists()]
    if weights and (_is_over(path) or _had_checkpoints(path)):
        line = (
            f"{path} holds a trained model ({weights[0]}) and no whole checkpoint to go on from: train on with "
            f"velm finetune checkpoint={path}, or anew with another name= or fresh=true"
        )
        raise UserError("\n".join([*(note.partition("; no whole one")[0] for note in notes), line]))


def _is_over(path: Path) -> bool:
    return any((path / name).exists() for name in ("DONE", "PREEMPTED", "model.safetensors"))


def _had_checkpoints(path: Path) -> bool:
    """Whether there are damaged ones, or the log goes on after the step of the first one."""
    if any(path.glob("checkpoints/damaged-*")):
        return True
    run = configs.read_config(path / "config.yaml").get("run") or {}
    before_the_first = int(run.get("checkpoint_every", 1))
    if run.get("async_checkpoints"):  # the next steps are made while it is written, up to the second one
        before_the_first *= 2
    return max(map(_step_of, _lines(path / "metrics.jsonl")), default=0) > before_the_first


def again(config: Any, path: Path) -> str:
    """How the user goes on with the run in `path`: `fresh=true` would begin another one."""
    if not config.fresh:
        return "the same command"
    return f"the same command with name={path.name} and without fresh=true"


def is_complete(path: Path, config: Any) -> bool:
    """Whether the command of `config` has been carried out to its end: the same to the last option, and DONE."""
    try:  # in this order: open_run removes the marker before it writes another config
        same = (path / "config.yaml").read_text(encoding="utf-8") == configs.sealed_yaml(config)
    except OSError:
        return False
    if not same and (path / "DONE").exists():  # an older velm's, which lacks the options that are newer
        with contextlib.suppress(UserError):
            vision = replace(config.vision, resize=resize_of(path, config))
            same = _asked(configs.load_run_config(path)) == _asked(replace(config, vision=vision))
    return same and (path / "DONE").exists()


def _asked(config: Any) -> Any:
    """The options without where they are from: `config=RUN name=RUN` is the command that made RUN."""
    return replace(config, config=None)


def best_figure(path: Path) -> float | None:
    """What the training run in `path` returned: the best of its validations; None if it had none."""
    lines = [line for line in read_log(path) if line["kind"] == "validation"]
    counting = [line for line in lines if not line.get("moving")] or lines[-1:]  # see engine/loop.py's validation
    scores = [_score(line) for line in counting]
    return max((score for score in scores if score is not None), default=None)


def _score(line: dict[str, Any]) -> float | None:
    """Of a validation's line what chose the best weights: the task's first figure, behind the losses; or their sign
    changed."""
    figures = [key for key in line if key not in NO_FIGURES and not key.startswith("loss")]
    if figures:
        return float(line[figures[0]])
    return -float(line["loss"]) if "loss" in line else None


def mark(path: Path, marker: str, text: str = "") -> None:
    """Leave exactly this marker; DONE holds the CRC-32 of the run's log, which nobody writes any more."""
    assert marker in MARKERS
    if marker == "DONE" and (path / "metrics.jsonl").exists():
        text = crc32(path / "metrics.jsonl")
    for other in MARKERS:
        (path / other).unlink(missing_ok=True)
    write_text(path / marker, text + "\n" if text else "")


def environment() -> dict[str, Any]:
    """What the run ran on and with, and where: `relocating` finds its relative paths from there."""
    packages = ("velm-cli", "torch", "torchvision", "transformers", "hydra-core", "omegaconf", "tokenizers")
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    git = None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        out = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
        )
        git = out.stdout.strip() or None
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "packages": versions,
        "git": git,
        "folder": os.getcwd(),
    }


def keep_lines_until(path: Path, step: int) -> None:
    """Drop the lines of a metrics.jsonl that a resume from `step` is going to write again."""
    lines = _lines(path)
    if not path.exists():
        return
    kept = [line + b"\n" for line in lines if 0 <= _step_of(line) <= step]
    if damaged := sum(_step_of(line) < 0 for line in lines):
        print(f"note: {damaged} damaged lines of {path} are left out")
    write_bytes(path, kept)


def _lines(log: Path) -> list[bytes]:
    """The lines of a metrics.jsonl; after the last end of line is nothing, or what a kill has torn."""
    return log.read_bytes().split(b"\n")[:-1] if log.exists() else []


def _step_of(line: bytes) -> int:
    """Of a line in a metrics.jsonl; -1 if the line is damaged."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return -1
    return step if type(step) is int else -1


@contextlib.contextmanager
def lock_folder(path: Path) -> Iterator[None]:
    """Make the folder and hold it for this process; UserError when another one does.

    UserError also where something in it leads out of it: a run folder may come from a stranger.
    """
    path.mkdir(parents=True, exist_ok=True)
    busy = f"{path}: another velm process is working in this run folder; wait for it, or give another name="
    with locked(path / ".lock", busy):
        refuse_links(path)
        yield


def has_begun(path: Path) -> bool:
    """Whether there is anything to lose: a run that failed on its way to the first step left nothing."""
    if any((path / name).exists() for name in ("checkpoints", "predictions.json", "DONE", "PREEMPTED")):
        return True
    lines = _lines(path / "metrics.jsonl")
    return len(lines) > 1 or (len(lines) == 1 and _step_of(lines[0]) != 0)  # a first line says what is to be trained


def is_of(path: Path, config: Any) -> bool:
    """Whether there is a run in `path`, of the experiment of `config`."""
    if not (path / "config.yaml").exists():
        return False
    differing, _, _ = _differing(path, config)
    if config.vision.resize is Resize.auto:  # an older velm's says what that is to it
        differing = [key for key in differing if key != "vision.resize"]
    return not differing


def _differing(path: Path, config: Any) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    """The options that make the run in `path` another experiment; the options there and here."""
    saved = configs.experiment_of(OmegaConf.to_container(configs.read_config(path / "config.yaml")))
    asked = configs.experiment_of(config)
    return sorted(key for key in saved.keys() & asked.keys() if saved[key] != asked[key]), saved, asked


def refuse_other_experiment(path: Path, config: Any) -> None:
    """UserError where a run has begun in `path` that is of other options."""
    if not (path / "config.yaml").exists() or not has_begun(path):
        return
    differing, saved, asked = _differing(path, config)
    if asked.get("checkpoint") or asked.get("init.text"):  # whose vocabulary it is, which is compared by digest
        own = ("tokenizer.max_tokens", "tokenizer.max_source_tokens")
        differing = [key for key in differing if not key.startswith("tokenizer.") or key in own]
    if differing:
        key = differing[0]
        more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
        raise UserError(
            f"{path} holds another experiment: {key} is {saved[key]} there and {asked[key]} here{more}; "
            f"give another name=, or fresh=true{_how_to_go_on(path, config, key, asked[key])}"
        )


def _how_to_go_on(path: Path, config: Any, key: str, value: Any) -> str:
    """Other options of training on trained weights are a finetuning."""
    if config.stage not in ("train", "finetune") or not key.startswith(("optim.", "run.", "loss.", "data.")):
        return ""
    return f"; to go on from its weights: velm finetune checkpoint={path} {key}={value}"
