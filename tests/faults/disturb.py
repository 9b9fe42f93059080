"""Kills velm at random moments, types the same command until it finishes, and compares every byte with an undisturbed run.

    python tests/faults/disturb.py                                    # 10, 20, 10 kills and 12 storms of SIGTERM
    python tests/faults/disturb.py --preprocess 0 --evaluate 0 --train 20 --storms 0 --seed 3
    python tests/faults/disturb.py --task vqa        # questions, whose images and examples are two tables

One process imports torch and forks one for each attempt, so the random moments are of the work and not of the
import. The attempt is then `velm_cli.cli.main`, as `velm` calls it. A moment before the kill it is asked where it is
(faulthandler): that is the table's third column.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SHAPES = ["dataset.num_train=24", "dataset.num_val=8", "dataset.num_test=8", "tokenizer.min_count=1"]
MODEL = [
    "vision=vit", "vision.width=32", "vision.layers=1", "vision.heads=2", "text.width=32", "text.layers=1", "text.heads=2",
    "fusion.layers=1", "fusion.heads=2", "run.log_every=1",
]  # fmt: skip
# Everything that has state, and a checkpoint every other step: many kills hit one.
TRAIN = [
    "train", *SHAPES, *MODEL, "run.max_steps=24", "run.checkpoint_every=2", "run.validate_every=7", "run.accumulation=2",
    "run.ema_decay=0.9", "loss.beta=0.1", "loss.gamma=linear(0,1,2ep)", "data.crop_scale=0.6", "run.batch_size=3",
    "data.workers=1",
]  # fmt: skip
CACHED = ["vision.freeze=all", "data.cache=bf16", "data.views=3"]
EVALUATE = ["evaluate", "split=train", "limit=24", "decode.batch_size=4"]
PREPROCESS = ["preprocess", "dataset.image_size=48", "preprocess.shard_images=8", "preprocess.workers=1",
              "tokenizer.min_count=1"]  # fmt: skip
# By task: its data, how it is trained and evaluated, and what either leaves.
DATA = {"caption": [], "vqa": ["dataset.questions=true"]}
TRAINED = {"caption": ["metrics.names=[bleu,cider]"], "vqa": ["task=vqa", "task.min_answers=1", "loss.alpha=0.3"]}
JUDGED = {"caption": ["metrics.names=[bleu,rouge_l,cider]"], "vqa": []}
LEFT = {
    "caption": ["predictions.json", "scores.json", "per_image.jsonl"],
    "vqa": ["predictions.json", "scores.json", "per_example.jsonl", "probabilities.jsonl"],
}
TIMING = {"captions_per_s", "images_per_s", "data_wait", "utilisation", "crc32"}
TOKEN = "VELM_FAULTS"


@dataclass
class Attempt:
    """How one process ended: its exit code (negative: the signal), where it was when disturbed, what it printed."""

    code: int
    where: str | None
    seconds: float
    output: str
    left: list[str]  # processes that outlived it by 10 s


@dataclass
class Row:
    """A line of the table."""

    stage: str
    run: int
    number: int  # of the disturbance, in its run
    where: str
    result: str


def velm(args: list[str], cwd: Path, delay: float | None = None, storm: int = 0) -> Attempt:
    """`velm ARGS` in `cwd` in a forked process; after `delay` seconds SIGKILL, or `storm` SIGTERMs in a row."""
    log, trace = cwd / ".output", cwd / ".trace"
    token = f"{os.getpid()}-{time.monotonic_ns()}"
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _become(args, cwd, log, trace, token)
    where = code = None
    while code is None:
        if delay is not None and where is None and time.monotonic() - began > delay:
            os.kill(child, signal.SIGPROF)  # says where it is
            time.sleep(0.003)
            for _ in range(storm):
                code = code if code is not None else _ended(child)
                if code is None:
                    os.kill(child, signal.SIGTERM)
                time.sleep(0.01)
            if not storm:
                os.kill(child, signal.SIGKILL)
            where = _where(trace)
        code = code if code is not None else _ended(child)
        if time.monotonic() - began > 120:
            os.kill(child, signal.SIGKILL)
            raise SystemExit(f"hangs: velm {' '.join(args)}\n{log.read_text()}\n{_where(trace)}")
        time.sleep(0.002)
    seconds = time.monotonic() - began
    return Attempt(code, where, seconds, log.read_text(errors="replace"), _left_behind(token))


def _become(args: list[str], cwd: Path, log: Path, trace: Path, token: str) -> None:
    os.setsid()
    os.chdir(cwd)
    os.environ[TOKEN] = token
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    file = open(trace, "w")  # noqa: SIM115 (open as long as the process)
    faulthandler.register(signal.SIGPROF, file=file, all_threads=False)
    from velm_cli.cli import main

    code = 1
    try:
        main(args)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _ended(child: int) -> int | None:
    pid, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def _where(trace: Path) -> str:
    """The innermost function of velm that the process was in, and what of others it had called."""
    frames = re.findall(r'File "([^"]+)", line \d+ in (\S+)', trace.read_text())
    for path, function in frames:
        if "/velm_cli/" in path and "/cli.py" not in path:
            return f"{path.rpartition('/velm_cli/')[2]}:{function}"
    return "composing the config" if frames else "starting"


def _left_behind(token: str) -> list[str]:
    """Processes started by the attempt (its Java, its workers) that still run after 10 seconds."""
    needle = f"{TOKEN}={token}".encode()
    for _ in range(100):
        alive = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and needle in (entry / "environ").read_bytes():
                    alive.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:200])
            except OSError:
                continue
        if not alive:
            return []
        time.sleep(0.1)
    return alive


# ------------------------------------------------------------------------------------ what must be the same


def tree(folder: Path) -> dict[str, object]:
    """Every file of a store, by its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "preview.png"
    }


