"""Sweeps of train and finetune: which points there are, and running them in this process, in several, or just one.

    velm train -m fusion=concat,add seed=0,1              one point after the other
    velm train -m fusion=concat,add seed=0,1 --jobs=2     two at a time, each with its share of the cores and GPUs
    velm train -m fusion=concat,add seed=0,1 --where      the run folders, a line each; runs nothing
    velm train -m fusion=concat,add seed=0,1 --point=3    the fourth point alone: a task of a job array

Points are what Hydra's basic sweeper makes of the command. Each is a run like any other, with the name that its own
command would give it, so it resumes; a point that is complete is not run again, and one that fails stops no other.
Other sweepers and launchers of Hydra's (whose points may depend on results) are left to Hydra.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import open_dict
from omegaconf.errors import OmegaConfBaseException

from velm_cli import compose, console, start_from
from velm_cli.engine.folder import is_complete, run_path
from velm_cli.engine.signals import stop_on_signals
from velm_cli.errors import StageError, UserError
from velm_cli.place import place
from velm_cli.progress import progress_bar
from velm_cli.stages import settle
from velm_cli.usage import explain

RunStage = Callable[[str, list[str]], None]  # cli._run_stage


@dataclass(frozen=True, slots=True)
class Point:
    """One run of a sweep."""

    folder: Path
    arguments: list[str]  # of its own command, after the stage
    log: Path  # what it says when it runs beside others
    max_steps: int
    complete: bool  # before the sweep began


class _OtherSweeper(Exception):
    """The points are not known beforehand."""


def train_or_sweep(stage: str, args: list[str], run_stage: RunStage) -> None:
    """`velm train` or `velm finetune` with the flags of this module."""
    args, where, number, jobs = _flags(args)
    sweeping = "-m" in args
    if not sweeping and (number is not None or jobs is not None):
        raise UserError("--point and --jobs are for sweeps: velm train -m ...")
    flagged = where or number is not None or jobs is not None
    if not flagged and (not sweeping or place().world > 1 or _hydra_must(args)):
        run_stage(stage, args)
        return
    try:
        points = _points(stage, args, number)
    except _OtherSweeper:
        if flagged:
            raise UserError("--where, --point and --jobs work with Hydra's basic sweeper and launcher only") from None
        run_stage(stage, args)
        return
    if where:
        print("\n".join(str(point.folder) for point in points))
        return
    console.work_is_in_files()
    if number is not None:
        run_stage(stage, points[0].arguments)
    elif jobs is None or jobs == 1:
        _run_here(stage, points, run_stage)
    else:
        _run_beside_each_other(stage, points, jobs)


def _hydra_must(args: list[str]) -> bool:
    """Whether the command asks for a sweeper or launcher of its own, or just to be told something (--cfg)."""
    return any(arg.startswith(("hydra/sweeper=", "hydra/launcher=", "--", "-c")) for arg in args)


def _flags(args: list[str]) -> tuple[list[str], bool, int | None, int | None]:
    """The other arguments; --where; --point; --jobs."""
    rest, where = [], False
    numbers: dict[str, int | None] = {"--point": None, "--jobs": None}
    waiting = iter(args)
    for arg in waiting:
        flag, equals, value = arg.partition("=")
        if arg == "--where":
            where = True
        elif flag in numbers:
            value = value if equals else next(waiting, "")
            if not value.isdecimal() or (flag == "--jobs" and int(value) < 1):
                least = ", at least 1" if value.isdecimal() else ""
                raise UserError(f"{flag}={value}: expected a whole number{least}, such as {flag}=2")
            numbers[flag] = int(value)
        else:
            rest.append(arg)
    return rest, where, numbers["--point"], numbers["--jobs"]


def _points(stage: str, args: list[str], number: int | None) -> list[Point]:
    """The points of a sweep in Hydra's order, or only the one of that number, or the one of a command without -m."""
    if _hydra_must(args):
        raise _OtherSweeper
    gc.disable()  # as for composing in cli.py
    try:
        with initialize_config_dir(str(compose.conf_dir()), version_base="1.3"):
            commands = _commands(stage, args)
            if number is not None and number >= len(commands):
                raise UserError(f"--point={number}: the sweep has the points 0 to {len(commands) - 1}")
            wanted = commands if number is None else [commands[number]]
            points = [_point(stage, command, one_of_many="-m" in args) for command in wanted]
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, stage) or str(error)) from None
    finally:
        gc.enable()
    for folder, count in Counter(point.folder for point in points).items():
        if count > 1:
            raise UserError(
                f"{count} points of the sweep would be the same run, {folder}: they differ in nothing that names an "
                "experiment (see --where); sweep over name= as well"
            )
    return points


