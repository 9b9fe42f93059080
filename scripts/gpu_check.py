"""Is velm right and fast on this machine's GPUs? `make gpu-check` and scripts/gpu_session.sh run it; it needs no data.

    python scripts/gpu_check.py [--out FOLDER] [--minutes 8] [--only parity,step] [--device cpu --small]

Right, where each check has a bound:

parity      the same weights and batch on CPU and GPU, for each vision encoder, text encoder and fusion: losses and
            gradients in float32; words of greedy, beam and nucleus decoding; bf16 and fp16
objectives  each objective, with the same random draws on both
compile     run.compile=block and model against the code as written
ranks       ddp and fsdp over NCCL on all GPUs, on one too, against one process with the whole batch
runs        velm's own commands: stop and resume to the same bits, cached features, self-critical training, evaluate
transfer    batches in pinned memory, and copies that run beside the computing

Fast, beside transformers in the same run:

step        training ViT-B/16 with a decoder of 12 layers in bf16: captions/s, share of the matrix peak, where it goes
decode      greedy and five beams, and captions per second from pixels
loader      images per second that the loader reads, by cores, against what a step needs

FOLDER gets gpu.json and gpu.log; `python scripts/gpu_page.py FOLDER/gpu.json` writes the tables of docs/gpu.md. Each
part is a process of its own, so that a part that breaks, or is not done in time, does not take the others with it. The
exit code is 1 if a check failed. Without CUDA it says so and exits with 2; `--device cpu --small` runs the same code
there: that tests this script.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

# Part -> the file that has it, and the most seconds that it may take. The checks run side by side, the measurements
# afterwards and alone; the longest first.
CHECKS = {
    "compile": ("gpu_right", 220),
    "parity": ("gpu_right", 200),
    "runs": ("gpu_runs", 180),
    "ranks": ("gpu_ranks", 120),
    "objectives": ("gpu_right", 100),
}
MEASURED = {
    "step": ("gpu_fast", 190),
    "decode": ("gpu_fast", 120),
    "transfer": ("gpu_fast", 40),
    "loader": ("gpu_fast", 60),
}
PARTS = CHECKS | MEASURED
WRITING = threading.Lock()  # of the parts that run side by side, one at a time writes what it found
LEAST = 15  # seconds, without which no part is begun
VISIBLE = ("torch", "torchvision", "transformers", "numpy", "tokenizers", "safetensors", "PIL", "hydra", "omegaconf")


@dataclass
class Report:
    """What a part has found so far; each finding is written at once, so that nothing is lost with the process."""

    path: Path | None = None
    small: bool = False
    checks: list[dict[str, Any]] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)

    def check(self, name: str, found: float, bound: float) -> None:
        """`found` must not exceed `bound`."""
        good = bool(found <= bound)  # False for NaN too
        self.checks.append({"name": name, "found": float(found), "bound": float(bound), "ok": good})
        print(f"  {'ok  ' if good else 'FAIL'}  {name:<66} {found:.2e}  (at most {bound:.0e})", flush=True)
        self._write()

    def figure(self, name: str, value: float, unit: str, *, aim: float | None = None, **about: Any) -> None:
        """A measurement, and what the project aims at."""
        self.figures.append({"name": name, "value": float(value), "unit": unit, "aim": aim, **about})
        goal = f"  (aim: {aim:g})" if aim is not None else ""
        print(f"        {name:<66} {value:,.4g} {unit}{goal}", flush=True)
        self._write()

    def text(self, name: str, text: str) -> None:
        """A page of text."""
        self.texts[name] = text
        print(f"  {name}\n{text}", flush=True)
        self._write()

    def _write(self) -> None:
        if self.path is not None:
            kept = {key: value for key, value in asdict(self).items() if key not in ("path", "small")}
            part = self.path.with_suffix(".part")
            part.write_text(json.dumps(_plain(kept)))
            part.replace(self.path)


def _plain(value: Any) -> Any:
    """The value as strict JSON: what is not finite becomes text."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, float) and value - value != 0 else value


def main() -> int:
    options = _options()
    import torch

    device = torch.device(options.device)
    if options.part:
        return _one(options, device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here, so nothing was checked (--device cpu --small tries the script)", file=sys.stderr)
        return 2
    machine = _machine(device)
    print("  ".join(f"{key} {value}" for key, value in machine.items()), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "machine": machine, "device": device.type, "small": options.small, "minutes": options.minutes,
        "date": time.strftime("%Y-%m-%d"), "parts": {},
    }  # fmt: skip
    ends = time.monotonic() + 60 * options.minutes
    asked = options.only.split(",") if options.only else list(PARTS)
    with tempfile.TemporaryDirectory() as folder, (options.out / "gpu.log").open("w") as log:
        run = partial(_run, options, Path(folder), ends, result, log)
        at_once = _side_by_side(options.device)
        # Small sizes measure nothing, so their parts need not be alone.
        stages = [(PARTS, at_once)] if options.small else [(CHECKS, at_once), (MEASURED, 1)]
        for parts, processes in stages:
            with ThreadPoolExecutor(processes) as pool:
                list(pool.map(run, [part for part in parts if part in asked]))
    failed = sum(part["state"] != "done" or _failures(part) > 0 for part in result["parts"].values())
    _table(result)
    print(f"{failed} of {len(result['parts'])} parts have failures" if failed else "all checks passed")
    print(f"written: {options.out / 'gpu.json'}, {options.out / 'gpu.log'}")
    return int(failed > 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="tiny sizes: they say nothing of speed")
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), help="folder for gpu.json and gpu.log")
    parser.add_argument(
        "--minutes", type=float, default=7.8, help="what is not done by then is left out, and said to be"
    )
    parser.add_argument("--only", default="", help=f"some of: {','.join(PARTS)}")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := sorted(set(filter(None, options.only.split(","))) - PARTS.keys()):
        parser.error(f"--only: there is no part {unknown[0]}; there are {', '.join(PARTS)}")
    return options


