"""The parts of gpu_check.py that measure: copies to the device, training steps, decoding, reading images.

What is compared takes turns in one process, a round each, and the device is waited for after each turn: the ratios of
single rounds say more than times do. transformers runs as its users run it (bf16, scaled-dot-product attention, fused
AdamW; `generate` with the weights in bf16).
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import bench_decode
import bench_train
import benching
import numpy as np
import torch
from gpu_check import Report
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from velm_cli import schema
from velm_cli.data.batch import Batch, assemble
from velm_cli.data.transfer import on_device
from velm_cli.engine import loop
from velm_cli.engine.device import autocast, pick_precision, prepare
from velm_cli.engine.meter import matrix_peak
from velm_cli.engine.profile import summary
from velm_cli.models.decoding import converted_once
from velm_cli.models.vision import ImageFeatures
from velm_cli.schema import Precision

Sizes = dict[str, int]
LARGE: Sizes = {"side": 224, "width": 768, "heads": 12, "vision": 12, "text": 12}  # ViT-B/16, 12 layers of text
SMALL: Sizes = {"side": 32, "width": 48, "heads": 2, "vision": 1, "text": 1}
CAPTIONS = bench_train.CAPTIONS
BATCHES = 4  # different ones, that take turns too
SHARE = 0.6  # of the GPU's memory that the first guess of a batch may need
PER_IMAGE = 90e6  # bytes that training transformers' two halves keep of an image with a caption, for that guess
OURS, WHOSE = "velm", {"repeated": "transformers, an image per caption", "grouped": "transformers, grouped by image"}


def _sizes(report: Report) -> Sizes:
    return SMALL if report.small else LARGE


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def turns(
    contestants: Mapping[str, Callable[[int], object]], device: torch.device, *, rounds: int, warm: int
) -> benching.Seconds:
    """Seconds of each in each round, the device's work included."""

    def whole(work: Callable[[int], object], number: int) -> None:
        work(number)
        wait(device)

    works = {name: partial(whole, work) for name, work in contestants.items()}
    benching.take_turns(works, warm)
    return benching.take_turns(works, rounds)


def compared(
    report: Report, name: str, seconds: benching.Seconds, ours: str, theirs: str, *, aim: float | None = None
) -> None:
    """How many times faster `ours` is."""
    ratio = benching.ratio(seconds, ours, theirs)
    median = ratio.pop("median")
    report.figure(name, median, "x", aim=aim, **ratio)


def drawn_lengths(images: int) -> list[list[int]]:
    """Words of each caption: about as many as COCO's captions have (mean 10.5, deviation 2.4, at least 6)."""
    draw = random.Random(0)
    return [[min(40, max(6, round(draw.gauss(10.5, 2.4)))) for _ in range(CAPTIONS)] for _ in range(images)]


# ---------------------------------------------------------------------------------------- transfer


def transfer(report: Report, device: torch.device) -> None:
    """Batches reach the device whole and in order, from pinned memory, and beside its computing."""
    prepare(device, 0)
    images, side = (4, 32) if report.small else (256, 224)
    batches = bench_train.make_batches(6, images, side, drawn_lengths(50 * images))
    for batch in batches:
        if device.type == "cuda":
            assert batch.image_XCHW is not None
            batch.image_XCHW = batch.image_XCHW.pin_memory()
    same = 0
    for here, there in zip(batches, on_device(batches, device), strict=True):
        pairs = zip(here.tensors(), there.tensors(), strict=True)
        same += all(torch.equal(ours, other.cpu()) for ours, other in pairs)
    report.check("batches that did not arrive as they were sent", len(batches) - same, 0)
    unpinned = _unpinned()
    if device.type == "cuda":
        report.check("batches of the loader that are not in pinned memory", unpinned, 0)

    matrix = torch.randn(64 if report.small else 8192, 64 if report.small else 8192, device=device)
    copied = _seconds(lambda: [batch.to(device) for batch in batches], device)
    once = _seconds(lambda: matrix @ matrix, device)
    products = max(1, round(2 * copied / len(batches) / once))  # compute for about twice as long as a copy takes

    def compute(arriving: Iterator[Any]) -> None:
        for _ in arriving:
            for _ in range(products):
                product = matrix @ matrix
            float(product[0, 0])  # as a step reads the gradient's norm: the device is waited for

    computed = _seconds(lambda: compute(iter(batches)), device)
    both = _seconds(lambda: compute(on_device(batches, device)), device)
    hidden = (copied + computed - both) / copied
    report.figure("copying a batch to the device", 1000 * copied / len(batches), "ms", images=images)
    report.figure("share of the copies that computing hides", hidden, "", aim=None if report.small else 0.6)


