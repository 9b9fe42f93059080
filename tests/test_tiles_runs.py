"""Pictures in tiles from the command line: cached, resumed, captioned, exported, finetuned from a run without tiles."""

import json
from pathlib import Path

import pytest
from velm import TINY, call

import velm_cli

DATA = ["dataset=shapes", *TINY, "dataset.image_size=64"]
MODEL = [
    "vision=vit", "vision.image_size=32", "vision.width=24", "vision.layers=1", "vision.heads=2", "text.width=24",
    "text.layers=1", "text.heads=2", "fusion=prefix", "fusion.mapper=tokens", "fusion.shuffle=2", "run.batch_size=4",
    "run.validate_images=2", "metrics.names=[bleu]", "optim.warmup_steps=0",
]  # fmt: skip
TILES = ["vision.tiles=2", "vision.freeze=all", "data.cache=bf16"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiles")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("preprocess", *DATA) == 0
        assert call("train", *DATA, *MODEL, "name=whole", "run.max_steps=2") == 0
        yield folder


def test_tiles_are_cached_resumed_captioned_and_exported(place, capsys):
    train = ["train", *DATA, *MODEL, *TILES, "name=tiles"]
    assert call(*train, "run.max_steps=4", "dry_run=true") == 0
    said = capsys.readouterr().out
    assert "image tokens  25 for an image of 64 x 64 pixels, as a whole and in 2 x 2 tiles" in said
    assert "feature cache" in said and "note: images are stored" not in said
    assert call(*train, "run.max_steps=2") == 0 and call(*train, "run.max_steps=4") == 0  # it goes on
    assert "computed for" in capsys.readouterr().out
    other = [option for option in train if not option.startswith(("vision.tiles", "vision.image_size", "name"))]
    assert call(*other, "vision.image_size=64", "name=large", "run.max_steps=1") == 0
    assert "computed for" in capsys.readouterr().out  # pictures as large, and other features
    photo = sorted(map(str, Path("data").rglob("*.jpg")))[0]
    assert call("caption", "checkpoint=runs/train/tiles", f"images={photo}", "out=c.json") == 0
    assert json.loads(Path("c.json").read_text())
    model = velm_cli.load("runs/train/tiles", "cpu")
    assert model.attention(photo, "a red circle", method="gradient").maps_THW.shape[1:] == (8, 8)  # of 4 x 4 a tile
    assert call("export", "checkpoint=runs/train/tiles", "out=graphs", "format=torch_export") == 0
    assert call("export", "checkpoint=runs/train/tiles", "out=hf", "format=hf") == 2


def test_a_run_without_tiles_is_finetuned_with_them(place, capsys):
    finetune = ["finetune", "checkpoint=runs/train/whole", *DATA, "run.max_steps=1", "optim.warmup_steps=0"]
    assert call(*finetune, "vision.tiles=2", "name=cut") == 0
    said = capsys.readouterr().out
    assert "(from scratch: fusion)" in said  # the marks of tiles, and nothing of the encoder


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["fusion.shuffle=3"], "velm: fusion.shuffle=3: the grid of the image has 4 x 4 positions, no multiple of 3: ta"),
        (["fusion.mapper=mlp"], "fusion.shuffle=2 has no effect with fusion.mapper=mlp: leave it at 1"),
        (["vision.output=pooled"], "fusion.shuffle=2 joins squares of tokens, and vision.output=pooled has one"),
        (["vision.grid=3"], "fusion.shuffle=2: vision.grid=3 is no multiple of it"),
        (["vision.tiles=2", "fusion.shuffle=1", "vision.output=pooled"], "vision.tiles=2 are tokens, and vision.outp"),
        (["vision.tiles=2", "fusion.shuffle=1", "fusion.mapper=mlp"], "fusion=prefix takes the pooled image, which is"),
        (["vision.tiles=2", "loss.beta=1", "loss.image=masked_patches", "loss.patch_size=8"], "paints one grid, and"),
        (["vision.tiles=17"], "vision.tiles=17: must be at most 16"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(place, options, line, capsys):
    assert call("train", *DATA, *MODEL, *options, "name=no", "run.max_steps=1") == 2
    assert line in capsys.readouterr().err
    assert not Path("runs/train/no").exists()
