"""The part of an image that an encoder gets is that which its own image processor gives it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from test_transforms import generator, photo
from tiny_models import folder

from velm_cli import schema
from velm_cli.data.resizing import CENTRE_CROP, Resizing, colours_of, processor_options, resizing_of
from velm_cli.data.transforms import EvalTransform, TrainTransform, kept_box
from velm_cli.errors import UserError
from velm_cli.models.vision import build_vision

SIDE = 48


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


# The processors of published models, for images of SIDE pixels: model, class, options.
PROCESSORS = {
    "vit": ("vit", "ViTImageProcessor", {"size": square(SIDE)}),
    "deit": ("vit", "DeiTImageProcessor", {"size": square(64), "crop_size": square(SIDE)}),
    "clip": ("clip", "CLIPImageProcessor", {"size": {"shortest_edge": SIDE}, "crop_size": square(SIDE)}),
    "dinov2": ("dinov2", "BitImageProcessor", {"size": {"shortest_edge": 56}, "crop_size": square(SIDE)}),
    "siglip": ("siglip", "SiglipImageProcessor", {"size": square(SIDE)}),
    "siglip, bilinear": ("siglip", "SiglipImageProcessor", {"size": square(SIDE), "resample": 2}),
    "plain pixels": ("vit", "ViTImageProcessor", {"size": square(SIDE), "do_normalize": False}),
    "other scale": ("vit", "ViTImageProcessor", {"size": square(SIDE), "rescale_factor": 1 / 127.5}),
}


def picture(width: int, height: int, seed: int) -> bytes:
    """Smooth blobs and some noise, without a JPEG's own losses."""
    image = np.asarray(Image.open(BytesIO(photo(width, height, seed))).convert("RGB")).astype(np.int64)
    image = image + np.random.default_rng(seed).integers(-20, 21, image.shape)
    buffer = BytesIO()
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def copied(model: str, where: Path) -> Path:
    shutil.copytree(folder(model), where)
    return where


@pytest.mark.parametrize("shape", [(96, 64), (61, 127), (64, 64), (150, 49), (40, 30)], ids=str)
@pytest.mark.parametrize("kind", PROCESSORS)
def test_an_encoder_gets_what_its_processor_gives(kind, shape, tmp_path):
    model, name, options = PROCESSORS[kind]
    where = copied(model, tmp_path / "model")
    processor = getattr(transformers, name)(**options)
    processor.save_pretrained(where)
    encoder = build_vision(schema.TransformersVisionConfig(name=str(where), image_size=SIDE))
    content = picture(*shape, seed=sum(shape))
    found = EvalTransform(SIDE, encoder.mean, encoder.std, encoder.resizing)(content)
    wanted = processor(Image.open(BytesIO(content)), return_tensors="pt").pixel_values[0]
    levels = (found - wanted).abs() * 255 * torch.tensor(encoder.std).view(3, 1, 1)
    # Both round twice to whole levels of 255, in another order; a cubic filter doubles a level at an edge.
    assert levels.max() < 3.01
    assert levels.mean() < 0.5
    train = TrainTransform(SIDE, encoder.mean, encoder.std, 1.0, False, 0.0, encoder.resizing)
    assert torch.equal(train(content, generator=generator(1)), found)


@pytest.mark.parametrize("model", ["vit", "clip", "dinov2", "siglip"])
def test_without_a_file_it_is_what_the_published_processors_of_the_family_do(model, tmp_path):
    defaults = {"vit": ("ViTImageProcessor", {}), "clip": ("CLIPImageProcessor", {}), "siglip": ("SiglipImageProcessor", {}),
                "dinov2": ("BitImageProcessor", {"size": {"shortest_edge": 256}})}  # fmt: skip
    without = build_vision(schema.TransformersVisionConfig(name=folder(model), image_size=16))
    name, options = defaults[model]
    getattr(transformers, name)(**options).save_pretrained(copied(model, tmp_path / "model"))
    with_file = build_vision(schema.TransformersVisionConfig(name=str(tmp_path / "model"), image_size=16))
    assert without.resizing == with_file.resizing


