"""Draw the README's picture: what the demo's model says of three scenes that training never showed, one of them wrong.

    python scripts/said.py [RUN] [OUT]      # runs/finetune/demo docs/said.png, in the folder where `make demo` ran

Nothing is chosen by hand: in the order of the test scenes it takes the first one-group scene whose caption asserts only
what is true, the first such scene with two groups, and the first scene where something is false.
"""

from __future__ import annotations

import json
import sys
import textwrap
from dataclasses import fields
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import velm_cli
from velm_cli.metrics.facts import Facts, extract_facts, load_scenes, scene_facts

SIDE, GAP, WRAP, LETTERS = 300, 20, 29, 20
RIGHT, WRONG, INK, PAPER = "#1a7f37", "#c9302c", "#1f2328", "#ffffff"


def main(run: str = "runs/finetune/demo", out: str = "docs/said.png") -> None:
    """Caption the test scenes of `run`'s data, five beams, and draw three of them."""
    model = velm_cli.load(run)
    root = Path(model.config.dataset.root)
    scenes = load_scenes(root / "scenes.json")
    images = {number: file for number, file in _test_images(root).items() if number in scenes}
    captions = dict(zip(images, model.caption(list(images.values())), strict=True))
    shown: dict[str, tuple[int, str]] = {}
    for number, caption in captions.items():
        scene = scenes[number]
        false = _false(extract_facts(caption), scene_facts(scene))
        place = "wrong" if false else f"{len(scene.groups)} right"
        shown.setdefault(place, (number, f"wrong: {', '.join(false)}" if false else "right"))
    wanted = [shown[place] for place in ("1 right", "2 right", "wrong") if place in shown]
    width, height = len(wanted) * (SIDE + GAP) + GAP, SIDE + 180
    sheet = Image.new("RGB", (width, height), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(LETTERS)
    for place, (number, verdict) in enumerate(wanted):
        left = GAP + place * (SIDE + GAP)
        sheet.paste(
            Image.open(images[number]).convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, GAP)
        )
        text = "\n".join(textwrap.wrap(captions[number], WRAP))
        pen.multiline_text((left, SIDE + GAP + 10), text, fill=INK, font=font, spacing=4)
        pen.text((left, height - 36), verdict, fill=WRONG if verdict != "right" else RIGHT, font=font)
        print(f"{number}\t{verdict}\t{captions[number]}")
    sheet.save(out, optimize=True)
    wrong = sum(bool(_false(extract_facts(text), scene_facts(scenes[number]))) for number, text in captions.items())
    print(f"{out}: of {len(captions)} captions, {wrong} assert something false")


def _false(said: Facts, true: Facts) -> list[str]:
    """The kinds of facts of which the caption asserts one that is not true."""
    return [field.name for field in fields(Facts) if getattr(said, field.name) - getattr(true, field.name)]


def _test_images(root: Path) -> dict[int, Path]:
    split = json.loads((root / "shapes_split.json").read_text(encoding="utf-8"))["test"]
    files = {int(file.stem.rsplit("_", 1)[1]): file for file in sorted(root.glob("*2014/*.jpg"))}
    return {number: files[number] for number in split}


if __name__ == "__main__":
    main(*sys.argv[1:])
