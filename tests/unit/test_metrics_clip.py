"""CLIPScore and RefCLIPScore are the paper's, of a model in a folder; without images there is a reason, no number."""

from __future__ import annotations

import io
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from velm_cli.errors import UserError
from velm_cli.metrics.captions import score_captions
from velm_cli.metrics.clip_score import ClipJudge
from velm_cli.schema import MetricsConfig

WORDS = ["a", "photo", "depicts", "dog", "cat", "red", "blue", "runs", "sits", "on", "grass", "two"]


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory) -> str:
    """A tiny CLIP with random weights, its tokenizer and its image processor."""
    import tokenizers
    import transformers as t

    path = tmp_path_factory.mktemp("clip")
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<end>", "<unk>", *WORDS])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.normalizer = tokenizers.normalizers.Lowercase()
    words.post_processor = tokenizers.processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 1)])
    tokenizer = t.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    )
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    text = sizes | {"vocab_size": len(vocabulary), "eos_token_id": 1, "pad_token_id": 0, "max_position_embeddings": 16}
    vision = sizes | {"image_size": 16, "patch_size": 8}
    model = t.CLIPModel(t.CLIPConfig(vision_config=vision, text_config=text, projection_dim=8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        # Noise looks much alike to it: if most similarities were negative, all scores would be 0 now and then.
        noise, words = torch.randn(64, 3, 16, 16), torch.randint(3, len(vocabulary), (64, 8))
        words[:, -1] = 1
        if model(input_ids=words, pixel_values=noise).logits_per_image.median() < 0:
            model.visual_projection.weight.neg_()
    model.save_pretrained(path)
    size = {"shortest_edge": 16}
    processor = t.CLIPImageProcessor(size=size, crop_size={"height": 16, "width": 16})
    t.CLIPProcessor(image_processor=processor, tokenizer=tokenizer).save_pretrained(path)
    return str(path)


def jpeg(rng: random.Random) -> bytes:
    pixels = np.random.default_rng(rng.randrange(2**31)).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def captions(rng: random.Random, images: int) -> tuple[dict[int, list[str]], dict[int, str]]:
    def caption() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 9)))

    return {i: [caption() for _ in range(rng.randint(1, 3))] for i in range(images)}, {
        i: caption() for i in range(images)
    }


def test_scores_are_those_of_the_paper(judge_folder):
    import transformers as t

    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    rng = random.Random(seed)
    references, hypotheses = captions(rng, 70)  # more than one batch
    files = {image: jpeg(rng) for image in references}
    scores = score_captions(
        references, hypotheses, MetricsConfig(names=["bleu"], clip=judge_folder), read_image=files.get
    )
    model, processor = (
        t.CLIPModel.from_pretrained(judge_folder).double().eval(),
        t.AutoProcessor.from_pretrained(judge_folder),
    )
    for image, hypothesis in hypotheses.items():
        texts = [f"A photo depicts {text}" for text in (hypothesis, *references[image])]
        picture = Image.open(io.BytesIO(files[image]))
        inputs = processor(text=texts, images=[picture], return_tensors="pt", padding=True)
        with torch.no_grad():
            found = model(**inputs | {"pixel_values": inputs["pixel_values"].double()})
            seen = float(found.logits_per_image[0, 0] / model.logit_scale.exp())
        nearest = max(0.0, *(found.text_embeds[1:] @ found.text_embeds[0]).tolist())
        clip = 2.5 * max(seen, 0.0)
        both = 2 * clip * nearest / (clip + nearest) if clip and nearest else 0.0
        assert scores.per_image[image]["CLIPScore"] == pytest.approx(clip, abs=1e-5)
        assert scores.per_image[image]["RefCLIPScore"] == pytest.approx(both, abs=1e-5)
    values = [row["CLIPScore"] for row in scores.per_image.values()]
    assert scores.corpus["CLIPScore"] == pytest.approx(sum(values) / len(values))
    assert min(values) < max(values)
    low, high = scores.intervals["RefCLIPScore"]
    assert low < scores.corpus["RefCLIPScore"] < high
    assert scores.signature["clip"].startswith("clip ")


@pytest.mark.parametrize("damaged", [None, b"", b"GIF89a no", b"\xff\xd8\xff\xe0 cut"])
def test_images_that_are_missing_or_damaged_are_counted_and_enter_no_mean(judge_folder, damaged):
    rng = random.Random(1)
    references, hypotheses = captions(rng, 3)
    files = {0: jpeg(rng), 1: damaged, 2: jpeg(rng)}
    config = MetricsConfig(names=[], clip=judge_folder)
    scores = score_captions(references, hypotheses, config, read_image=files.get)
    values = [scores.per_image[image]["CLIPScore"] for image in range(3)]
    assert values[1] is None
    assert scores.corpus["CLIPScore"] == pytest.approx((values[0] + values[2]) / 2)
    (warning,) = scores.warnings
    why = "no such file" if damaged is None else "empty" if not damaged else "(undecodable|truncated|not an image)"
    assert re.fullmatch(rf"CLIPScore leaves out, of 3, 1 image \(1: {why}.*\)", warning), warning
    for read_image, reason in (
        (lambda image: None, "none of the images can be seen: 3 images (0: no such file, 1: "),
        (None, "say where they are"),
    ):
        scores = score_captions(references, hypotheses, config, read_image=read_image)
        assert scores.corpus["CLIPScore"] is None
        assert reason in scores.reasons["RefCLIPScore"]


def test_a_picture_is_seen_as_the_store_sees_it(judge_folder, tmp_path):
    """Turned by EXIF, with 16 bits, as a file or its content: the same pixels have the same score."""
    pixels = np.random.default_rng(7).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    upright = Image.fromarray(pixels)
    grey = upright.convert("L")
    turned = Image.Exif()
    turned[0x0112] = 6

    def saved(name: str, image: Image.Image, **options) -> Path:
        image.save(tmp_path / name, **options)
        return tmp_path / name

    files = {
        0: saved("a.png", upright),
        1: saved("turned.png", upright.transpose(Image.Transpose.ROTATE_90), exif=turned),
        2: (tmp_path / "a.png").read_bytes(),
        3: saved("grey.png", grey),
        4: saved("deep.png", Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)),
        5: tmp_path / "absent.png",
        6: tmp_path,
    }
    same = dict.fromkeys(files, "a red dog")
    config = MetricsConfig(names=[], clip=judge_folder)
    scores = score_captions({image: ["a dog"] for image in files}, same, config, read_image=files.get)
    found = [scores.per_image[image]["RefCLIPScore"] for image in files]
    assert found[0] == found[1] == found[2] and found[3] == found[4]
    assert found[5] is found[6] is None
    assert (
        "2 images (5: unreadable: No such file or directory, 6: unreadable: not a regular file)" in scores.warnings[0]
    )


def test_a_folder_of_something_else_is_one_line(tmp_path, judge_folder):
    with pytest.raises(UserError, match=r"metrics.clip=.* is no folder of a CLIP-like model") as error:
        ClipJudge(str(tmp_path))
    assert "\n" not in str(error.value)
    assert Path(judge_folder).is_dir()
