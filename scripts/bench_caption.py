"""How fast are photos captioned beside a plain loop over transformers? Equal weights, side by side in one run.

    python scripts/bench_caption.py [--images 96] [--rounds 3] [--small] [--out bench_caption.json]

The model is a CLIP vision encoder (ViT-S/32 at 224 x 224) whose tokens stand before a GPT-2 of 6 blocks of width 384,
with random weights: the one architecture that velm and transformers share (`velm export format=hf`,
LlavaForConditionalGeneration). Both caption the same JPEG files of 1600 x 1200 pixels greedily with 20 tokens, in
float32, 32 at a time.

velm      `velm_cli.load(RUN).caption(paths, beams=1)`
loop      what a user writes: open with Pillow, the model's processor, `generate`, `batch_decode`, batch by batch

The words are compared. The two bring photos to 224 x 224 in different ways (velm by way of its store's 256 pixels), so
they need not be equal here; given the same pixels they are, which is checked first (exit code 1).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import bench_images
import torch
import transformers as t
from benching import ratio, row, save, take_turns
from PIL import Image

import velm_cli
from velm_cli.cli import main as velm
from velm_cli.inference.examples import Given

TOKENS, BATCH = 20, 32
TEXTS = ["one large red ball on a tree", "two small green cats near the house", "the man with three blue dogs"]


def make_models(folder: Path, small: bool) -> None:
    """vision/ and text/: pretrained models as people have them in folders."""
    import tokenizers as tk

    width, layers, heads = (48, 2, 2) if small else (384, 12, 6)
    vision = t.CLIPVisionConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads,
        image_size=32 if small else 224, patch_size=16 if small else 32, projection_dim=width,
    )  # fmt: skip
    t.CLIPVisionModel(vision).save_pretrained(folder / "vision")
    t.CLIPImageProcessor(size={"shortest_edge": vision.image_size}, crop_size=vision.image_size).save_pretrained(
        folder / "vision"
    )
    model = tk.Tokenizer(tk.models.BPE())
    model.pre_tokenizer = tk.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tk.decoders.ByteLevel()
    alphabet = tk.pre_tokenizers.ByteLevel.alphabet()
    trainer = tk.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(TEXTS, trainer)
    end = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    tokenizer = t.PreTrainedTokenizerFast(tokenizer_object=model, **end)
    tokenizer.save_pretrained(folder / "text")
    text = t.GPT2Config(
        vocab_size=len(tokenizer), n_embd=width, n_layer=layers // 2, n_head=heads, n_positions=256,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model_of_text = t.GPT2LMHeadModel(text)
    with torch.no_grad():  # the end's logit is 0, below that of some word: captions are as long as they may be
        model_of_text.transformer.wte.weight[0] = 0.0
    model_of_text.save_pretrained(folder / "text")


def run_velm(*words: str) -> None:
    try:
        velm(list(words))
    except SystemExit as end:
        if end.code:
            sys.exit(f"velm {' '.join(words)} failed")


def make_run(folder: Path, small: bool) -> tuple[Path, Path]:
    """A run of one step, and the same model for transformers."""
    make_models(folder, small)
    at = [f"dataset.root={folder}/shapes", f"dataset.store={folder}/store", "dataset.num_train=16", "dataset.num_val=4"]
    at += ["dataset.num_test=4", "dataset.image_size=256", "dataset.image_quality=90", "tokenizer.min_count=1"]
    run_velm("preprocess", "dataset=shapes", *at)
    run_velm(
        "train", "dataset=shapes", *at, "vision=clip", f"vision.name={folder}/vision", "text=gpt2",
        f"text.name={folder}/text", "fusion=prefix", "fusion.mapper=tokens", "fusion.norm=false",
        f"vision.image_size={32 if small else 224}", "run.max_steps=1", "run.batch_size=2", "run.validate_images=1",
        "metrics.names=[bleu]", f"run.dir={folder}/runs", "name=run",
    )  # fmt: skip
    run_velm("export", f"checkpoint={folder}/runs/train/run", f"out={folder}/hf", "format=hf")
    return folder / "runs/train/run", folder / "hf"


class Loop:
    """A plain loop over transformers."""

    def __init__(self, folder: Path) -> None:
        self.model = t.LlavaForConditionalGeneration.from_pretrained(folder).eval()
        self.processor: Any = t.AutoProcessor.from_pretrained(folder)

    def words(self, pixels_BCHW: torch.Tensor | None, images: list[Image.Image]) -> list[str]:
        given = self.processor(images=images, text=["<image><|endoftext|>"] * len(images), return_tensors="pt")
        if pixels_BCHW is not None:
            given["pixel_values"] = pixels_BCHW
        with torch.inference_mode():
            tokens = self.model.generate(**given, max_new_tokens=TOKENS, do_sample=False)
        written = tokens[:, given["input_ids"].shape[1] :]
        return self.processor.tokenizer.batch_decode(written, skip_special_tokens=True)

    def __call__(self, paths: list[Path]) -> list[str]:
        found = []
        for start in range(0, len(paths), BATCH):
            images = [Image.open(path).convert("RGB") for path in paths[start : start + BATCH]]
            found += self.words(None, images)
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a small model and small photos, to try the script")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="velm-bench-") as name:
        folder = Path(name)
        run, hf = make_run(folder, options.small)
        size = (96, 64) if options.small else (1600, 1200)
        paths = bench_images.make_pictures(folder / "photos", options.images, size, 90)
        model, loop = velm_cli.load(run, "cpu", precision="fp32"), Loop(hf)

        def by_velm(paths: list[Path]) -> list[str]:
            return model.caption(paths, beams=1, max_length=TOKENS, batch_size=BATCH)

        some = paths[:4]
        (batch,) = model._batches(Given([model.stored(path) for path in some]), len(some))
        told = by_velm(some)
        same = loop.words(batch.image_XCHW, [Image.open(path) for path in some])
        if [text.split() for text in same] != [text.split() for text in told]:
            print(f"with the same pixels the words differ: {same} {told}")
            return 1
        equal = sum(one.split() == other.split() for one, other in zip(by_velm(paths), loop(paths), strict=True))
        print(f"{equal} of {len(paths)} captions are the same, each by its own way to scale photos")
        seconds = take_turns({"velm": lambda _: by_velm(paths), "loop": lambda _: loop(paths)}, options.rounds)
        for name, times in seconds.items():
            print(f"{name:<6}{len(paths) / statistics.median(times):8.1f} images per second")
        rows = [row("captioning photos: a loop over transformers", ratio(seconds, "velm", "loop"))]
        save(options.out, rows, {"seconds": seconds, "images": len(paths)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
