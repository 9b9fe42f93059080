"""doctor: does every component work on this machine, and if not, how is it mended?

Each check does the thing itself (scores a caption with METEOR and SPICE, multiplies in bf16), since what
is installed need not work.
"""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from velm_cli.data.opening import open_store
from velm_cli.engine.device import cpu_multiplies_bf16, pick_device
from velm_cli.errors import StageError, UserError
from velm_cli.metrics.captions import score_captions
from velm_cli.metrics.fetch import fetch_spice
from velm_cli.metrics.java import JavaError, find_java, memory_limit
from velm_cli.progress import progress_bar
from velm_cli.schema import Device, DoctorRoot, MetricsConfig

Finding = tuple[bool, str]  # does it work; what was seen, and where it does not, how to mend it

MAPS = Path("/proc/self/maps")  # what this process has loaded
PACKAGES = ("torch", "torchvision", "transformers", "hydra-core", "omegaconf", "pycocoevalcap", "tokenizers")


def run(config: DoctorRoot) -> float:
    """Print a line for each component; the number of those that do not work."""
    if config.fix == "spice":
        fetch_spice(Path(config.folder) if config.folder else None)
    if config.store is not None:
        return _store(Path(config.store))
    checks: dict[str, Callable[[], Finding]] = {
        "python": _python,
        "packages": _packages,
        "device": _device,
        "bf16": _bf16,
        "memory": _memory,
        "allocator": _allocator,
        "disk": _disk,
        "java": _java,
        "METEOR": lambda: _metric("meteor", "METEOR"),
        "SPICE": lambda: _metric("spice", "SPICE"),
        "data": _data,
    }
    problems = 0
    for name, finding in _examined(checks):
        works, text = finding
        problems += not works
        tqdm.write(f"{'ok' if works else '--'}  {name:<9} {text}")
    print("everything works" if not problems else f"{problems} of {len(checks)} do not work (marked --)")
    return float(problems)


def _store(path: Path) -> float:
    """Every byte of the store against the checksums of when it was written; the number of damaged shards."""
    store = open_store(path)  # raises with one line where anything but an image shard is damaged
    shards = list(progress_bar(store.damage(), "checks", unit="shard"))
    problems = [line for line in shards if line]
    for line in problems:
        print(f"--  {line}")
    if problems:
        raise StageError(f"{path}: {len(problems)} of {len(shards)} shards are damaged; velm preprocess ... fresh=true")
    unknown = (
        "" if "crc32_of" in store.manifest else "; made by an older velm, without checksums of captions and labels"
    )
    images = "" if store.one_image_each or not store.has_images else f" and {store.num_images:,} images"
    print(f"{path}: {sum(store.counts.values()):,} records{images}, all bytes are as they were written{unknown}")
    return 0.0


def _examined(checks: dict[str, Callable[[], Finding]]) -> Iterator[tuple[str, Finding]]:
    with progress_bar(checks.items(), leave=False) as bar:
        for name, check in bar:
            bar.set_description(name)
            yield name, check()


def _python() -> Finding:
    return True, f"{platform.python_version()} on {platform.platform()}"


def _packages() -> Finding:
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return False, f"missing: {', '.join(missing)}; run: pip install {' '.join(missing)}"
    return True, ", ".join(found)


def _device() -> Finding:
    device = pick_device(Device.auto)
    if device.type == "cuda":
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return True, f"{len(names)} CUDA: {', '.join(names)}"
    return True, f"{device}, {torch.get_num_threads()} threads (no CUDA device)"


def _bf16() -> Finding:
    """Times matrix products in both precisions; `run.precision=auto` goes by the hardware's own word."""
    device = pick_device(Device.auto)
    seconds = {dtype: _product_seconds(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    ratio = seconds[torch.float32] / seconds[torch.bfloat16]
    hardware = device.type != "cpu" or cpu_multiplies_bf16()
    text = f"matrix products {ratio:.1f} times as fast as fp32"
    return True, f"{text}; run.precision=auto takes {'bf16' if hardware and device.type != 'mps' else 'fp32'}"


def _product_seconds(device: torch.device, dtype: torch.dtype) -> float:
    a = torch.randn(512, 512, device=device).to(dtype)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        float((a @ a)[0, 0])
        best = min(best, time.perf_counter() - began)
    return best


def _memory() -> Finding:
    gigabytes = memory_limit() / 2**30
    return gigabytes >= 4, f"{gigabytes:.1f} GiB" + ("" if gigabytes >= 4 else "; SPICE and training want 4")


def _allocator() -> Finding:
    """Who hands out memory: a step on a CPU asks for that of thousands of tensors."""
    if pick_device(Device.auto).type != "cpu" or not MAPS.exists():
        return True, "no matter"
    mapped = MAPS.read_text(encoding="utf-8", errors="replace")
    for name in ("tcmalloc", "jemalloc", "mimalloc"):
        if f"lib{name}" in mapped:
            return True, name
    library = ctypes.util.find_library("tcmalloc_minimal") or ctypes.util.find_library("tcmalloc")
    how = f"LD_PRELOAD={library} velm train ..." if library else "install libtcmalloc-minimal4 (Debian's name)"
    return True, f"the C library's; steps on a CPU take a tenth less time with tcmalloc: {how}"


def _disk() -> Finding:
    free = shutil.disk_usage(".").free / 2**30
    writable = os.access(".", os.W_OK)
    if not writable:
        return False, f"{Path.cwd()} is read-only; run velm where it may write stores/ and runs/"
    return free >= 2, f"{free:.1f} GiB free here" + ("" if free >= 2 else "; stores and runs want at least 2")


def _java() -> Finding:
    try:
        java = find_java()
    except JavaError as error:
        return False, f"{error} (without it METEOR and SPICE are left out)"
    return True, f"{java.version} ({java.program})"


def _metric(name: str, title: str) -> Finding:
    began = time.perf_counter()
    scores = score_captions(
        {1: ["a red circle above a blue square"]},
        {1: "a red circle over a square"},
        MetricsConfig(names=[name], java_timeout=300.0),
        progress=False,
    )
    value = scores.corpus[title]
    if value is None:
        return False, scores.reasons[title]
    return True, f"scored a caption ({value:.3f}) in {time.perf_counter() - began:.1f} s"


def _data() -> Finding:
    stores, damaged = [], []
    for manifest in sorted(Path("stores").glob("*/manifest.json")):
        try:
            store = open_store(manifest.parent)
            stores.append(f"{store.path} ({len(store):,})")
        except UserError as error:
            damaged.append(str(error))
    if damaged:
        return False, "; ".join(damaged)
    return True, ", ".join(stores) or "no store here yet; velm preprocess dataset=shapes makes one"
