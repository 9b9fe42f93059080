"""`vision.resize` from end to end: what runs, caches and evaluations of it keep, and those of an older velm."""

import json
import re
from pathlib import Path

import pytest
from tiny_models import folder
from velm import TINY, call

from velm_cli import configs
from velm_cli.data.resizing import CENTRE_CROP
from velm_cli.schema import Resize

SHORT = ["run.batch_size=4", "run.log_every=1", "run.validate_images=4", "run.max_steps=2", "text.width=16",
         "text.layers=1", "text.heads=2", "fusion=concat"]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    where = tmp_path_factory.mktemp("resize")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        assert call("preprocess", "dataset=shapes", *TINY) == 0
        yield where


def command(*options: str) -> list[str]:
    model = ["vision=hf_vit", f"vision.name={folder('vit')}", "vision.image_size=32", "vision.freeze=all"]
    return ["train", "dataset=shapes", *TINY, *SHORT, *model, *options]


def caches(place: Path) -> dict[str, dict]:
    files = place.glob("stores/shapes/features/*/about.json")
    return {file.parent.name: json.loads(file.read_text()) for file in files}


def make_old(run: Path) -> None:
    """As an older velm wrote it: without the option, and without a seal, which says that nothing was changed."""
    lines = (run / "config.yaml").read_text().splitlines()[1:-1]
    kept = [line for line in lines if not re.match(r"  resize: ", line)]
    assert len(kept) == len(lines) - 1
    (run / "config.yaml").write_text("\n".join(kept) + "\n")


def test_runs_of_an_older_velm_keep_their_crop_and_its_features(place, capsys):
    cached = ["data.cache=fp32", "name=old"]
    assert call(*command(*cached, "vision.resize=crop")) == 0
    ((key, about),) = caches(place).items()
    assert "resizing" not in about, "the key of a cache is made of what it was before there was a choice"
    run = place / "runs/train/old"
    make_old(run)
    assert configs.load_run_config(run).vision.resize is Resize.crop
    capsys.readouterr()
    assert call("eval", "checkpoint=runs/train/old", "metrics=fast", "limit=4", "name=old") == 0
    assert f"{key}  " in capsys.readouterr().out, "the features of the crop were read"
    for steps in (4, 6):  # the first goes on with a config without the option, the second with the one then written
        assert call(*command(*cached, f"run.max_steps={steps}")) == 0
        out = capsys.readouterr().out
        assert "resumed at step" in out and f"{key}  complete" in out
        assert configs.load_run_config(run).vision.resize is Resize.crop
    assert caches(place).keys() == {key}
    make_old(run)
    assert call(*command(*cached, "run.max_steps=8", "vision.resize=whole")) == 2
    assert "vision.resize is crop there and whole here" in capsys.readouterr().err


def test_a_new_run_takes_the_whole_image_and_says_what_is_enlarged(place, capsys):
    before = caches(place)
    assert call(*command("data.cache=fp32", "name=new", "vision.image_size=96")) == 0
    out = capsys.readouterr().out
    note = (
        "note: images are stored with a shorter side of 64 pixels and enlarged to 96: velm preprocess dataset.image_s"
    )
    assert out.count(note) == 1
    (key,) = caches(place).keys() - before.keys()
    assert caches(place)[key]["resizing"] == CENTRE_CROP._asdict() | {"whole": True, "floors": True}
    assert configs.load_run_config(place / "runs/train/new").vision.resize is Resize.auto
    assert call(*command("data.cache=fp32", "name=dry", "vision.image_size=96", "dry_run=true")) == 0
    assert capsys.readouterr().out.count(note) == 1
    options = ["metrics=fast", "limit=4", "name=new", "report.page=true"]
    assert call("eval", "checkpoint=runs/train/new", *options) == 0
    out = capsys.readouterr().out
    assert out.count(note) == 1 and f"{key}  " in out
    assert call(*command("name=small", "vision.image_size=32")) == 0
    assert "enlarged" not in capsys.readouterr().out