def test_the_options_of_a_processor_are_found_in_all_their_forms(tmp_path):
    whole, crop = Resizing(whole=True), Resizing(resample=3)
    assert resizing_of({}, whole) == whole
    assert resizing_of({"size": 224}, whole) == whole  # of older files
    assert resizing_of({"size": 224, "crop_size": 224, "do_center_crop": True, "resample": 3}, crop) == crop
    assert resizing_of({"size": 256, "crop_size": 224, "do_center_crop": True}, whole) == whole._replace(zoom=256 / 224)
    assert resizing_of({"size": square(224)}, crop) == crop._replace(whole=True)
    assert resizing_of({"size": {"shortest_edge": 224}}, whole) == CENTRE_CROP
    assert resizing_of({"size": square(224), "do_resize": False}, crop) == crop
    assert resizing_of({"size": [224, 224], "resample": None}, whole) == whole
    assert colours_of({}) is None
    assert processor_options(str(tmp_path)) == {}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"size": square(224)}}))
    assert processor_options(str(tmp_path)) == {"size": square(224)}  # as whole processors are saved
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 96, "image_mean": [0.5] * 3}))
    assert processor_options(str(tmp_path)) == {"size": 96, "image_mean": [0.5] * 3}
    assert processor_options(str(tmp_path), {"image_mean", "image_std"}) == {"image_mean": [0.5] * 3}


@pytest.mark.parametrize(
    "content",
    [
        "{broken", "[]", '"hello"', '{"size": "big"}', '{"size": []}', '{"size": -5}', '{"size": {"height": 32, "width": 16}}',
        '{"size": {"shortest_edge": 1000000000}, "crop_size": 16}', '{"crop_size": {"height": 16, "width": 0}}',
        '{"resample": 99}', '{"resample": "soft"}', '{"rescale_factor": "a"}', '{"rescale_factor": 0}',
        '{"rescale_factor": null}', '{"image_mean": [NaN, 0.5, 0.5]}', '{"image_std": [0, 0, 0]}', '{"image_std": [1, 1]}',
        '{"image_mean": "grey"}',
    ],
)  # fmt: skip
def test_a_file_that_no_processor_can_have_is_refused_in_a_line(tmp_path, content):
    """Else the model would silently get other images than those that it knows."""
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(UserError, match=r"preprocessor_config\.json: .*; fix the file, or remove it") as refused:
        processor_options(str(tmp_path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["convnet", "hf_vit"])
def test_an_option_decides_for_any_encoder(kind):
    configs = {
        "convnet": schema.ConvNetConfig(image_size=16, width=16, stages=2),
        "hf_vit": schema.TransformersVisionConfig(name=folder("vit"), image_size=16),
    }
    auto, crop, whole = (
        build_vision(dataclasses.replace(configs[kind], resize=resize)).resizing for resize in schema.Resize
    )
    assert auto == (CENTRE_CROP if kind == "convnet" else Resizing(whole=True, floors=True))
    assert crop == CENTRE_CROP
    assert whole == Resizing(whole=True)


def test_the_part_that_a_report_shows_is_the_part_that_was_seen():
    wide = photo(90, 60)
    assert kept_box(wide, 32) == pytest.approx((1 / 6, 0, 5 / 6, 1), abs=0.02)
    assert kept_box(wide, 32, Resizing(whole=True)) == (0, 0, 1, 1)
    assert kept_box(wide, 32, Resizing(zoom=2)) == pytest.approx((1 / 3, 1 / 4, 2 / 3, 3 / 4), abs=0.02)


def test_a_random_crop_is_scaled_by_the_same_filter():
    image = photo(150, 110, seed=3)
    soft, sharp = (
        TrainTransform(32, (0,) * 3, (1,) * 3, 0.9, False, 0.0, Resizing(resample=filter)) for filter in (2, 3)
    )
    assert not torch.equal(soft(image, generator=generator(1)), sharp(image, generator=generator(1)))
    lanczos = TrainTransform(32, (0,) * 3, (1,) * 3, 0.9, False, 0.0, Resizing(resample=1))  # which torch has not
    found, close = (t(image, generator=generator(1)) for t in (lanczos, sharp))
    assert (found - close).abs().mean() < 0.02


def test_images_that_are_enlarged_are_told_once():
    assert CENTRE_CROP.enlarges(256, 224) == CENTRE_CROP.enlarges(256, 256) == []
    assert Resizing(zoom=256 / 224).enlarges(256, 224) == []
    (line,) = Resizing(whole=True).enlarges(256, 384)
    assert line.startswith(
        "note: images are stored with a shorter side of 256 pixels and enlarged to 384: velm preproc"
    )