def _unpinned() -> int:
    """Batches that the loader's own function assembles outside of pinned memory."""

    class NoConcepts:
        def example_id(self, i: int) -> int:
            return i

    batch = assemble(NoConcepts(), None, np.arange(2), np.full((2, 1), -1), features=None, image_size=8, num_concepts=0)
    assert batch.image_XCHW is not None
    return int(not batch.image_XCHW.is_pinned())


def _seconds(work: Callable[[], object], device: torch.device, times: int = 3) -> float:
    """The best of a few, the device's work included, after one to warm up."""
    best = float("inf")
    for _ in range(times + 1):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        best, last = min(best, time.perf_counter() - began), best
    return min(best, last)


# ---------------------------------------------------------------------------------------- step


def step(report: Report, device: torch.device) -> None:
    """A training step beside transformers'; the share of the matrix peak; where a step goes; compiled."""
    prepare(device, 0)
    sizes, rounds = _sizes(report), 2 if report.small else 8
    precision = Precision.fp32 if report.small else pick_precision(Precision.auto, device)
    peaks = [matrix_peak(device, precision)]
    images, batches, steps = _largest(report, device, sizes, precision)
    of_number = lambda work, number: work(batches[number % len(batches)])  # noqa: E731
    works = {name: partial(of_number, work) for name, work in steps.items()}
    seconds = turns(works, device, rounds=rounds, warm=len(batches))
    peaks.append(matrix_peak(device, precision))

    setting = {"images": images, "captions": images * CAPTIONS, "precision": precision.value}
    for name, times in seconds.items():
        what = OURS if name == OURS else WHOSE[name]
        report.figure(f"training: {what}", images * CAPTIONS / statistics.median(times), "captions/s", **setting)
    report.figure("training: velm, images", images / statistics.median(seconds[OURS]), "images/s", **setting)
    for name, aim in (("repeated", 2.0), ("grouped", None)):
        goal = None if report.small else aim
        compared(report, f"training: velm against {WHOSE[name]}", seconds, OURS, name, aim=goal)
    with FlopCounterMode(display=False) as counted:
        steps[OURS](batches[0])
    work = counted.get_total_flops()
    mine = statistics.median(seconds[OURS][:: len(batches)])  # of the batch whose operations were counted
    peak = statistics.median(peaks)
    report.figure("matrix peak", peak / 1e12, "TFLOP/s", precision=precision.value)
    report.figure("training: share of the matrix peak", work / mine / peak, "", aim=None if report.small else 0.45)
    _where_it_goes(report, device, partial(steps[OURS], batches[0]))
    del steps, works
    _free(device)
    if not report.small:
        _compiled(report, device, sizes, precision, batches, rounds)


def _largest(
    report: Report, device: torch.device, sizes: Sizes, precision: Precision
) -> tuple[int, list[Batch], dict[str, bench_train.Step]]:
    """The largest power of two of images with which all can train, and what trains."""
    images = 3
    if not report.small:
        memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 8e9
        images = 2 ** max(3, int(SHARE * memory / (CAPTIONS * PER_IMAGE)).bit_length() - 1)
    while True:
        batches = bench_train.make_batches(BATCHES, images, sizes["side"], drawn_lengths(50 * images))
        batches = [batch.to(device) for batch in batches]
        if (found := _all_fit(device, sizes, precision, batches[0])) is not None:
            break
        _free(device)
        images //= 2
    steps, parameters, used = found
    for name, size in parameters.items():
        report.figure(f"training: parameters, {name}", size / 1e6, "M")
    for name, most in used.items():
        report.figure(f"training: memory, {name}", most / 2**30, "GiB", images=images)
    return images, batches, steps