def _commands(stage: str, args: list[str]) -> list[list[str]]:
    """The arguments of each point, by the grammar and in the order of Hydra's basic sweeper."""
    if "-m" not in args:
        return [args]
    own = [arg for arg in args if arg.startswith(("hydra.", "hydra/"))]
    swept = [arg for arg in args if arg not in ("-m", *own)]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    (points,) = BasicSweeper.split_arguments(parser.parse_overrides(swept), max_batch_size=None)
    return [[*point, *own] for point in points]


def _point(stage: str, command: list[str], *, one_of_many: bool) -> Point:
    overrides = start_from.register(stage, command)
    config = hydra_compose(stage, overrides=overrides, return_hydra_config=True)
    if not config.hydra.sweeper._target_.endswith(".BasicSweeper") or config.hydra.sweeper.params:
        raise _OtherSweeper
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    typed = settle(config, one_of_many=one_of_many)
    arguments = [arg for arg in command if arg.partition("=")[0] != "name"]
    log = Path(typed.run.dir) / "sweeps" / f"{typed.name}.log"
    path = run_path(typed)
    complete = is_complete(path, typed)
    return Point(path, [*arguments, f"name={typed.name}"], log, typed.run.max_steps, complete)


def _run_here(stage: str, points: list[Point], run_stage: RunStage) -> None:
    """One point after the other in this process."""
    errors = []
    with stop_on_signals() as stop:
        for number, point in enumerate(points, 1):
            if point.complete:
                print(_skipped(point))
                continue
            print(f"point {number}/{len(points)}  {point.folder.name}", flush=True)
            try:
                run_stage(stage, point.arguments)
            except Exception as error:
                errors.append(error)
                print(f"velm: this point of the sweep failed: {_line(error)}", file=sys.stderr)
            if stop:
                print(f"the sweep was stopped by {stop.signal_name}; the same command goes on with it")
                return
    _summary(points)
    if len(errors) > 1:
        raise StageError(f"{len(errors)} points of the sweep failed, the last with: {_line(errors[-1])}")
    if errors:
        raise errors[0]


def _skipped(point: Point) -> str:
    return f"complete    {point.folder}"


def _line(error: Exception) -> str:
    return str(error) if isinstance(error, (UserError, StageError)) else f"{type(error).__name__}: {error}"


@dataclass
class _Slot:
    """A share of the machine, and the process that has it at the moment."""

    cores: list[int]
    environment: dict[str, str]
    point: Point | None = None
    process: subprocess.Popen | None = None
    began: float = 0.0


