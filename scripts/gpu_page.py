"""Write docs/gpu.md's tables from what gpu_check.py found on a GPU.

    python scripts/gpu_page.py FOLDER/gpu.json   # keeps the figures as docs/gpu.json, and writes the tables
    python scripts/gpu_page.py                   # writes them from docs/gpu.json as it is
    python scripts/gpu_page.py --check           # exit code 1 where the page is stale

What no GPU has run stands there as such.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_check import CHECKS, MEASURED

DOCS = Path(__file__).resolve().parents[1] / "docs"
BEGIN, END = "<!-- measured: scripts/gpu_page.py writes this part -->", "<!-- end of what was measured -->"
NOT_YET = "not run on a GPU yet"
ABOUT = {
    "parity": "float32 losses, gradients and words as on the CPU; bf16 and fp16 near them",
    "objectives": "each objective with the same random draws as on the CPU",
    "compile": "`run.compile=block` and `model` against the code as written",
    "ranks": "ddp and fsdp over NCCL against one process",
    "runs": "stop and resume to the same bits, cached features, self-critical training, `velm evaluate`",
    "transfer": "pinned memory, copies beside the computing",
    "step": "training beside transformers",
    "decode": "decoding beside `generate`",
    "loader": "reading images",
}


def main(args: list[str]) -> int:
    kept, page = DOCS / "gpu.json", DOCS / "gpu.md"
    check = args == ["--check"]
    if args and not check:
        given = Path(args[0])
        about = json.loads(given.read_text(encoding="utf-8"))
        if about["device"] != "cuda" or about["small"]:
            how = f"a run on a {about['device']} with {'small' if about['small'] else 'full'} sizes"
            print(f"{given}: {how}, which says nothing of a GPU", file=sys.stderr)
            return 2
        if given.resolve() != kept:
            shutil.copyfile(given, kept)
    result = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else None
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    text = f"{before}{BEGIN}\n\n{tables(result)}\n{END}{rest.partition(END)[2]}"
    if check:
        stale = page.read_text(encoding="utf-8") != text
        print(f"docs/gpu.md is stale: run python scripts/{Path(__file__).name}" if stale else "docs/gpu.md is fresh")
        return int(stale)
    page.write_text(text, encoding="utf-8")
    print(f"wrote {page.relative_to(DOCS.parent)}")
    return 0


def tables(result: dict[str, Any] | None) -> str:
    """The tables in Markdown; of what was not run the lines say so."""
    return "\n".join([*_machine(result), "", *_right(result), "", *_fast(result), *_profile(result), ""])


def _parts(result: dict[str, Any] | None) -> dict[str, Any]:
    return {} if result is None else result["parts"]


def _machine(result: dict[str, Any] | None) -> Iterator[str]:
    if result is None:
        yield "No machine with a GPU was at hand yet: nothing below has been run on one."
        return
    machine = result["machine"]
    gpu = f"{machine.get('gpus', 0)} x {machine['gpu']}, {machine['memory_gb']} GiB" if "gpu" in machine else "no GPU"
    yield (
        f"{result['date']}: {gpu}; {machine['cores']} CPU cores; torch {machine['torch']}, transformers "
        f"{machine['transformers']}, Python {machine['python']}."
    )


def _right(result: dict[str, Any] | None) -> Iterator[str]:
    yield "| part | what is compared | checks | failed | nearest to its bound | state |"
    yield "|---|---|---|---|---|---|"
    for name in (*CHECKS, *MEASURED):
        part = _parts(result).get(name)
        if part is None:
            yield f"| {name} | {ABOUT[name]} | | | | {NOT_YET} |"
            continue
        checks = part.get("checks", [])
        failed = sum(not check["ok"] for check in checks)
        yield f"| {name} | {ABOUT[name]} | {len(checks)} | {failed} | {_nearest(checks)} | {part['state']} |"
    for name, part in _parts(result).items():
        for check in part.get("checks", ()):
            if not check["ok"]:
                yield f"\nFailed in {name}: {check['name']}: {_number(check['found'])}, at most {check['bound']:.0e}."


def _nearest(checks: list[dict[str, Any]]) -> str:
    bounded = [check for check in checks if check["bound"] > 0 and isinstance(check["found"], float)]
    if not bounded:
        return ""
    worst = max(bounded, key=lambda check: check["found"] / check["bound"])
    return f"{worst['name']}: {worst['found']:.1e} of {worst['bound']:.0e}"


def _fast(result: dict[str, Any] | None) -> Iterator[str]:
    yield "| measured | value | range | aim |"
    yield "|---|---|---|---|"
    for name in MEASURED:
        figures = _parts(result).get(name, {}).get("figures", [])
        if not figures:
            yield f"| {ABOUT[name]} | {NOT_YET} | | |"
        for figure in figures:
            spread = f"{figure['low']:.2f} to {figure['high']:.2f}" if "low" in figure else ""
            aim = "" if figure["aim"] is None else f"{figure['aim']:g}"
            yield f"| {figure['name']} | {_number(figure['value'])} {figure['unit']} | {spread} | {aim} |"
    if cores := _cores(result):
        yield f"| CPU cores that read as many images as the training step takes | {cores:.1f} | | |"


def _cores(result: dict[str, Any] | None) -> float | None:
    """The step's images per second over the loader's per core, with as many threads as there are cores."""
    figures = {f["name"]: f for part in _parts(result).values() for f in part.get("figures", ())}
    step = figures.get("training: velm, images")
    reading = [f for f in figures.values() if f["name"].startswith("loader: ")]
    if step is None or not reading:
        return None
    most = max(reading, key=lambda figure: figure["threads"])
    return step["value"] / (most["value"] / most["threads"])


def _profile(result: dict[str, Any] | None) -> Iterator[str]:
    for part in _parts(result).values():
        for title, text in part.get("texts", {}).items():
            yield from ("", f"{title[:1].upper()}{title[1:]}, by torch's profiler:", "", "```", text, "```")


def _number(value: float | str) -> str:
    if isinstance(value, str) or not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