def _all_fit(
    device: torch.device, sizes: Sizes, precision: Precision, batch: Batch
) -> tuple[dict[str, bench_train.Step], dict[str, int], dict[str, int]] | None:
    """What trains, its parameters and the memory that a step takes; None where the device has too little of it."""
    steps: dict[str, bench_train.Step] = {}
    parameters, used = {}, {}
    try:
        steps[OURS], parameters[OURS] = bench_train.velm_step(sizes, precision, schema.Compile.off, device=device)
        for name in WHOSE:
            step, parameters[name] = bench_train.transformers_step(
                sizes, precision, grouped=name == "grouped", device=device
            )
            steps[name] = partial(theirs, step)
        for name, work in steps.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            work(batch)
            wait(device)
            if device.type == "cuda":
                used[name] = torch.cuda.max_memory_allocated(device)
    except torch.OutOfMemoryError:
        if len(batch.ids) <= 8:
            raise
        return None
    return steps, parameters, used


def theirs(work: Callable[..., Any], *arguments: Any) -> Any:
    """`work` with torch's own choice of attention, cuDNN's among them, which velm does without (`engine/device.py`)."""
    if not torch.cuda.is_available():
        return work(*arguments)
    kept = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        return work(*arguments)
    finally:
        torch.backends.cuda.enable_cudnn_sdp(kept)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _where_it_goes(report: Report, device: torch.device, work: Callable[[], object]) -> None:
    """Milliseconds of the parts of a step, each waited for; and the profiler's page on its operations."""
    spent: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def timed(name: str) -> Iterator[None]:
        wait(device)
        began = time.perf_counter()
        yield
        wait(device)
        spent[name] += time.perf_counter() - began

    marked, times = loop.part, 2
    loop.part = timed
    try:
        for _ in range(times):
            work()
    finally:
        loop.part = marked
    for name, seconds in spent.items():
        report.figure(f"training: {name}", 1000 * seconds / times, "ms per step", share=seconds / sum(spent.values()))
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as watch:
        for _ in range(times):
            work()
        wait(device)
    report.text("where a training step goes", summary(watch.key_averages(), times))


def _compiled(
    report: Report, device: torch.device, sizes: Sizes, precision: Precision, batches: list[Batch], rounds: int
) -> None:
    """run.compile=block, beside the code as written."""
    plain, _ = bench_train.velm_step(sizes, precision, schema.Compile.off, device=device)
    compiled, _ = bench_train.velm_step(sizes, precision, schema.Compile.block, device=device)
    began = time.perf_counter()
    for batch in batches:
        compiled(batch)
    wait(device)
    report.figure("training: seconds until run.compile=block has compiled", time.perf_counter() - began, "s")
    works = {"as written": lambda n: plain(batches[n % BATCHES]), "compiled": lambda n: compiled(batches[n % BATCHES])}
    seconds = turns(works, device, rounds=rounds, warm=1)
    compared(report, "training: run.compile=block against the code as written", seconds, "compiled", "as written")


# ---------------------------------------------------------------------------------------- decode