def _run_beside_each_other(stage: str, points: list[Point], jobs: int) -> None:
    """So many points at a time, each a process of its own; SIGTERM and Ctrl-C make all of them save."""
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # no thread here: processes are about to be forked
    waiting, slots = iter([point for point in points if not point.complete]), _slots(min(jobs, len(points)))
    failed: list[str] = []
    told = False
    with (
        progress_bar(what="sweep", total=len(points), unit="point", dynamic_ncols=True) as bar,
        stop_on_signals() as stop,
        _killed_at_the_end(slots),
    ):
        for finished in (point for point in points if point.complete):
            bar.write(_skipped(finished))
            bar.update()
        while True:
            for slot in slots:
                if slot.process is not None and slot.process.poll() is not None:
                    bar.write(_ended(slot, failed))
                    bar.update()
                if slot.process is None and not stop and (point := next(waiting, None)) is not None:
                    _start(stage, point, slot)
            running = [slot for slot in slots if slot.process is not None]
            if not running:
                break
            if stop and not told:
                told = True
                bar.write(f"{stop.signal_name}: waiting for {len(running)} points to save")
                for slot in running:
                    assert slot.process is not None
                    slot.process.terminate()
            bar.set_postfix_str(", ".join(_progress(slot.point) for slot in running if slot.point))
            time.sleep(0.2)
    _summary(points)
    done = sum((point.folder / "DONE").exists() for point in points)
    if done + len(failed) < len(points):
        print(f"{done} of {len(points)} points are complete; the same command goes on with the others")
    if failed:
        raise StageError(f"{len(failed)} of {len(points)} points of the sweep failed, the last: {failed[-1]}")


def _slots(count: int) -> list[_Slot]:
    """Shares of the cores and of the GPUs that this process may use."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    gpus = _gpus()
    slots = []
    for number in range(count):
        first, end = (len(cores) * place // count for place in (number, number + 1))
        share = cores[first:end] or [cores[number % len(cores)]]
        environment = {"OMP_NUM_THREADS": str(len(share)), **os.environ}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
        slots.append(_Slot(share, environment))
    return slots


def _gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name and name != "-1"]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _start(stage: str, point: Point, slot: _Slot) -> None:
    def in_the_child() -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, slot.cores)
        if sys.platform.startswith("linux"):  # if this process is killed, its points save and stop
            set_death_signal = 1  # PR_SET_PDEATHSIG of prctl.h
            ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)

    # Not `-m velm_cli`, which would import what lies in the working folder before anything installed.
    folders = [folder for folder in sys.path if folder]
    program = f"import sys; sys.path[:] = {folders!r}; from velm_cli.cli import main; main()"
    point.log.parent.mkdir(parents=True, exist_ok=True)
    with open(point.log, "ab") as log:
        slot.process = subprocess.Popen(
            [sys.executable, "-c", program, stage, *point.arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=slot.environment,
            start_new_session=True,  # Ctrl-C reaches this process, which tells them
            preexec_fn=in_the_child,
        )
    slot.point, slot.began = point, time.monotonic()


def _ended(slot: _Slot, failed: list[str]) -> str:
    """Free the slot; a line about how its point ended, which also goes into `failed` if it did."""
    assert slot.point is not None and slot.process is not None
    point, code = slot.point, slot.process.returncode
    slot.point = slot.process = None
    seconds = f"{time.monotonic() - slot.began:.0f} s"
    if code == 0:
        return f"{'done   ' if (point.folder / 'DONE').exists() else 'stopped'}     {point.folder}  {seconds}"
    lines = point.log.read_text(encoding="utf-8", errors="replace").splitlines()
    reason = lines[-1].removeprefix("velm: ") if lines else f"exit code {code}"
    if code < 0:
        reason = f"ended by {signal.Signals(-code).name}"
    failed.append(f"{point.folder.name}: {reason}")
    return f"failed      {point.folder}  {seconds}  {reason} (more in {point.log})"


def _progress(point: Point) -> str:
    """The step of its last log line, of how many."""
    step = 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        step = json.loads((point.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])["step"]
    return f"{step}/{point.max_steps}"


@contextlib.contextmanager
def _killed_at_the_end(slots: Iterable[_Slot]) -> Iterator[None]:
    """After a second Ctrl-C, or an error here, no process is left."""
    try:
        yield
    finally:
        for slot in slots:
            if slot.process is not None:
                slot.process.kill()
                slot.process.wait()


def _summary(points: list[Point]) -> None:
    """The table of `velm report` of those points that have scores."""
    from velm_cli.report.runs import read_run
    from velm_cli.report.tables import compare, text

    scored = []
    for point in points:
        with contextlib.suppress(UserError):
            if (point.folder / "DONE").exists():
                scored.append(read_run(point.folder))
    if scored:
        print(text(compare(scored)))