def _one(options: argparse.Namespace, device: Any) -> int:
    """Run one part in this process."""
    report = Report(options.into, options.small)
    module = importlib.import_module(PARTS[options.part][0])
    getattr(module, options.part)(report, device)
    return 0


def _run(options: argparse.Namespace, folder: Path, ends: float, result: dict[str, Any], log: Any, part: str) -> None:
    """Run one part in a process of its own; its findings go into the result, which is written."""
    seconds = min(PARTS[part][1], ends - time.monotonic())
    found: dict[str, Any] = {"state": "not run: no time was left", "seconds": 0.0}
    if seconds >= LEAST:
        into = folder / f"{part}.json"
        command = [sys.executable, str(Path(__file__).resolve()), f"--device={options.device}", f"--part={part}"]
        command += [f"--into={into}", *(["--small"] if options.small else [])]
        environment = os.environ | {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        if part in CHECKS or options.small:  # they share the cores
            environment["OMP_NUM_THREADS"] = str(len(os.sched_getaffinity(0)) // _side_by_side(options.device))
        began = time.monotonic()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment,
            cwd=folder, start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=seconds)
            state = "done" if process.returncode == 0 else f"failed (exit code {process.returncode})"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
            output, _ = process.communicate()
            state = f"stopped after {seconds:.0f} s"
        found = json.loads(into.read_text()) if into.exists() else {}
        found |= {"state": state, "seconds": time.monotonic() - began}
        if state != "done":
            found["error"] = output[-3000:]
        findings = [line for line in output.splitlines() if line.startswith("  ")]
        shown = findings if state == "done" else output.splitlines()[-40:]
    with WRITING:
        if seconds >= LEAST:
            log.write(f"{output}\n== {part}: {found['state']}, {found['seconds']:.0f} s\n\n")
            log.flush()
            print("\n".join([part, *shown]))
        print(f"== {part}: {found['state']}, {found['seconds']:.0f} s", flush=True)
        result["parts"][part] = found
        (options.out / "gpu.json.part").write_text(json.dumps(_plain(result), indent=1) + "\n")
        (options.out / "gpu.json.part").replace(options.out / "gpu.json")


def _side_by_side(device: str) -> int:
    """How many checks run at once: they mostly wait for single cores."""
    cores = len(os.sched_getaffinity(0))
    return max(1, min(len(CHECKS), cores // 3 if device == "cuda" else cores))


def _machine(device: Any) -> dict[str, Any]:
    """What it was measured on."""
    import platform

    import torch

    machine: dict[str, Any] = {"python": platform.python_version(), "cores": len(os.sched_getaffinity(0))}
    for name in VISIBLE:
        machine[name] = getattr(importlib.import_module(name), "__version__", "?")
    if device.type == "cuda":
        machine |= {
            "gpu": torch.cuda.get_device_name(), "gpus": torch.cuda.device_count(), "cuda": torch.version.cuda,
            "memory_gb": round(torch.cuda.get_device_properties(0).total_memory / 2**30),
        }  # fmt: skip
    return machine


def _failures(part: dict[str, Any]) -> int:
    return sum(not check["ok"] for check in part.get("checks", ()))


def _table(result: dict[str, Any]) -> None:
    """The short table that is printed last."""
    print(f"\n{'part':<12}{'checks':>8}{'failed':>8}{'seconds':>9}  state")
    for name, part in result["parts"].items():
        checks = part.get("checks", [])
        print(f"{name:<12}{len(checks):>8}{_failures(part):>8}{part['seconds']:>9.0f}  {part['state']}")
    aimed = [figure for part in result["parts"].values() for figure in part.get("figures", ()) if figure["aim"]]
    for figure in aimed:
        print(f"{figure['name']:<58} {float(figure['value']):>8.3g} {figure['unit']}  (aim: {figure['aim']:g})")
    for name, part in result["parts"].items():
        for check in part.get("checks", ()):
            if not check["ok"]:
                print(f"FAIL  {name}: {check['name']}: {float(check['found']):.2e} (at most {check['bound']:.0e})")


if __name__ == "__main__":
    sys.exit(main())
