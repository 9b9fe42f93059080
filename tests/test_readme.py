"""Every command of the README is executed, in order, as a reader would type it (but on less data).

`make` targets are checked to exist; what they run is run by other tests (`make demo` by test_demo.py).
"""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from tiny_models import folder as tiny_folder
from tiny_models import language_model
from velm import call

from velm_cli.metrics import submission

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line.strip() and not line.startswith("#")
]
# A test has seconds where a reader has minutes.
FEWER_SCENES = "dataset.num_train=40 dataset.num_val=8 dataset.num_test=8"
FEWER_STEPS = "run.max_steps=4 run.batch_size=4 run.validate_images=4 run.validate_every=0 tokenizer.min_count=1"


def shorter(command: str) -> str:
    """The same command on less data and for fewer steps."""
    words = command.split()
    if words[0] == "torchrun":
        words = words[words.index("velm") :]
    elif words[0] != "velm" or "--help" in words or "--cfg" in words:
        return command
    stage, more = words[1], []
    if stage == "finetune":
        command = re.sub(r"run\.max_steps=\d+", "", command)
        more = ["run.max_steps=4 run.batch_size=4 run.validate_images=4"]
    if stage in ("preprocess", "train") and "dataset=coco" not in command:
        more = [FEWER_SCENES] if "dataset=shapes" in command else []
        more += ["preprocess.shard_images=20"] if "preprocess.part" in command else []
    if stage == "preprocess":
        more.append("tokenizer.min_count=1")
    if stage == "train":
        more.append(FEWER_STEPS + (" data.examples_per_image=2" if "task=vqa" in command else ""))
    if stage == "eval" and "eval.submit" not in command:
        more.append("limit=4")
    if stage == "score" and "task=" not in command:
        more.append("metrics=fast")
    return " ".join([command, *more])


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with what the README's reader has: COCO, Flickr8k, own photos, a manifest."""
    folder = tmp_path_factory.mktemp("readme")
    words = ["a", "red", "dog", "sits", "on", "the", "green", "grass", "near", "two", "old", "trees"]

    def photo(path: Path, number: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((80, 72), 20 + number).convert("RGB").save(path)

    def captions(number: int) -> list[str]:
        return [" ".join(words[(number + k) % 6 : (number + k) % 6 + 6]) for k in range(5)]

    def coco_form(ids: list[int], names: list[str]) -> dict:
        images = [{"id": i, "file_name": n, "height": 72, "width": 80} for i, n in zip(ids, names, strict=True)]
        annotations = [
            {"id": 10 * i + k, "image_id": i, "caption": text} for i in ids for k, text in enumerate(captions(i))
        ]
        return {"info": {}, "licenses": [], "images": images, "annotations": annotations}

    coco = folder / "data/coco"
    split: dict[str, list[int]] = {"train": [], "restval": [], "val": [], "test": []}
    (coco / "annotations").mkdir(parents=True)
    for part, ids in (("train", range(1, 13)), ("val", range(13, 21))):
        names = [f"COCO_{part}2014_{i:012d}.jpg" for i in ids]
        for i, name in zip(ids, names, strict=True):
            photo(coco / f"{part}2014" / name, i)
        text = json.dumps(coco_form(list(ids), names))
        (coco / f"annotations/captions_{part}2014.json").write_text(text)
    split |= {"train": list(range(1, 13)), "val": list(range(13, 17)), "test": list(range(17, 21))}
    with gzip.open(coco / "karpathy_split.json.gz", "wt") as file:
        json.dump(split, file)
    shutil.copy(coco / "annotations/captions_val2014.json", folder)
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
    flickr = folder / "data/flickr8k"
    for part, start in (("train", 100), ("dev", 200), ("test", 300)):
        ids = list(range(start, start + 6))
        for i in ids:
            photo(flickr / "images" / f"{i}_a.jpg", i)
        (flickr / f"captions_{part}.json").write_text(json.dumps(coco_form(ids, [f"{i}_a.jpg" for i in ids])))
    for i in range(12):
        photo(folder / "photos" / f"{i}.jpg", i)
        (folder / "photos" / f"{i}.txt").write_text("\n".join(captions(i)))
    lines = [
        json.dumps({"image": f"photos/{i}.jpg", "captions": captions(i), "split": "val" if i > 9 else "train"})
        for i in range(12)
    ]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    (folder / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"shards/{shard:05d}.tar", "w") as tar:
            for i in range(6 * shard, 6 * shard + 6):
                tar.add(folder / f"photos/{i}.jpg", f"{i:09d}.jpg")
                tar.add(folder / f"photos/{i}.txt", f"{i:09d}.txt")
    language_model(folder / "models/gpt2", captions(0))
    shutil.copytree(tiny_folder("dinov2"), folder / "models/dinov2-small")
    return folder


def test_the_readme_has_commands():
    assert len(COMMANDS) > 15
    assert [command for command in COMMANDS if command.startswith("make")] == ["make demo", "make test"]


def test_every_velm_command_of_the_readme_runs(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setitem(submission.SPLITS, "test2014", 4)  # COCO's server takes 40,775 test captions
    scripts = Path(sys.executable).parent  # torchrun
    env = {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}"}
    ran = []
    for command in COMMANDS:
        if not command.startswith(("velm", "torchrun")) or "fix=spice" in command:
            continue  # fetching is tested in test_metrics_fetch.py
        line = shorter(command).replace("/data/", "data/").replace("/models/", "models/")
        if command.startswith("velm"):  # in this process, which has imported torch; bash says what the words are
            said = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True)
            assert call(*said.stdout.split("\0")[1:-1]) == 0, line
        else:
            done = subprocess.run(["bash", "-c", line], cwd=place, env=env, capture_output=True, text=True)
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        ran.append(command)
    assert len(ran) > 15
    assert not any(re.search(r"[|;&<>$`]", command) for command in ran), "what else the shell would do is not done here"


def test_make_has_the_targets_that_the_readme_names():
    listed = re.search(r"`make help` lists the targets: `([^`]*)`", README)[1].split()
    for target in listed:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_files_that_the_readme_names_exist():
    for path in re.findall(r"\((docs/[^)]*)\)|`(scripts/[\w.]+)", README):
        assert (ROOT / (path[0].partition("#")[0] or path[1])).exists(), path
