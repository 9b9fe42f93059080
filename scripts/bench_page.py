"""Write docs/performance.md's table and its picture from what the bench scripts measured.

    python scripts/bench_page.py        # reads docs/bench/*.json; `make bench` measures and then runs it

A row is a ratio of seconds: how many times as fast velm is, the median of paired rounds and their range.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
BEGIN, END = "<!-- measured: make bench writes this part -->", "<!-- end of what was measured -->"


def main() -> int:
    found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((DOCS / "bench").glob("*.json"))]
    if not found:
        print("docs/bench holds no figures: run make bench", file=sys.stderr)
        return 2
    rows = [row | {"command": bench["command"]} for bench in found for row in bench["rows"]]
    page = DOCS / "performance.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n{table(rows, found)}\n{END}{after}", encoding="utf-8")
    draw(rows, DOCS / "bench" / "ratios.png")
    print(f"wrote {page.relative_to(DOCS.parent)} and docs/bench/ratios.png: {len(rows)} rows")
    return 0


def table(rows: list[dict[str, Any]], found: list[dict[str, Any]]) -> str:
    """The rows and the commands that measured them, in Markdown."""
    lines = ["| what | times as fast: median | range | target |", "|---|---|---|---|"]
    for row in rows:
        asked = "" if row["asked"] is None else f"{row['asked']:g}"
        lines.append(f"| {row['what']} | {row['median']:.2f} | {row['low']:.2f} to {row['high']:.2f} | {asked} |")
    machines = sorted({f"{m['cores']} cores of {m['cpu']}, torch {m['torch']}" for m in (b["machine"] for b in found)})
    commands = [f"`{bench['command'].replace('python ', 'python scripts/', 1)}`" for bench in found]
    return "\n".join([*lines, "", f"Measured on {'; '.join(machines)} by " + ", ".join(commands) + ".", ""])


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A bar a row on a logarithmic axis, its range, and a mark at what was asked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 0.4 * len(rows) + 1.2))
    places = range(len(rows))[::-1]
    medians = [row["median"] for row in rows]
    spread = [[row["median"] - row["low"] for row in rows], [row["high"] - row["median"] for row in rows]]
    axes.barh(places, [m - 1 for m in medians], left=1, xerr=spread, color="#4c78a8", ecolor="#333333", height=0.6)
    asked = [(row["asked"], place) for row, place in zip(rows, places, strict=True) if row["asked"] is not None]
    axes.plot(*zip(*asked, strict=True), "D", color="#e45756", label="asked")
    axes.set_yticks(places, [row["what"] for row in rows])
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    axes.axvline(1, color="#333333", linewidth=0.8)
    axes.set_xlabel("times as fast as the other (logarithmic)")
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    sys.exit(main())
