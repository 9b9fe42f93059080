"""velm serve with and without batching: images a second, p50 and p95 of 1, 8 and 64 clients; memory over many requests.

    python scripts/bench_serve.py [--small] [--checkpoint RUN --images FOLDER] [--soak 20000] [--out serve.json]

Two services of the same weights run at the same time, one of them with serve.batch_size=1, and take turns. The clients
are one other process. Each sends its next image when it has the caption of the one before. Without --checkpoint
a captioner is trained for a few steps on drawn scenes: its captions are nonsense, and cost what others cost.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import benching

CLIENTS = (1, 8, 64)
EACH = 2  # images of a client in a round, of 64; fewer clients send more
BATCHED, ALONE = "batched", "one by one"
ALIKE = ("serve.port=0", "serve.request_seconds=600")
SOAK_CLIENTS = 16


@contextlib.contextmanager
def service(checkpoint: Path, *options: str) -> Iterator[int]:
    """The port of `velm serve` in a process of its own."""
    command = [sys.executable, "-m", "velm_cli", "serve", f"checkpoint={checkpoint}", *ALIKE, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = next((line for line in process.stdout if line.startswith("serving")), "")
        found = re.search(r":(\d+)/", line)
        if found is None:
            raise SystemExit("velm serve did not start")
        yield int(found[1])
    finally:
        process.terminate()
        process.wait(60)


async def client(port: int, query: str, images: Sequence[bytes], latencies: list[float]) -> None:
    """One connection; the images one after the other."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for image in images:
        began = time.perf_counter()
        head = f"POST /caption?{query} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\nContent-Length: "
        writer.write(f"{head}{len(image)}\r\n\r\n".encode() + image)
        answer = await reader.readuntil(b"\r\n\r\n")
        size = re.search(rb"content-length: (\d+)", answer)
        assert size is not None
        body = await reader.readexactly(int(size[1]))
        assert b" 200 " in answer[:13], body
        latencies.append(time.perf_counter() - began)
    writer.close()


def load(port: int, query: str, images: Sequence[bytes], clients: int, each: int) -> list[float]:
    """Seconds of each request of `clients` clients that send `each` images."""
    latencies: list[float] = []
    endless = cycle(images)

    async def all_clients() -> None:
        shares = [list(islice(endless, each)) for _ in range(clients)]
        await asyncio.gather(*(client(port, query, share, latencies) for share in shares))

    asyncio.run(all_clients())
    return latencies


def compare(
    checkpoint: Path, images: Sequence[bytes], rounds: int, each: int, query: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    with service(checkpoint) as together, service(checkpoint, "serve.batch_size=1") as alone:
        ports = {BATCHED: together, ALONE: alone}
        latencies: dict[str, list[float]] = {f"{name}, {count}": [] for count in CLIENTS for name in ports}
        sent = {count: each * max(1, 16 // count) for count in CLIENTS}  # images of a client in a round

        def turn(name: str, count: int) -> Any:
            return lambda _: latencies[f"{name}, {count}"].extend(load(ports[name], query, images, count, sent[count]))

        for port in ports.values():
            load(port, query, images, 8, 2)  # warm
        turns = {f"{name}, {count}": turn(name, count) for count in CLIENTS for name in ports}
        seconds = benching.take_turns(turns, rounds)
    figures = {}
    for count in CLIENTS:
        for name in ports:
            key = f"{name}, {count}"
            ordered = sorted(latencies[key])
            figures[key] = {
                "images_per_second": statistics.median(count * sent[count] / each for each in seconds[key]),
                "p50_s": statistics.median(ordered),
                "p95_s": ordered[int(0.95 * (len(ordered) - 1))],
                "requests": len(ordered),
            }
            print(
                f"{count:>3} clients, {name:<10}  {figures[key]['images_per_second']:8.1f} images/s   "
                f"p50 {1000 * figures[key]['p50_s']:7.0f} ms   p95 {1000 * figures[key]['p95_s']:7.0f} ms"
            )
    rows = []
    for count in CLIENTS:
        times = benching.ratio(seconds, f"{BATCHED}, {count}", f"{ALONE}, {count}")
        asked = 3.0 if count == max(CLIENTS) else None
        clients = "1 client" if count == 1 else f"{count} clients"
        rows.append(benching.row(f"service with {clients}, requests in batches: one by one", times, asked))
    return rows, {"figures": figures, "seconds": seconds}


def soak(checkpoint: Path, images: Sequence[bytes], requests: int) -> list[dict[str, float]]:
    """Memory of the service after each tenth of so many requests."""
    found = []
    part = max(1, requests // (10 * SOAK_CLIENTS))
    with service(checkpoint) as port:
        for number in range(11):
            if number:
                load(port, "beams=1&max_length=8", images, SOAK_CLIENTS, part)
            found.append({"requests": number * part * SOAK_CLIENTS, "resident_mb": resident(port) / 1e6})
            print(f"{found[-1]['requests']:>7,} requests  {found[-1]['resident_mb']:7.1f} MB")
    return found


def resident(port: int) -> float:
    from urllib.request import urlopen

    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    found = re.search(r"^velm_resident_bytes (\S+)$", text, re.M)
    assert found is not None
    return float(found[1])


def drawn_run(folder: Path, small: bool) -> tuple[Path, list[bytes]]:
    """A captioner that has seen a few scenes, and scenes."""
    count = 32 if small else 256
    data = [f"dataset.num_train={count}", "dataset.num_val=8", "dataset.num_test=8", "tokenizer.min_count=1"]
    words = ["run.max_steps=4", "run.validate_every=0", "name=bench"]
    for stage, options in (("preprocess", []), ("train", words)):
        command = [sys.executable, "-m", "velm_cli", stage, "dataset=shapes", *data, *options]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
    return folder / "runs/train/bench", images_in(folder / "data/shapes")


def images_in(folder: Path) -> list[bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))[:256]
    if not paths:
        raise SystemExit(f"{folder}: no JPEG or PNG in it")
    return [path.read_bytes() for path in paths]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--checkpoint", type=Path, help="a captioner's run folder")
    parser.add_argument("--images", type=Path, help="a folder of JPEGs for it")
    parser.add_argument("--soak", type=int, default=0, help="so many requests, for the memory")
    parser.add_argument("--small", action="store_true", help="few and small, to try the script")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    if (options.checkpoint is None) != (options.images is None):
        parser.error("--checkpoint and --images go together")
    query = f"beams={options.beams}"
    with tempfile.TemporaryDirectory() as temporary:
        if options.checkpoint is None:
            checkpoint, images = drawn_run(Path(temporary), options.small)
        else:
            checkpoint, images = options.checkpoint.resolve(), images_in(options.images)
        each = 1 if options.small else EACH
        result: dict[str, Any] = {"load_before": os.getloadavg()[0], "images": len(images), "beams": options.beams}
        rows, found = compare(checkpoint, images, options.rounds, each, query)
        result |= found
        if options.soak:
            result["memory"] = soak(checkpoint, images, options.soak)
    benching.save(options.out, rows, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
