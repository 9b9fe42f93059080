"""Is a task learned better from a captioner than from nothing? One table of all tasks, on drawn scenes.

    python scripts/pretrain_or_scratch.py --folder /tmp/pretraining     # --only vqa,reason; again: goes on

A captioner is trained for --pretrain steps. Each task then learns for --steps steps: from it, and from nothing; and
from nothing for as many as captioner and task had together. Model, data, rate and seed are the same; the schedule is
laid for the steps that there are. Scores are of test scenes, whose kinds of objects training never shows, in per cent.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

SCENES = ["dataset=shapes", "dataset.num_train=4000", "dataset.num_val=100", "dataset.num_test=300"]
SEES = ["vision=convnet", "data.crop_scale=1.0"]
WRITES = ["text=transformer", "text.layers=1", "text.dropout=0"]
JOINED = ["fusion=cross_modal", "fusion.layers=3", "fusion.dropout=0"]
BEFORE = ["fusion=prefix", "fusion.mapper=tokens"]  # as conversations are read
RUN = ["optim.lr=1e-3", "optim.warmup_steps=100", "optim.grad_clip=5", "run.batch_size=32", "run.threads=1",
       "run.validate_every=0", "run.validate_images=0"]  # fmt: skip
TASKS = {  # what is asked of the data, and the fusion
    "vqa": (["dataset.examples=questions", "data.examples_per_image=3"], JOINED),
    "retrieve": (["data.captions_per_image=3"], JOINED),
    "classify": (["dataset.examples=classes"], JOINED),
    "reason": (["dataset.examples=statements", "vision.images=2", "data.examples_per_image=2"], JOINED),
    "translate": (["dataset.examples=translations"], JOINED),
    "summarise": (["dataset.examples=summaries"], JOINED),
    "chat": (["dataset.examples=chat"], BEFORE),
}
COLUMNS = ("from the captioner", "from nothing", "from nothing, as many steps in all")


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--folder", type=Path, required=True, help="for data, runs and logs")
    asked.add_argument("--pretrain", type=int, default=1000)
    asked.add_argument("--steps", type=int, default=400)
    asked.add_argument("--only", default=",".join(TASKS))
    options = asked.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    began, rows = time.perf_counter(), []
    for task in options.only.split(","):
        rows.append([f"`{task}`", *scores(task, options.folder, options.pretrain, options.steps)])
        print(f"| task | score | {' | '.join(COLUMNS)} |\n|---|---|---|---|---|")
        for cells in rows:
            print(f"| {' | '.join(cells)} |", flush=True)
    print(f"{(time.perf_counter() - began) / 60:.0f} minutes")
    return 0


def scores(task: str, folder: Path, pretrain: int, steps: int) -> Iterator[str]:
    """The name of the task's first score, and the three scores with their intervals."""
    data, fusion = TASKS[task]
    captioner = f"captioner-{fusion[0].partition('=')[2]}"
    captions = [*SCENES, "dataset.store=stores/captions", "data.captions_per_image=3", "loss.gamma=0.1"]
    velm(folder, "train", *captions, *SEES, *WRITES, *fusion, *RUN, f"run.max_steps={pretrain}", f"name={captioner}")
    own = [*SCENES, *data, f"dataset.store=stores/{task if task != 'retrieve' else 'captions'}", f"task={task}"]
    fresh = SEES if task == "classify" else [*SEES, *WRITES, *fusion]  # which reads no text
    for name, start, length in (
        ("from-captions", [f"checkpoint=runs/train/{captioner}", "data.crop_scale=1.0"], steps),
        ("scratch", fresh, steps),
        ("scratch-long", fresh, pretrain + steps),
    ):
        stage = "finetune" if name == "from-captions" else "train"
        name = f"{task}-{name}"
        velm(folder, stage, *own, *start, *RUN, f"run.max_steps={length}", f"name={name}")
        velm(folder, "eval", f"checkpoint=runs/{stage}/{name}", "split=test", f"name={name}", "report.page=false")
        found = json.loads((folder / f"runs/evaluate/{name}/scores.json").read_text(encoding="utf-8"))
        (column,) = (each for each in found["columns"] if each["key"] == found["primary"])
        if start is not fresh:
            yield column["label"]
        value, *ends = (column["scale"] * each for each in (found[column["key"]], *found["intervals"][column["key"]]))
        yield f"{value:.1f} ({ends[0]:.1f} to {ends[1]:.1f})"


def velm(folder: Path, stage: str, *words: str) -> None:
    """Run a command; data that it needs are drawn first. Its output goes into a file of the folder."""
    name = next(word for word in words if word.startswith("name=")).partition("=")[2]
    commands = [[stage, *words]]
    store = next((word for word in words if word.startswith("dataset.store=")), None)
    if store is not None and not (folder / store.partition("=")[2]).exists():
        commands.insert(0, ["preprocess", *(word for word in words if word.startswith("dataset"))])
    with open(folder / f"{stage}-{name}.log", "a", encoding="utf-8") as log:
        for command in commands:
            call = [sys.executable, "-m", "velm_cli", *command]
            if subprocess.run(call, cwd=folder, stdout=log, stderr=log).returncode:
                raise SystemExit(f"velm {' '.join(command)} failed: {log.name}")


if __name__ == "__main__":
    raise SystemExit(main())
