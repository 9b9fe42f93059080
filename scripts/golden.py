"""Does this tree compute what a revision of it does? Thirty steps of each run, compared bit by bit.

    python scripts/golden.py                        the last commit (its parent, where nothing is uncommitted)
    python scripts/golden.py --base v0.1            any revision, or the folder of a checkout
    python scripts/golden.py --only caption lstm    some of the runs

Bits depend on the processor and on torch, so both trees run here, at the same time, on one thread each. A refactoring
must leave all of them; a change of what is computed names the runs that it moves. Exits with 1 where any bit differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
DATA = ["dataset.num_train=24", "dataset.num_val=8", "dataset.num_test=8", "tokenizer.min_count=1"]
VIT = ["vision=vit", "vision.width=32", "vision.layers=1", "vision.heads=2"]
TEXT = ["text.width=32", "text.layers=1"]
CROSS = ["fusion=cross_modal", "fusion.layers=1", "fusion.heads=2", "text.heads=2"]
RUNS = {
    "caption": [*VIT, *TEXT, *CROSS, "loss.beta=0.1", "loss.gamma=0.1", "data.crop_scale=0.7", "run.validate_every=10"],
    "lstm": [*VIT, *TEXT, "text=lstm", "fusion=concat", "run.accumulation=2"],
    "resnet18": ["vision=resnet18", "vision.weights=none", "vision.image_size=64", *TEXT, "fusion=concat"],
    "gru": ["vision=convnet", "vision.width=32", *TEXT, "text=gru", "fusion=attention", "fusion.heads=2",
            "loss.alpha=learned", "loss.gamma=learned", "loss.joint=sigmoid"],
    "gated": [*VIT, *TEXT, "text.heads=2", "fusion=gated", "fusion.heads=2", "loss.label_smoothing=0.1"],
    "prefix": [*VIT, "text=gpt2", "text.name=language_model", "fusion=prefix", "fusion.length=3"],
    "lora": [*VIT, "text=gpt2", "text.name=language_model", "text.lora_rank=2", "fusion=cross_modal", "fusion.heads=2"],
    "masked": [*VIT, *TEXT, *CROSS, "loss.text=masked", "loss.beta=0.5", "loss.image=masked_patches",
               "loss.patch_size=8"],
    "matching": [*VIT, *TEXT, *CROSS, "loss.gamma=0.5", "loss.joint=matching"],
    "sampled": [*VIT, *TEXT, *CROSS, "loss.scheduled_sampling=linear(0,0.5,20)"],
    "rewarded": [*VIT, *TEXT, *CROSS, "loss.text=self_critical"],
    "averaged": [*VIT, *TEXT, *CROSS, "run.ema_decay=0.95", "run.validate_every=10"],
    "cached": ["vision=convnet", "vision.freeze=all", "data.cache=bf16", *TEXT, *CROSS],
    "bf16": [*VIT, *TEXT, *CROSS, "run.precision=bf16", "loss.gamma=0.1"],
}  # fmt: skip
FIXED = ["run.max_steps=30", "run.batch_size=4", "run.log_every=1", "run.threads=1", "metrics.names=[cider]"]
UNTIMED = ("loss", "weight", "grad_norm", "lr", "cider", "reward")  # figures by how their names begin


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="revision or folder to compare with")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), metavar="RUN", help=" ".join(RUNS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="velm-golden-") as folder:
        place = Path(folder)
        name, base = base_tree(options.base, place / "base", "velm_cli", "conf")
        print(f"this tree against {name}: {len(options.only)} runs of 30 steps")
        sides = {"base": base, "here": ROOT}
        with ThreadPoolExecutor(2) as pool:
            model = _language_model(place / "language_model")
            list(pool.map(lambda side: _prepare(sides[side], place / f"{side}-runs", model), sides))
            differ = 0
            for run in tqdm(options.only, unit="run", disable=None):
                found = pool.map(lambda side, run=run: _trained(sides[side], place / f"{side}-runs", run), sides)
                line = _compared(*found)
                differ += line is not None
                tqdm.write(f"{run:<10}  {line or 'the same bits'}")
    print("every bit is the same" if not differ else f"{differ} of {len(options.only)} runs differ")
    return 1 if differ else 0


def base_tree(revision: str | None, folder: Path, *parts: str) -> tuple[str, Path]:
    """What is compared with, in words, and the folder of its tree, which gets these parts of it."""
    if revision is not None and Path(revision).is_dir():
        return revision, Path(revision).resolve()
    if revision is None:
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "velm_cli", "conf"], cwd=ROOT).returncode
        revision = "HEAD" if changed else "HEAD~1"
    archive = subprocess.run(["git", "archive", revision, *parts], cwd=ROOT, capture_output=True)
    if archive.returncode:
        sys.exit(f"--base {revision}: {archive.stderr.decode().strip()}")
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    commit = subprocess.check_output(["git", "log", "-1", "--format=%h %s", revision], cwd=ROOT, text=True)
    return f"{revision} ({commit.strip()})", folder


def _velm(tree: Path, folder: Path, *args: str) -> None:
    """`velm ARGS` of this tree. Its output is shown where it fails."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "velm_cli", *args]
    if sys.version_info < (3, 11):  # which knows no -P, and puts the working folder, a new one of ours, first
        command.remove("-P")
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{tree}: velm {' '.join(args)}\n{done.stdout}{done.stderr}")


def _prepare(tree: Path, folder: Path, language_model: Path) -> None:
    """A store made by the tree, and the language model."""
    shutil.copytree(language_model, folder / "language_model")
    _velm(tree, folder, "preprocess", "dataset=shapes", *DATA)


def _language_model(folder: Path) -> Path:
    """One of a few random weights, for the runs that need one."""
    sys.path.insert(0, str(ROOT / "tests"))
    import torch
    from tiny_models import language_model
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    return language_model(folder, ["a large red square left of a small blue circle"])


def _trained(tree: Path, folder: Path, run: str) -> tuple[list[dict], str]:
    """The figures of each line of metrics.jsonl, and the digest of the weights."""
    _velm(tree, folder, "train", *DATA, *FIXED, *RUNS[run], f"name={run}")
    lines = map(json.loads, (folder / "runs/train" / run / "metrics.jsonl").read_text().splitlines())
    figures = [
        {"step": line["step"], "kind": line["kind"]} | {k: v for k, v in line.items() if k.startswith(UNTIMED)}
        for line in lines
        if line["kind"] in ("train", "validation")
    ]
    return figures, _digest(folder / "runs/train" / run / "model.safetensors")


def _digest(weights: Path) -> str:
    """Of all tensors, with those that the run never changed, whatever else the files say of themselves."""
    from velm_cli.models.weights import read_state

    digest = hashlib.sha256()
    for name, tensor in sorted(read_state(weights)[0].items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def _compared(base: tuple[list[dict], str], here: tuple[list[dict], str]) -> str | None:
    """The first difference, in words; None without one."""
    for ours, theirs in zip(here[0], base[0], strict=False):
        for key in {**theirs, **ours}:
            if ours.get(key) != theirs.get(key):
                values = f"{theirs.get(key)} -> {ours.get(key)}"
                return f"from step {ours['step']} on ({ours['kind']}): {key} {values}"
    if len(here[0]) != len(base[0]):
        return f"{len(base[0])} -> {len(here[0])} lines in metrics.jsonl"
    return None if here[1] == base[1] else "the figures are the same, and the weights are not"


if __name__ == "__main__":
    sys.exit(main())
