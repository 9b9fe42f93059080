"""The part of gpu_check.py that runs velm's own commands on the device: resume, cached features, rewards, captions."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_check import Report

from velm_cli.cli import main as velm
from velm_cli.engine import loop

DATA = ["dataset=shapes", "dataset.num_train=48", "dataset.num_val=8", "dataset.num_test=16", "tokenizer.min_count=1"]
TRAIN = [
    "run.batch_size=8", "run.max_steps=12", "run.checkpoint_every=4", "run.log_every=1", "run.validate_every=6",
    "run.deterministic=true", "optim.warmup_steps=4", "metrics.names=[bleu,cider]", "metrics.resamples=0",
]  # fmt: skip
SIZES = ["vision.width=64", "vision.layers=2", "text.width=64"]
TRANSFORMER = ["vision=vit", *SIZES, "loss.beta=0.1", "loss.gamma=0.1", "data.workers=2"]
RECURRENT = ["vision=vit", *SIZES, "text=lstm", "fusion=attention"]
MODELS = {  # model -> name of its runs, options
    "vit + transformer + cross_modal": ("transformer", TRANSFORMER),
    "vit + lstm + attention": ("lstm", RECURRENT),
}
STOPPED_AT = 6  # the step before which a run is told to stop
SAME = 1e-4  # of losses from cached features: the encoder saw other batches
DEVICES_APART = 0.25  # of the captions by CPU and GPU, whose float32 products a GPU rounds to TF32


def runs(report: Report, device: torch.device) -> None:
    """Everything in a folder of its own, through the command line."""
    on = [f"run.device={device.type}"]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        _velm("preprocess", *DATA)
        for model, (name, options) in list(MODELS.items())[: 1 if report.small else None]:
            if not report.small:  # 256 positions: a GPU splits its attention over so many
                options = [*options, "vision.patch_size=4"]
            whole = _train(f"{name}-whole", *on, *options)
            with _stop_before(STOPPED_AT):
                _train(f"{name}-stopped", *on, *options)
            report.check(
                f"{model}: the run was not stopped", not Path(f"runs/train/{name}-stopped/PREEMPTED").exists(), 0
            )
            resumed = _train(f"{name}-stopped", *on, *options)
            differing = sum(a != b for a, b in zip(_losses(whole), _losses(resumed), strict=True))
            report.check(f"{model}: losses that differ after stop and resume", differing, 0)
            report.check(f"{model}: weights that differ after stop and resume", _digest(whole) != _digest(resumed), 0)
        _cached_features(report, on)
        _rewards(report, on)
        _evaluated(report, device, on)


def _cached_features(report: Report, on: list[str]) -> None:
    frozen = [*on, *TRANSFORMER, "vision.freeze=all", "loss.beta=0", "run.precision=fp32"]
    plain, cached = _train("plain", *frozen), _train("cached", *frozen, "data.cache=fp32")
    apart = max(abs(a - b) / abs(a) for a, b in zip(_losses(plain), _losses(cached), strict=True))
    report.check("feature cache: losses against those without it", apart, SAME)


def _rewards(report: Report, on: list[str]) -> None:
    start = "checkpoint=runs/train/transformer-whole"
    options = ["loss.text=self_critical", "loss.beta=0", "loss.gamma=0", "run.max_steps=4", "optim.lr=1e-4"]
    _velm("finetune", start, "name=rewarded", *on, *DATA, *TRAIN, *options)
    lines = [line for line in _lines(Path("runs/finetune/rewarded")) if "reward" in line]
    lost = len(lines) != 4 or not all(math.isfinite(line["reward"]) for line in lines)
    report.check("self-critical training: rewards that are not there or not finite", lost, 0)


def _evaluated(report: Report, device: torch.device, on: list[str]) -> None:
    """A model that has learned to tell the images apart: its captions by the CPU and by the device."""
    run = Path("runs/train/transformer-whole")
    if not report.small:
        taught = [*on, "vision=vit", *SIZES, "optim.lr=3e-3", "run.max_steps=300"]
        run = _train("taught", *taught, "run.validate_every=0", "run.checkpoint_every=1000", "run.log_every=100")
    captions = []
    for where in ("cpu", device.type):
        how = [f"checkpoint={run}", f"run.device={where}", "run.precision=fp32", "decode.beams=3"]
        _velm("evaluate", *how, f"name=on-{where}", "fresh=true", "metrics.names=[bleu]", "report.attention=2")
        folder = max(Path("runs/evaluate").glob(f"on-{where}*"), key=lambda path: path.stat().st_mtime)
        captions.append(
            {row["image_id"]: row["caption"] for row in json.loads((folder / "predictions.json").read_text())}
        )
    here, there = captions
    differing = sum(here[image] != there[image] for image in here) / len(here) if here.keys() == there.keys() else 1.0
    report.figure("velm evaluate: different captions of the images", len(set(here.values())), "", images=len(here))
    report.check("velm evaluate: share of captions other than the CPU's", differing, DEVICES_APART)


def _train(name: str, *options: str) -> Path:
    _velm("train", f"name={name}", *DATA, *TRAIN, *options)
    return Path("runs/train") / name


def _velm(*args: str) -> None:
    """`velm ARGS` in this process. Raises RuntimeError where it fails."""
    try:
        velm(list(args))
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"velm {' '.join(args)}: exit code {stop.code}") from None


@contextlib.contextmanager
def _stop_before(step: int) -> Iterator[None]:
    """Within it a training run gets SIGTERM before it does this step."""
    train_step = loop.train_step

    def stopped(run: Any, number: int, *rest: Any) -> Any:
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(run, number, *rest)

    loop.train_step = stopped
    try:
        yield
    finally:
        loop.train_step = train_step


def _lines(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "train"]


def _losses(run: Path) -> list[float]:
    return [line["loss_text"] for line in _lines(run)]


def _digest(run: Path) -> str:
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