def trained(folder: Path, task: str = "caption") -> dict[str, object]:
    names = ["model.safetensors", "best.safetensors", *LEFT[task]]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = [{k: v for k, v in line.items() if k not in TIMING} for line in lines]
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    tensors = {file.name: file.read_bytes() for file in newest.glob("*.safetensors")}
    return {name: (folder / name).read_bytes() for name in names} | {"metrics.jsonl": metrics} | tensors


def evaluated(folder: Path, task: str = "caption") -> dict[str, object]:
    (folder,) = [path.parent for path in (folder / "evaluate").glob("*/DONE")]
    names = [*LEFT[task], *(["facts.json"] if task == "caption" else [])]
    return {name: (folder / name).read_bytes() for name in names}


def differing(one: dict[str, object], other: dict[str, object]) -> str:
    return ", ".join(sorted(name for name in {*one, *other} if one.get(name) != other.get(name)))


# ------------------------------------------------------------------------------------ the harness


def disturb(
    stage: str,
    count: int,
    place: Callable[[int], tuple[list[str], Path]],
    outcome: Callable[[int], dict[str, object]],
    rng: random.Random,
    storm: int = 0,
) -> list[Row]:
    """`count` disturbances of runs that `place` names by number; run 0 is the undisturbed one."""
    args, cwd = place(0)
    straight = velm(args, cwd)
    assert straight.code == 0, straight.output
    expected = outcome(0)
    rows: list[Row] = []
    run = 0
    while len(rows) < count:
        run += 1
        args, cwd = place(run)
        mine: list[Row] = []
        while True:
            enough = len(rows) + len(mine) >= count
            attempt = velm(args, cwd, None if enough else rng.uniform(0.05, 1) * straight.seconds, storm)
            if attempt.where is not None:
                how = f"SIGTERM x {storm}: " + _manner(attempt) if storm else ""
                how += f"; left behind: {attempt.left}" if attempt.left else ""
                mine.append(Row(stage, run, len(mine) + 1, f"{attempt.where}{_step(attempt)}", how))
            ended = attempt.code == 0 and "stopped by SIGTERM" not in attempt.output
            if ended:
                break
            if attempt.where is None:
                raise SystemExit(f"{stage}: does not go on after {[row.where for row in mine]}:\n{attempt.output}")
        changed = differing(expected, outcome(run))
        for row in mine:
            row.result = (f"{row.result}; " if row.result else "") + (f"DIFFERS: {changed}" if changed else "same bits")
            print(line(row), flush=True)
        rows += mine
    return rows


def _manner(attempt: Attempt) -> str:
    if "stopped by SIGTERM" in attempt.output:
        return f"PREEMPTED, exit {attempt.code}"
    if attempt.code == -signal.SIGTERM:
        return "ended before it had begun" if "run  " not in attempt.output else "KILLED by the signal"
    return f"finished, exit {attempt.code}"


