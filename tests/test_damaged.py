"""A data set of which a tenth is damaged: everything refused is listed, everything good goes all the way."""

import io
import json
import random

import numpy as np
import pytest
from java_support import needs_spice
from PIL import Image
from velm import call

from velm_cli.data.opening import open_store

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 40), "blue": (30, 40, 200), "yellow": (230, 220, 40)}
GOOD, DAMAGED = range(1, 181), range(181, 201)


def picture(colour: str, seed: int) -> Image.Image:
    """Left half grey, right half coloured: which side is which tells whether it stands upright."""
    noise = np.random.default_rng(seed).integers(-8, 9, (64, 96, 3))
    pixels = np.full((64, 96, 3), 128) + noise
    pixels[:, 48:] = np.array(COLOURS[colour]) + noise[:, 48:]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95, subsampling=0, **options)
    return out.getvalue()


def odd_file(number: int, image: Image.Image) -> tuple[bytes, str | None]:
    """A file's bytes by its number, and the reason why it must be refused (None: it is good)."""
    whole, out = jpeg(image), io.BytesIO()
    match number:
        case 181:
            return whole[: len(whole) // 3], "truncated"
        case 182:
            return b"", "empty"
        case 183:
            return b"this is text, not a picture\n" * 40, "not an image"
        case 184:
            return bytes(len(whole)), "not an image"
        case 185:
            image.convert("CMYK").save(out, "JPEG", quality=95)
        case 186:
            grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
            Image.fromarray(grey).save(out, "PNG")
        case 187:
            palette = image.convert("P", palette=Image.Palette.ADAPTIVE)
            palette.save(out, "PNG", transparency=bytes([255] * 255 + [0]))
        case 188:
            return jpeg(image.resize((1, 1))), "too small"
        case 189:
            Image.new("RGB", (30_000, 64), COLOURS["red"]).save(out, "JPEG")
        case 190:  # stored turned, with the EXIF note that says so
            exif = Image.Exif()
            exif[0x0112] = 6
            return jpeg(image.transpose(Image.Transpose.ROTATE_90), exif=exif), None
        case 191:
            frames = [image.convert("P"), Image.new("P", image.size, 3)]
            frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
        case _:
            return whole, None
    return out.getvalue(), None


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """COCO's layout: 180 good images, 20 with damage of one kind or another."""
    folder = tmp_path_factory.mktemp("damaged")
    rng = random.Random(5)
    images, annotations = [], []
    for number in [*GOOD, *DAMAGED]:
        part = "train" if number <= 150 or number > 180 else "val"
        colour = "red" if number > 180 else rng.choice(list(COLOURS))
        name = f"COCO_{part}2014_{number:012d}.jpg"
        path = folder / "coco" / f"{part}2014" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(odd_file(number, picture(colour, number))[0])
        images.append((part, {"id": number, "file_name": name, "height": 64, "width": 96}))
        captions = [f"a {colour} wall beside a grey one", f"the right half is {colour}"]
        captions = {
            192: ["", "   "],
            193: ["a red wall\nbeside a grey one", "it is\r\nred"],
            194: ["a red wall 🧱🟥", "🟥"],
            195: ["red wall " * 5000, "a red wall"],
            196: ["a red ||| wall", "the wall is red"],
            197: ["", "one caption is empty"],
            198: ["جدار أحمر", "a red wall"],
        }.get(number, captions)
        annotations += [(part, {"image_id": number, "caption": text}) for text in captions]
    images.append(("train", dict(images[3][1])))  # a duplicate id
    for part in ("train", "val"):
        content = {
            "info": {}, "licenses": [],
            "images": [image for p, image in images if p == part],
            "annotations": [{"id": n, **a} for n, (p, a) in enumerate(annotations) if p == part],
        }  # fmt: skip
        (folder / "coco/annotations").mkdir(exist_ok=True)
        (folder / f"coco/annotations/captions_{part}2014.json").write_text(json.dumps(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options = ["dataset=coco", "dataset.root=coco", "dataset.split=official2014", "dataset.image_size=64"]
        assert call("preprocess", *options, "tokenizer.min_count=2") == 0
        yield folder


def refused(place) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for line in map(json.loads, (place / "stores/coco-official2014/rejects.jsonl").read_text().splitlines()):
        out.setdefault(str(line["image_id"]), []).append(line["reason"])
    return out


def test_each_refused_one_is_listed_with_its_reason(place):
    reasons = refused(place)
    for number in DAMAGED:
        _, expected = odd_file(number, picture("red", number))
        if expected:
            assert any(expected in reason for reason in reasons[str(number)]), (number, reasons.get(str(number)))
    assert any("no usable caption" in reason for reason in reasons["192"])
    assert any("empty" in reason for reason in reasons["197"])
    assert any("duplicate" in reason for reason in reasons[str(4)])
    assert set(reasons) == {"181", "182", "183", "184", "188", "192", "197", "4"}


def test_the_good_ones_are_upright_and_rgb(place):
    store = open_store(place / "stores/coco-official2014")
    kept = {store.example_id(i): i for i in range(len(store))}
    gone = {181, 182, 183, 184, 188, 192}
    assert set(kept) == {*GOOD, *DAMAGED} - gone
    for number in {*DAMAGED} - gone - {186, 189}:
        image = Image.open(io.BytesIO(store.image_bytes(kept[number])))
        assert image.mode == "RGB"
        assert image.size == (96, 64), number
        pixels = np.asarray(image).astype(int)
        left, right = pixels[8:-8, 8:40].mean((0, 1)), pixels[8:-8, 56:-8].mean((0, 1))
        assert np.abs(left - 128).max() < 16, (number, left)
        assert np.abs(right - COLOURS["red"]).max() < 30, (number, right)
    grey = np.asarray(Image.open(io.BytesIO(store.image_bytes(kept[186])))).astype(int)
    assert abs(grey[8:-8, 8:40].mean() - 128) < 6  # 16 bits scaled, not clipped
    assert store.targets(kept[193]) == ["a red wall beside a grey one", "it is red"]
    assert store.targets(kept[194]) == ["a red wall 🧱🟥", "🟥"]


@pytest.mark.spice
def test_training_and_all_eight_scores_run_on_the_rest(place, capsys):
    needs_spice()
    model = ["vision=convnet", "vision.image_size=64", "text.width=64", "text.layers=1", "fusion.layers=1"]
    data = ["dataset=coco", "dataset.split=official2014", "dataset.image_size=64", "tokenizer.min_count=2"]
    code = call("train", *data, *model, "loss.beta=1", "run.max_steps=60", "run.batch_size=16", "name=d",
                "data.captions_per_image=2", "optim.lr=3e-3", "optim.warmup_steps=5")  # fmt: skip
    assert code == 0
    assert call("eval", "checkpoint=runs/train/d", "split=train", "limit=0", "decode=greedy") == 0
    scores = json.loads((place / "runs/evaluate/d-coco-train-greedy/scores.json").read_text())
    for name in ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr", "SPICE"):
        assert scores[name] is not None, scores["reasons"]
        assert 0 < scores[name] < 10
    assert scores["images"] == 164
