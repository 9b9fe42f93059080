"""Bad days that are no accident of timing: full and read-only disks, a lock, jumping clocks, a thread or a Java that dies.

    python tests/faults/scenarios.py

Prints a line for each. The disks are tmpfs mounts of their own (root); where mounting is refused that is said, and a
limit on the size of files takes their place.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from disturb import (
    EVALUATE,
    JUDGED,
    PREPROCESS,
    SHAPES,
    TRAIN,
    TRAINED,
    Attempt,
    differing,
    evaluated,
    photos,
    trained,
    tree,
    velm,
)

KB = 1024
CAPTION, JUDGE = [*TRAIN, *TRAINED["caption"]], [*EVALUATE, *JUDGED["caption"]]
WITH_JAVA = [*EVALUATE, "metrics.names=[bleu,meteor,rouge_l,cider]"]
HOME = Path(tempfile.gettempdir())  # of this session; set by main


class Failed(Exception):
    """A promise that was not kept."""


def check(condition: object, attempt: Attempt | None = None, what: str = "") -> None:
    if not condition:
        raise Failed(what + (f"\n{attempt.code}: {attempt.output}" if attempt else ""))


def refusal(attempt: Attempt, code: int, *words: str) -> str:
    """The one line of `velm:` that an attempt ended with."""
    lines = [line for line in attempt.output.splitlines() if line.startswith("velm: ")]
    check(
        attempt.code == code and len(lines) == 1 and "Traceback" not in attempt.output,
        attempt,
        f"not one line, exit {code}",
    )
    check(all(re.search(word, lines[0]) for word in words), attempt, f"says nothing of {words}")
    return lines[0].replace(str(HOME), "~")[:150]


@contextlib.contextmanager
def disk(name: str, size: int) -> Iterator[Path]:
    """A file system of `size` bytes, for root."""
    path = HOME / name
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "velm-faults", path], check=True, capture_output=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def resize(path: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", path], check=True)


def may_mount() -> bool:
    try:
        with disk("probe", 64 * KB):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def while_running(work: Callable[[], bool]) -> threading.Thread:
    """`work` again and again, every 5 ms, until it says that it is done (or a minute is over)."""

    def loop() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end and not work():
            time.sleep(0.005)

    return threading.Thread(target=loop, daemon=True)


def fill(path: Path) -> None:
    """Take all room of the disk."""
    with contextlib.suppress(OSError), open(path / "filler", "ab", buffering=0) as file:
        while file.write(bytes(KB)):
            pass


# ------------------------------------------------------------------------------------ disks


def full_disk_in_a_checkpoint() -> str:
    """Room for the first checkpoint, not for the one that is written beside it."""
    first = HOME / "runs/train/straight/checkpoints"
    one = sum(file.stat().st_size for file in sorted(first.glob("step-*"))[0].iterdir())
    with disk("small", 2 * one + 200 * KB) as path:
        args = [*CAPTION, f"run.dir={path}", "name=full"]
        attempt = velm(args, HOME)
        said = refusal(attempt, 1, "cannot write", "No space left|os error 28")
        left = sorted(p.name for p in (path / "train/full/checkpoints").iterdir())
        check(any(name.startswith("step-") for name in left), attempt, f"left: {left}")
        resize(path, "size=64m")
        again = velm(args, HOME)
        check(again.code == 0 and "resumed at step" in again.output, again)
        compare(trained(HOME / "runs/train/straight"), trained(path / "train/full"))
    return said


def full_disk_in_the_log() -> str:
    with disk("log", 64 * 1024 * KB) as path:
        args = [*CAPTION, f"run.dir={path}", "name=full", "run.checkpoint_every=4"]
        log = path / "train/full/metrics.jsonl"

        def work() -> bool:
            if not log.exists() or log.read_bytes().count(b"\n") < 7:
                return False
            fill(path)
            return True

        thread = while_running(work)
        thread.start()
        attempt = velm(args, HOME)
        thread.join()
        said = refusal(attempt, 1, "cannot write", "No space left|os error 28")
        (path / "filler").unlink()
        again = velm(args, HOME)
        check(again.code == 0 and "resumed at step" in again.output, again)
        compare(trained(HOME / "runs/train/straight"), trained(path / "train/full"))
    return said


def full_disk_in_preprocess() -> str:
    with disk("packing", 64 * 1024 * KB) as path:
        args = [*PREPROCESS, "dataset=folder", f"dataset.root={HOME}/photos", f"dataset.store={path}/store"]
        done = velm(args, HOME)
        check(done.code == 0, done)
        expected = tree(path / "store")
        size = sum(map(len, expected.values()))  # type: ignore[arg-type]
        shutil.rmtree(path / "store")
        resize(path, f"size={size // 2}")
        attempt = velm(args, HOME)
        said = refusal(attempt, 2, "cannot write", "No space left")
        resize(path, "size=64m")
        again = velm(args, HOME)
        check(again.code == 0, again)
        compare(expected, tree(path / "store"))
    return said


def full_disk_in_evaluate() -> str:
    with disk("judging", 40 * KB) as path:
        args = [*JUDGE, f"checkpoint={HOME}/runs/train/straight", f"run.dir={path}"]
        attempt = velm(args, HOME)
        said = refusal(attempt, 1, "cannot write", "No space left")
        resize(path, "size=64m")
        again = velm(args, HOME)
        check(again.code == 0, again)
        compare(evaluated(HOME / "judged"), evaluated(path))
    return said


def read_only_folder() -> str:
    with disk("frozen", 64 * 1024 * KB) as path:
        resize(path, "ro")
        said = refusal(velm([*CAPTION, f"run.dir={path}", "name=x"], HOME), 1, "Read-only")
        refusal(
            velm([*PREPROCESS, "dataset=folder", f"dataset.root={HOME}/photos", f"dataset.store={path}/s"], HOME),
            2,
            "Read-only",
        )
        refusal(velm([*JUDGE, f"checkpoint={HOME}/runs/train/straight", f"run.dir={path}"], HOME), 1, "Read-only")
        check(not list(path.iterdir()), what="something was written")
    return said


def files_of_limited_size() -> str:
    """RLIMIT_FSIZE, for machines that mount nothing: every file ends at 40 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40 * KB, hard))
    args = [*CAPTION, "name=limited"]
    try:
        attempt = velm(args, HOME)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = refusal(attempt, 1, "cannot write", "File too large|os error 27")
    check(not list((HOME / "runs/train/limited").glob("checkpoints/step-*")), attempt)
    again = velm(args, HOME)
    check(again.code == 0, again)
    compare(trained(HOME / "runs/train/straight"), trained(HOME / "runs/train/limited"))
    return said