def decode(report: Report, device: torch.device) -> None:
    """Greedy and five beams beside `generate`, with the same weights; and from pixels."""
    prepare(device, 0)
    sizes, images, rounds = _sizes(report), 4 if report.small else 256, 2 if report.small else 4
    precision = Precision.fp32 if report.small else pick_precision(Precision.auto, device)
    torch.manual_seed(0)
    model = bench_decode.captioner(sizes)
    # Each round has images of its own, and those of the first turn are others: nobody has seen them, or their sizes.
    pixels = [bench_decode.make_images(images, sizes["side"]) for _ in range(rounds + 1)]
    with torch.no_grad():  # on the CPU, as the rest of the script does: the weights are shaped once
        bench_decode.end_like_captions(model, model.encode_image(pixels[0][:32]))
    other = bench_decode.as_transformers(model, sizes).to(device)
    model.to(device)
    _agreement(report, device, model, other, pixels[0][: 4 if report.small else 64])

    if precision is Precision.bf16:
        other.to(torch.bfloat16)
    if device.type == "cuda":
        pixels = [batch.pin_memory() for batch in pixels]
    kind = next(other.parameters()).dtype

    @torch.no_grad()
    def encode(number: int) -> ImageFeatures:
        with autocast(device, precision):
            return model.encode_image(pixels[number].to(device, non_blocking=True))

    features = [encode(number) for number in range(rounds + 1)]
    cast = [ImageFeatures(each.tokens_BSD.to(kind), each.pooled_BD.to(kind)) for each in features]

    def by_velm(beams: int, from_pixels: bool, number: int) -> Any:
        with autocast(device, precision):
            return bench_decode.by_velm(model, encode(number) if from_pixels else features[number], beams, ())

    @torch.no_grad()
    def by_generate(beams: int, from_pixels: bool, number: int) -> Any:
        if from_pixels:  # their encoder, of the same size; the decoder gets velm's states, whose captions end as COCO's
            other.encoder(pixel_values=pixels[number].to(device, non_blocking=True).to(kind))
        return bench_decode.by_generate(other, cast[number], beams)

    works: dict[str, Callable[[int], Any]] = {}
    for beams, name in ((1, "greedy"), (bench_decode.BEAMS, f"{bench_decode.BEAMS} beams")):
        for from_pixels in (False, True):
            what = name + (" from pixels" if from_pixels else "")
            works[f"velm {what}"] = partial(by_velm, beams, from_pixels)
            works[f"generate {what}"] = partial(theirs, by_generate, beams, from_pixels)
    with converted_once(model):
        for work in works.values():
            work(rounds)  # the images after those of the rounds
        seconds = turns(works, device, rounds=rounds, warm=0)
    for name, times in seconds.items():
        report.figure(
            f"decoding: {name}", images / statistics.median(times), "images/s", images=images, precision=precision.value
        )
    for name in (name.removeprefix("velm ") for name in works if name.startswith("velm ")):
        aim = 3.0 if name == f"{bench_decode.BEAMS} beams" and not report.small else None
        compared(
            report, f"decoding: velm against generate, {name}", seconds, f"velm {name}", f"generate {name}", aim=aim
        )


def _agreement(report: Report, device: torch.device, model: Any, other: Any, pixels: Tensor) -> None:
    """In float32 the captions are those of `generate`, or score the same; how many are others in bf16."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    with torch.no_grad():
        features = model.encode_image(pixels.to(device))
    for beams in (1, bench_decode.BEAMS):
        ours = bench_decode.by_velm(model, features, beams, ())
        their = theirs(bench_decode.by_generate, other, features, beams)
        counts = Counter(bench_decode.agreement(model, features, ours, their, beams))
        name = f"{len(ours)} captions, {beams} {'beam' if beams == 1 else 'beams'}"
        report.check(f"{name}: not those of generate, and no ties", counts["other"], 0)
        report.figure(f"{name}: ties with generate's", counts["tie"], "")
        with torch.autocast(device.type, torch.bfloat16):
            rounded = bench_decode.by_velm(model, features, beams, ())
        same = sum(one == another for one, another in zip(ours, rounded, strict=True)) / len(ours)
        report.figure(f"{name}: share that bf16 leaves as they are", same, "")
    prepare(device, 0)


# ---------------------------------------------------------------------------------------- loader


def loader(report: Report, device: torch.device) -> None:
    """Images per second that the loader reads, crops and normalises, by how many threads it may use."""
    import bench_images

    prepare(device, 0)
    drawn, used, size = (8, 64, (160, 120)) if report.small else (48, 2048, bench_images.COCO)
    with tempfile.TemporaryDirectory() as folder:
        pictures = bench_images.make_pictures(Path(folder) / "pictures", drawn, size, 95)
        captions = [[" ".join(f"word{n % 50}" for n in range(length)) for length in row] for row in drawn_lengths(used)]
        paths = list(islice(cycle(pictures), used))
        store = bench_images.make_store(Path(folder) / "store", paths, captions, bench_images.SIDE)
        cores = len(os.sched_getaffinity(0))
        threads = sorted({count for count in (1, 2, 4, 8, 16, 32) if count < cores} | {cores})
        for count in threads[:1] if report.small else reversed(threads):  # the page goes by the most
            read = bench_images.velm_epochs(store, count)
            rounds = 1 if report.small else max(1, count // 4)
            read(0)
            began = time.perf_counter()
            for number in range(1, 1 + rounds):
                read(number)
            speed = rounds * used / (time.perf_counter() - began)
            name = f"loader: {count} {'thread' if count == 1 else 'threads'}"
            report.figure(name, speed, "images/s", threads=count, cores=cores)