def _step(attempt: Attempt) -> str:
    steps = re.findall(r"step +(\d+)/", attempt.output)
    return f" (step {steps[-1]})" if steps else ""


def line(row: Row) -> str:
    return f"{row.stage:<16} run {row.run:>2}  {row.number:>2}  {row.where:<62} {row.result}"


def photos(folder: Path, count: int = 80) -> Path:
    """Small noisy photos, one file in twenty damaged, with captions beside them and a table of three questions each."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    table = []
    for number in range(count):
        pixels = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        file = folder / f"photo{number:03d}.jpg"
        Image.fromarray(pixels).resize((320, 240)).save(file, quality=90)
        file.with_suffix(".txt").write_text(f"a photo of number {number % 7}\nnoise in {number % 5} colours\n")
        if number % 20 == 7:
            file.write_bytes(file.read_bytes()[:500])
        for colours in range(3):
            answers = ["yes" if number % 5 == colours else "no"] * 3
            table.append({"image": file.name, "question": f"is the noise in {colours} colours?", "answers": answers})
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preprocess", type=int, default=10, help="kills of preprocess")
    parser.add_argument("--train", type=int, default=20, help="kills of train")
    parser.add_argument("--evaluate", type=int, default=10, help="kills of evaluate")
    parser.add_argument("--storms", type=int, default=12, help="storms of ten SIGTERMs, on train and evaluate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--task", choices=DATA, default="caption")
    options = parser.parse_args()
    task, rng = options.task, random.Random(options.seed)
    train = [*TRAIN, *DATA[task], *TRAINED[task]]
    import torch

    import velm_cli.stages.evaluate
    import velm_cli.stages.preprocess
    import velm_cli.stages.train  # noqa: F401

    torch.set_num_threads(1)
    home = Path(tempfile.mkdtemp(prefix="velm-faults-"))
    os.environ.setdefault("VELM_CACHE", str(home / "cache"))
    rows: list[Row] = []
    began = time.monotonic()
    try:
        if options.preprocess:
            images = photos(home / "photos")

            def packing(run: int) -> tuple[list[str], Path]:
                (home / f"p{run}").mkdir(exist_ok=True)
                data = ["dataset=folder", f"dataset.root={images}"]
                if task == "vqa":
                    data = ["dataset=manifest", f"dataset.file={images / 'questions.jsonl'}"]
                return [*PREPROCESS, *data], home / f"p{run}"

            rows += disturb("preprocess", options.preprocess, packing, lambda n: tree(home / f"p{n}/stores"), rng)
        if options.train or options.evaluate or options.storms:
            made = velm(["preprocess", "dataset=shapes", *SHAPES, *DATA[task]], home)
            assert made.code == 0, made.output
        if options.train:
            rows += disturb(
                "train",
                options.train,
                lambda run: ([*train, f"name=kill{run}"], home),
                lambda run: trained(home / f"runs/train/kill{run}", task),
                rng,
            )
        if options.evaluate or options.storms:
            done = velm([*train, *CACHED, "name=judged"], home)
            assert done.code == 0, done.output

            def judging(run: int) -> tuple[list[str], Path]:
                where = [f"checkpoint={home}/runs/train/judged", f"run.dir=judged{run}"]
                return [*EVALUATE, *JUDGED[task], *where], home

            def scores(run: int) -> dict[str, object]:
                return evaluated(home / f"judged{run}", task)

            rows += disturb("evaluate", options.evaluate, judging, scores, rng)
        if options.storms:

            def caching(run: int) -> tuple[list[str], Path]:
                shutil.rmtree(home / "stores/shapes/features", ignore_errors=True)
                return [*train, *CACHED, f"name=storm{run}"], home

            third = options.storms // 3
            rows += disturb(
                "train, cached",
                options.storms - third,
                caching,
                lambda run: trained(home / f"runs/train/storm{run}", task),
                rng,
                storm=10,
            )
            for run in range(options.evaluate + 9):
                shutil.rmtree(home / f"judged{run}", ignore_errors=True)
            rows += disturb("evaluate", third, judging, scores, rng, storm=10)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    bad = [row for row in rows if not row.result.endswith("same bits") or "left behind" in row.result]
    bad += [row for row in rows if "KILLED" in row.result]
    print(f"{len(rows)} disturbances in {time.monotonic() - began:.0f} s, {len(bad)} bad")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
