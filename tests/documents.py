"""The commands of README.md and docs/*.md, and a folder with what their reader has.

A block marked `bash` or `python` is executed, on less data and for fewer steps. Blocks without a mark hold what needs
other machines, hours or data that no test has: their velm commands are composed, so that every group, choice and option
in them exists and goes together.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from tiny_models import folder as tiny_folder
from tiny_models import language_model
from velm import call

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# A test has seconds where a reader has minutes.
FEWER_SCENES = ["dataset.num_train=40", "dataset.num_val=8", "dataset.num_test=8"]
FEWER_STEPS = [
    "run.max_steps=4", "run.batch_size=4", "run.validate_images=4", "run.validate_every=0", "tokenizer.min_count=1",
]  # fmt: skip
FIRST = (
    "velm train dataset=shapes fusion=cross_modal loss.beta=0.1 loss.gamma=0.1 name=first"  # which many documents use
)


def blocks(document: Path, *marks: str) -> list[str]:
    """The content of the document's blocks with one of these marks, a command on one line each."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", document.read_text(encoding="utf-8"), re.S | re.M)
    return [re.sub(r"\\\n\s*", " ", block) for mark, block in found if mark in marks]


def commands(document: Path) -> list[str]:
    """The commands of its `bash` blocks."""
    lines = (line.split("  #")[0].strip() for block in blocks(document, "bash") for line in block.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def composed_commands(document: Path) -> Iterator[list[str]]:
    """Words of the velm commands in blocks without a mark, with the variables that the block sets."""
    for block in blocks(document, ""):
        lines = [line for line in block.splitlines() if re.match(r"velm |torchrun |[A-Z]+=\"", line)]
        lines = [re.sub(r" \.\.\.|\.\.\. ?", " ", re.split("   |  #|; ", line)[0]) for line in lines]
        yield from words("set -f", *lines)


def words(*lines: str) -> list[list[str]]:
    """What the commands among the lines are to bash: their words, from `velm` on."""
    printing = r"""velm() { printf '%s\0' velm "$@"; printf '\n'; }
torchrun() { while [ "$1" != velm ]; do shift; done; shift; velm "$@"; }"""
    done = subprocess.run(["bash", "-c", "\n".join([printing, *lines])], capture_output=True, text=True, check=True)
    return [line.split("\0")[:-1] for line in done.stdout.split("\n") if line]


def shorter(given: list[str]) -> list[str]:
    """The same command on less data and for fewer steps."""
    stage = given[1]
    if stage in ("report", "doctor") or {"--help", "--cfg"} & set(given):
        return given
    more: list[str] = []
    shapes = "dataset=shapes" in given
    if stage == "finetune":
        given = [word for word in given if not word.startswith("run.max_steps=")]
        more = ["run.max_steps=4", "run.batch_size=4", "run.validate_images=4"]
    if stage in ("preprocess", "train") and shapes:
        more += FEWER_SCENES
    if any(word.startswith("preprocess.part=") for word in given):
        more.append("preprocess.shard_images=20")
    if stage == "preprocess":
        more.append("tokenizer.min_count=1")
    if stage == "train":
        given = [word for word in given if not word.startswith("run.max_steps=")]
        config = any(word.startswith("config=") for word in given)
        more += [word for word in FEWER_STEPS if not (config and word.startswith("tokenizer"))]
        more += ["data.examples_per_image=2"] if "task=vqa" in given else []
    if stage == "score" and not any(word.startswith(("task=", "metrics")) for word in given):
        more.append("metrics=fast")
    return [*given, *(word for word in more if word not in given)]


def run(command: str, place: Path) -> None:
    """The command in `place`, the working folder, as a reader would type it, shortened. AssertionError if it fails."""
    line = command.replace("/data/", "data/").replace("/models/", "models/")
    assert not re.search(r"[|;&<>`]", line), f"what the shell would do is not done here: {line}"
    ((*given,),) = words(line)
    short = shorter(given)
    if line.startswith("torchrun"):
        scripts = Path(sys.executable).parent
        env = {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}"}
        launcher = line.split(" velm ")[0].split()
        done = subprocess.run([*launcher, *short], cwd=place, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    else:  # in this process, which has imported torch
        assert call(*short[1:]) == 0, " ".join(short)


def is_run_here(command: str) -> bool:
    """Downloads and installations are tested elsewhere (test_metrics_fetch.py, test_wheel.py), as is what `make` does."""
    return command.startswith(("velm ", "torchrun ")) and "fix=spice" not in command and "$(" not in command


# ------------------------------------------------------------------------------------------ a reader's folder


def photo(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((80, 72), 20 + number).convert("RGB").save(path)


def captions(number: int) -> list[str]:
    said = ["a", "red", "dog", "sits", "on", "the", "green", "grass", "near", "two", "old", "trees"]
    return [" ".join(said[(number + k) % 6 : (number + k) % 6 + 6]) for k in range(5)]


def coco_form(ids: list[int], names: list[str]) -> dict:
    images = [{"id": i, "file_name": n, "height": 72, "width": 80} for i, n in zip(ids, names, strict=True)]
    annotations = [
        {"id": 10 * i + k, "image_id": i, "caption": text} for i in ids for k, text in enumerate(captions(i))
    ]
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations}


def furnish(folder: Path) -> None:
    """COCO, Flickr8k, photos of one's own, tables, predictions, shards, models: small, and where readers have them."""
    _coco(folder)
    _predictions(folder)
    flickr = folder / "data/flickr8k"
    for part, start in (("train", 100), ("dev", 200), ("test", 300)):
        ids = list(range(start, start + 6))
        for i in ids:
            photo(flickr / "images" / f"{i}_a.jpg", i)
        (flickr / f"captions_{part}.json").write_text(json.dumps(coco_form(ids, [f"{i}_a.jpg" for i in ids])))
    for i in range(12):
        photo(folder / "photos" / f"{i}.jpg", i)
        (folder / "photos" / f"{i}.txt").write_text("\n".join(captions(i)))
    parts = ["val" if i > 9 else "train" for i in range(12)]
    lines = [
        json.dumps({"image": f"photos/{i}.jpg", "captions": captions(i), "split": part}) for i, part in enumerate(parts)
    ]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    rows = [f"photos/{i}.jpg,{text},{part}" for i, part in enumerate(parts) for text in captions(i)]
    (folder / "captions.csv").write_text("\n".join(["image,caption,split", *rows]))
    (folder / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"shards/{shard:05d}.tar", "w") as tar:
            for i in range(6 * shard, 6 * shard + 6):
                tar.add(folder / f"photos/{i}.jpg", f"{i:09d}.jpg")
                tar.add(folder / f"photos/{i}.txt", f"{i:09d}.txt")
    language_model(folder / "models/gpt2", captions(0))
    shutil.copytree(tiny_folder("dinov2"), folder / "models/dinov2-small")


def _coco(folder: Path) -> None:
    coco = folder / "data/coco"
    (coco / "annotations").mkdir(parents=True)
    for part, ids in (("train", range(1, 13)), ("val", range(13, 21))):
        names = [f"COCO_{part}2014_{i:012d}.jpg" for i in ids]
        for i, name in zip(ids, names, strict=True):
            photo(coco / f"{part}2014" / name, i)
        text = json.dumps(coco_form(list(ids), names))
        (coco / f"annotations/captions_{part}2014.json").write_text(text)
    split = {"train": list(range(1, 13)), "restval": [], "val": list(range(13, 17)), "test": list(range(17, 21))}
    with gzip.open(coco / "karpathy_split.json.gz", "wt") as file:
        json.dump(split, file)
    shutil.copy(coco / "annotations/captions_val2014.json", folder)


def _predictions(folder: Path) -> None:
    for name, first in (("results", 1), ("other", 2)):
        results = [{"image_id": i, "caption": captions(i + first)[0]} for i in range(13, 21)]
        (folder / f"{name}.json").write_text(json.dumps(results))
    answers = [{"question_id": i, "answer": "yes"} for i in range(4)]
    (folder / "answers.json").write_text(json.dumps(answers))
    given = [{"answer": answer} for answer in ["yes"] * 9 + ["no"]]
    annotations = [{"question_id": i, "image_id": i, "answers": given} for i in range(4)]
    (folder / "annotations.json").write_text(json.dumps({"annotations": annotations}))
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(4)]
    (folder / "image_info_test2014.json").write_text(json.dumps({"images": images}))
    for i in range(4):
        photo(folder / "test2014" / f"{i}.jpg", i)