# ------------------------------------------------------------------------------------ locks


def second_process() -> str:
    """While another process holds a run folder, train, finetune, evaluate and score are refused and change nothing."""
    judged = next((HOME / "judged/evaluate").glob("*"))
    (HOME / "refs.json").write_text(json.dumps({"annotations": [{"image_id": 1, "caption": "a red circle"}]}))
    (HOME / "hyps.json").write_text(json.dumps([{"image_id": 1, "caption": "a circle"}]))
    commands = {
        "runs/train/held": [*CAPTION, "name=held"],
        "runs/finetune/held": ["finetune", "checkpoint=runs/train/straight", "name=held", "run.max_steps=1"],
        f"other/evaluate/{judged.name}": [*JUDGE, f"checkpoint={HOME}/runs/train/straight", "run.dir=other"],
        "scored": ["score", "predictions=hyps.json", "references=refs.json", "out=scored", "metrics.names=[bleu]"],
    }
    said = ""
    for folder, args in commands.items():
        (HOME / folder).mkdir(parents=True)
        with open(HOME / folder / ".lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            said = refusal(velm(args, HOME), 2, "another velm process is working in this run folder")
        check([path.name for path in (HOME / folder).iterdir()] == [".lock"], what=f"{folder} was written to")
    done = velm(commands["scored"], HOME)
    check(done.code == 0, done)
    return said


def dead_owner() -> str:
    """Killed in the middle of METEOR, whose Java is still there: the same command is not refused."""
    args = [*WITH_JAVA, f"checkpoint={HOME}/runs/train/straight", "run.dir=dead"]
    killed: list[int] = []

    def work() -> bool:
        for pid, line in javas():
            if "-stdio" in line or "Xmx" in line:
                os.kill(pid, signal.SIGSTOP)  # it cannot even notice that its owner is gone
                killed.append(pid)
                owner = int(re.search(r"PPid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])  # type: ignore[index]
                os.kill(owner, signal.SIGKILL)
                return True
        return False

    thread = while_running(work)
    thread.start()
    attempt = velm(args, HOME)
    thread.join()
    check(attempt.code == -signal.SIGKILL and killed, attempt, "METEOR was not met")
    again = velm(args, HOME)
    os.kill(killed[0], signal.SIGKILL)
    check(again.code == 0, again)
    compare(evaluated(HOME / "with_java"), evaluated(HOME / "dead"))
    return "killed beside a stopped Java; the same command runs at once"


def javas() -> list[tuple[int, str]]:
    """(process, command line) of the Java programs that attempts have started."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if "java" in line.split(" ")[0] and b"VELM_FAULTS=" in (entry / "environ").read_bytes():
                found.append((int(entry.name), line))
    return found


# ------------------------------------------------------------------------------------ clocks, threads, processes


def clock_jumps() -> str:
    """time.time leaps by days at each call, and all files are of 1970 or 2100 between the runs."""
    real = time.time
    rng = random.Random(0)
    args = [*CAPTION, "name=clock"]
    runs = 0
    try:
        time.time = lambda: real() + rng.uniform(-1e8, 1e8)  # type: ignore[assignment]
        while True:
            runs += 1
            attempt = velm(args, HOME, None if runs > 3 else 2.0, storm=1)
            for path in HOME.glob("runs/train/clock/**/*"):
                when = rng.choice([0, 4e9])
                os.utime(path, (when, when))
            if attempt.code == 0 and "stopped by SIGTERM" not in attempt.output:
                break
            check(runs < 5, attempt)
    finally:
        time.time = real
    compare(trained(HOME / "runs/train/straight"), trained(HOME / "runs/train/clock"))
    return f"{runs} sessions under a jumping clock: same bits"


def image_that_decays() -> str:
    """A loader thread meets a changed JPEG in the middle of training."""
    shutil.copytree(HOME / "stores/shapes", HOME / "stores/decayed")
    shard = HOME / "stores/decayed/images/shard-00000.tar"
    data = bytearray(shard.read_bytes())
    data[shard.stat().st_size // 3] ^= 1
    shard.write_bytes(data)
    attempt = velm([*CAPTION, "name=decayed", "dataset.store=stores/decayed", "data.workers=2"], HOME)
    said = refusal(attempt, 2, "of the store .* cannot be read .* have changed")
    check((HOME / "runs/train/decayed/FAILED").exists(), attempt)
    return said


def java_that_dies() -> str:
    """METEOR's process is killed once: it is replaced; it is killed always: the score is missing, and a line says why."""
    args = [*WITH_JAVA, f"checkpoint={HOME}/runs/train/straight"]
    for limit, folder in ((1, "once"), (99, "always")):
        dead: set[int] = set()

        def work(limit: int = limit, dead: set[int] = dead, folder: str = folder) -> bool:
            for pid, line in javas():
                if "Xmx" in line and pid not in dead and len(dead) < limit:
                    dead.add(pid)
                    os.kill(pid, signal.SIGKILL)
            return len(dead) >= limit or bool(list((HOME / folder).glob("evaluate/*/DONE")))

        thread = while_running(work)
        thread.start()
        attempt = velm([*args, f"run.dir={folder}"], HOME)
        thread.join()
        check(attempt.code == 0 and dead, attempt)
        if limit == 1:
            compare(evaluated(HOME / "with_java"), evaluated(HOME / folder))
        else:
            (line,) = [line for line in attempt.output.splitlines() if line.startswith("METEOR ")]
            check("failed" in line and "its process ended" in line, attempt)
    return "killed once: the same scores; always: " + " ".join(line.split())[:90]


def compare(expected: dict[str, object], found: dict[str, object]) -> None:
    changed = differing(expected, found)
    check(not changed, what=f"differs: {changed}")


DISKS = [
    full_disk_in_a_checkpoint,
    full_disk_in_the_log,
    full_disk_in_preprocess,
    full_disk_in_evaluate,
    read_only_folder,
]
OTHERS = [files_of_limited_size, second_process, clock_jumps, image_that_decays]
JAVA = [dead_owner, java_that_dies]


def main() -> int:
    global HOME
    import torch

    import velm_cli.metrics.captions
    import velm_cli.stages.evaluate
    import velm_cli.stages.preprocess
    import velm_cli.stages.score_captions
    import velm_cli.stages.train  # noqa: F401

    torch.set_num_threads(1)
    HOME = Path(tempfile.mkdtemp(prefix="velm-scenarios-"))
    os.environ.setdefault("VELM_CACHE", str(HOME / "cache"))
    wanted = [
        scenario for scenario in [*DISKS, *OTHERS, *JAVA] if not sys.argv[1:] or scenario.__name__ in sys.argv[1:]
    ]
    failed = 0
    try:
        if not may_mount():
            print("no disks of a limited size: mounting a tmpfs is refused here", flush=True)
            wanted = [scenario for scenario in wanted if scenario not in DISKS]
        photos(HOME / "photos")
        for args in (
            ["preprocess", "dataset=shapes", *SHAPES],
            [*CAPTION, "name=straight"],
            [*JUDGE, f"checkpoint={HOME}/runs/train/straight", "run.dir=judged"],
        ):
            done = velm(args, HOME)
            assert done.code == 0, done.output
        if any(scenario in JAVA for scenario in wanted):
            done = velm([*WITH_JAVA, f"checkpoint={HOME}/runs/train/straight", "run.dir=with_java"], HOME)
            assert done.code == 0, done.output
        for scenario in wanted:
            began = time.monotonic()
            try:
                said = scenario()
            except Failed as error:
                failed += 1
                said = f"FAILED: {error}"
            print(f"{scenario.__name__:<26} {time.monotonic() - began:5.1f} s  {said}", flush=True)
    finally:
        shutil.rmtree(HOME, ignore_errors=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
