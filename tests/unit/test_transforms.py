"""Transforms: torchvision's numbers, randomness only from the generator, no mirroring of left and right."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from velm_cli.data.transforms import (
    EvalTransform,
    TrainTransform,
    _crop_by_torch,
    _jpeg_size,
    _random_crop,
    may_flip,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photo(width: int, height: int, seed: int = 0, mode: str = "RGB") -> bytes:
    """A JPEG of smooth blobs, as photos are: neither flat nor noise."""
    draw = np.random.default_rng(seed)
    bands = len(Image.new(mode, (1, 1)).getbands())
    coarse = draw.integers(0, 256, (max(height // 16, 2), max(width // 16, 2), bands), dtype=np.uint8)
    image = Image.fromarray(coarse.squeeze(), mode if mode == "CMYK" else None)
    buffer = BytesIO()
    image.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def reference(jpeg: bytes, size: int) -> torch.Tensor:
    chain = v2.Compose(
        [
            v2.Resize(size, interpolation=v2.InterpolationMode.BILINEAR, antialias=True),
            v2.CenterCrop(size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    return chain(Image.open(BytesIO(jpeg)).convert("RGB"))


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


@pytest.mark.parametrize("shape", [(96, 64), (64, 97), (64, 64), (65, 81), (50, 40), (41, 127), (33, 200)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_eval_equals_torchvision(shape, mode):
    jpeg = photo(*shape, seed=sum(shape), mode=mode)
    ours = EvalTransform(64, MEAN, STD)(jpeg)
    assert ours.shape == (3, 64, 64)
    assert ours.dtype == torch.float32
    # One grey level of 255 is 0.017 here; resampling in one go may round a pixel the other way.
    assert (ours - reference(jpeg, 64)).abs().max() < 0.02


@pytest.mark.parametrize("shape", [(256, 256), (512, 300), (301, 640), (135, 131)])
def test_scaling_by_the_decoder_stays_close_to_torchvision(shape):
    jpeg = photo(*shape, seed=sum(shape))
    difference = (EvalTransform(32, MEAN, STD)(jpeg) - reference(jpeg, 32)).abs()
    assert 0 < difference.mean() < 0.03
    assert difference.max() < 0.3


def test_no_random_crop_and_no_flip_is_the_eval_transform():
    jpeg = photo(90, 70)
    train = TrainTransform(64, MEAN, STD, crop_scale=1.0, flip=False)
    assert torch.equal(train(jpeg, generator=generator(1)), EvalTransform(64, MEAN, STD)(jpeg))


def test_augmentation_is_a_function_of_the_generator():
    jpeg = photo(200, 150)
    train = TrainTransform(48, MEAN, STD, crop_scale=0.5, flip=True)
    views = [train(jpeg, generator=generator(seed)) for seed in (1, 2, 3, 1)]
    assert torch.equal(views[0], views[3])
    assert not torch.equal(views[0], views[1])
    assert not torch.equal(views[1], views[2])


def test_half_of_the_images_are_mirrored_and_only_where_allowed():
    jpeg = photo(80, 64)
    straight = EvalTransform(64, MEAN, STD)(jpeg)
    train = TrainTransform(64, MEAN, STD, crop_scale=1.0, flip=True)
    mirrored = 0
    for seed in range(200):
        view = train(jpeg, generator=generator(seed))
        assert torch.equal(view, straight) or torch.equal(view, straight.flip(-1))
        mirrored += torch.equal(view, straight.flip(-1))
        assert torch.equal(train(jpeg, generator=generator(seed), may_flip=False), straight)
    assert 70 <= mirrored <= 130


@pytest.mark.parametrize("shape", [(160, 120), (120, 160), (128, 128), (300, 60)])
@pytest.mark.parametrize("crop_scale", [0.1, 0.5, 0.9])
def test_crops_keep_their_share_of_the_area(shape, crop_scale):
    """The image is a pair of ramps, so a crop tells where its edges were."""
    width, height = shape
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    pixels = np.stack([x, y, 0 * x], axis=-1) * 255
    buffer = BytesIO()
    Image.fromarray(pixels.round().astype(np.uint8)).save(buffer, "PNG")
    train = TrainTransform(32, (0, 0, 0), (1, 1, 1), crop_scale=crop_scale, flip=False)
    largest = min(width, height * 4 / 3) * min(height, width * 4 / 3)
    shares, ratios = [], []
    for seed in range(60):
        view = train(buffer.getvalue(), generator=generator(seed))
        # Pixels 8 and 24 of 32 are half a crop apart; the border is left out, where resampling clamps.
        crop_width = 2 * width * (view[0, :, 24] - view[0, :, 8]).mean().item()
        crop_height = 2 * height * (view[1, 24] - view[1, 8]).mean().item()
        shares.append(crop_width * crop_height / largest)
        ratios.append(crop_width / crop_height)
    assert crop_scale * 0.93 < min(shares) < max(shares) < 1.07
    assert 0.7 < min(ratios) < max(ratios) < 1.4
    assert max(shares) - min(shares) > 0.6 * (1 - crop_scale)


def saved(image: Image.Image, **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, options.pop("format", "JPEG"), **options)
    return buffer.getvalue()


def pictures() -> dict[str, bytes]:
    """One picture as files of all kinds that a store or a stream may hold."""
    image = Image.open(BytesIO(photo(150, 110, seed=3))).convert("RGB")
    return {
        "baseline": saved(image, quality=90),
        "full chroma": saved(image, quality=90, subsampling=0),
        "progressive": saved(image, quality=90, progressive=True),
        "restarts, comment": saved(image, quality=90, restart_marker_rows=1, comment=b"\xff\xc0 no frame"),
        "grey": saved(image.convert("L"), quality=90),
        "profile": saved(image, quality=90, icc_profile=b"\xff\xc2" * 40_000),
        "cmyk": saved(image.convert("CMYK"), quality=90),
        "png": saved(image, format="PNG"),
        "webp": saved(image, format="WEBP", lossless=True),
    }


@pytest.mark.parametrize("kind", pictures())
@pytest.mark.parametrize("crop_scale", [0.3, 0.9])
def test_random_crops_are_those_of_exact_arithmetic(kind, crop_scale):
    """Within two levels of 255, rounding twice; none but plain JPEGs are decoded by torchvision, to Pillow's pixels."""
    content = pictures()[kind]
    image = Image.open(BytesIO(content)).convert("RGB")
    train = TrainTransform(48, (0, 0, 0), (1, 1, 1), crop_scale, flip=False)
    by_torch = kind not in ("cmyk", "png", "webp")
    assert _jpeg_size(content) == (image.size if by_torch else None)
    for seed in range(20):
        draws = generator(seed).random(5)
        assert (_crop_by_torch(content, crop_scale, draws, 48) is not None) == by_torch
        box = _random_crop(*image.size, crop_scale, draws)
        found = 255 * train(content, generator=generator(seed))
        if by_torch:
            left, top, right, bottom = map(round, box)
            pixels = torch.from_numpy(np.asarray(image)[top:bottom, left:right].copy()).permute(2, 0, 1)[None].double()
            wanted = torch.nn.functional.interpolate(pixels, (48, 48), mode="bilinear", antialias=True)[0]
        else:
            part = image.resize((48, 48), Image.Resampling.BILINEAR, box=box)
            wanted = torch.from_numpy(np.asarray(part).copy()).permute(2, 0, 1).double()
        assert (found - wanted).abs().max() < 2
        assert (found - wanted).abs().mean() < 0.5


