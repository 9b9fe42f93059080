"""Where and in which precision to compute. The CUDA-only branches are here (see docs/gpu.md)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from typing import Any

import torch

from velm_cli.errors import UserError
from velm_cli.schema import Device, Precision


def pick_device(device: Device) -> torch.device:
    """The device asked for; `auto` is CUDA, else MPS, else the CPU."""
    if device is Device.auto:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if device is Device.cuda and not torch.cuda.is_available():
        raise UserError("run.device=cuda: torch sees no CUDA device here; use run.device=auto or cpu")
    if device is Device.mps and not torch.backends.mps.is_available():
        raise UserError("run.device=mps: torch sees no Metal device here; use run.device=auto or cpu")
    return torch.device(device.value)


def pick_precision(precision: Precision, device: torch.device) -> Precision:
    """`auto` is bf16 where the hardware multiplies it faster than float32, else fp32.

    It goes by what the hardware says it can, not by a stopwatch: a resumed run must choose the same.
    """
    if precision is not Precision.auto:
        return precision
    if device.type == "cuda":
        return Precision.bf16 if torch.cuda.is_bf16_supported(including_emulation=False) else Precision.fp32
    if device.type == "cpu" and cpu_multiplies_bf16():
        return Precision.bf16
    return Precision.fp32


def cpu_multiplies_bf16() -> bool:
    """True on CPUs with AMX tiles or AVX512-BF16."""
    tests = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(test is not None and test() for test in tests)


PRODUCTS = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[Any]:
    """The context in which forward passes run: matrix products in the type of `PRODUCTS`."""
    if precision is Precision.fp32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=PRODUCTS[precision])


@contextlib.contextmanager
def drawing_from(seed: int, device: torch.device) -> Iterator[None]:
    """Within it torch draws from `seed`; what it draws afterwards is what it would have drawn without."""
    modules = [torch.random] if device.type == "cpu" else [torch.random, torch.get_device_module(device)]
    states = [module.get_rng_state() for module in modules]
    torch.manual_seed(seed)  # of the device, too
    try:
        yield
    finally:
        for module, state in zip(modules, states, strict=True):
            module.set_rng_state(state)


def prepare(device: torch.device, threads: int, *, deterministic: bool = False) -> None:
    """Process-wide settings, once a stage."""
    if threads:
        torch.set_num_threads(threads)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA's first product is asked for
        torch.use_deterministic_algorithms(True, warn_only=True)
        # That torch fills all new memory then is for finding faults, and costs time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if device.type == "cpu":
        _keep_freed_memory()
        # Numbers below 1e-38 cost a CPU tens of times as much as others, and there are many: the momentum of a word
        # that no longer occurs, the probability of an impossible one. torch's threads inherit it from this one.
        torch.set_flush_denormal(True)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what stays in float32
        # cuDNN's attention plans anew for each size, tens of milliseconds on the CPU; lengths and live captions vary.
        torch.backends.cuda.enable_cudnn_sdp(False)
        if deterministic:  # the fused ones add up gradients in any order
            torch.backends.cuda.enable_flash_sdp(False)
            torch.backends.cuda.enable_mem_efficient_sdp(False)


def _keep_freed_memory() -> None:
    """Ask glibc to reuse the memory of freed tensors instead of returning it to the system.

    Every step frees and allocates the same sizes; fetching each anew from the system costs a page fault
    for every 4 KiB. Other C libraries have no such call, and then nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    # Blocks above glibc's limit below are fetched anew all the same, such as the gradient of an embedding: in pages of
    # 2 MiB where the system gives them to whoever asks (torch reads this when it first needs one).
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    trim_threshold, mmap_threshold = -1, -3  # names of malloc.h
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 32 << 20)  # the largest value that glibc takes
        libc.mallopt(trim_threshold, 1 << 30)