def test_large_images_are_scaled_down_by_the_decoder():
    """As before there was another one: it reads an eighth of the numbers."""
    content, draws = photo(900, 700), generator(1).random(5)
    assert _crop_by_torch(content, 0.9, draws, 48) is None
    assert _crop_by_torch(content, 0.9, draws, 480) is not None


def test_no_bytes_are_taken_for_a_jpegs_size_by_mistake():
    """Cut or altered anywhere: a size, none, but no other error; and a picture that cannot be read is an OSError."""
    draw, content = np.random.default_rng(0), pictures()["baseline"]
    train = TrainTransform(16, (0, 0, 0), (1, 1, 1), 0.5, flip=False)
    for cut in [*range(0, 700, 7), len(content) // 2]:
        assert _jpeg_size(content[:cut]) in (None, (150, 110))
        with pytest.raises(OSError, match=r"."):
            train(content[:cut], generator=generator(0))
    for _ in range(300):
        altered = bytearray(content)
        altered[draw.integers(0, 700)] = draw.integers(0, 256)
        try:
            assert train(bytes(altered), generator=generator(0)).shape == (3, 16, 16)
        except OSError:
            continue


def test_output_goes_into_the_given_array():
    out_CHW = np.full((2, 3, 32, 32), np.nan, np.float32)
    jpeg = photo(40, 50)
    EvalTransform(32, MEAN, STD)(jpeg, out_CHW=out_CHW[1])
    assert np.isnan(out_CHW[0]).all()
    assert torch.equal(torch.from_numpy(out_CHW[1]), EvalTransform(32, MEAN, STD)(jpeg))


def test_unreadable_images_raise():
    with pytest.raises(OSError, match=r"(?i)truncated"):
        EvalTransform(32, MEAN, STD)(photo(64, 64)[:400])
    with pytest.raises(OSError, match="cannot identify"):
        EvalTransform(32, MEAN, STD)(b"no image")


@pytest.mark.parametrize(
    ("captions", "allowed"),
    [
        (["a dog", "a cat on a mat"], True),
        (["an upright bright copyright cleft"], True),
        (["a dog", "a cat to the left"], False),
        (["The LEFTMOST of three"], False),
        (["a right-handed batter"], False),
        ([], True),
    ],
)
def test_captions_that_name_a_side_forbid_mirroring(captions, allowed):
    assert may_flip(captions) is allowed


def test_colour_jitter_is_torchvisions_with_factors_from_the_generator_and_leaves_the_crop():
    from torchvision.transforms import functional

    jpeg = photo(90, 70, seed=5)
    plain = TrainTransform(64, (0, 0, 0), (1, 1, 1), 0.6, True)
    jittered = TrainTransform(64, (0, 0, 0), (1, 1, 1), 0.6, True, 0.4)
    for seed in range(5):
        draw = generator(seed)
        draw.random(5)  # the crop and the mirror
        brightness, contrast, saturation = (1 + 0.4 * (2 * draw.random(3) - 1)).tolist()
        assert all(0.6 <= factor <= 1.4 for factor in (brightness, contrast, saturation))
        pixels = (plain(jpeg, generator=generator(seed)) * 255).round().byte().permute(1, 2, 0).numpy()
        image = functional.adjust_brightness(Image.fromarray(pixels), brightness)
        image = functional.adjust_saturation(functional.adjust_contrast(image, contrast), saturation)
        found = (jittered(jpeg, generator=generator(seed)) * 255).round().byte().permute(1, 2, 0).numpy()
        assert np.array_equal(found, np.asarray(image))
        assert not np.array_equal(found, pixels)
