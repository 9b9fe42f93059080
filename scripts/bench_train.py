"""How fast is a training step beside transformers'? Captions a second, side by side in one run.

    python scripts/bench_train.py [--images 8] [--rounds 5] [--precision fp32|bf16] [--small] [--out bench_train.json]

One architecture for all: ViT-S/16 at 224 x 224 (12 blocks, width 384), a decoder of 6 blocks of width 384 with
cross-attention in each, vocabulary 10,000, all parameters trained, 5 captions an image with the lengths of COCO's,
dropout 0.1 in the decoder, AdamW, gradients clipped. The contestants take turns, so a busy machine slows all:

velm      one step of `velm train`: the image is encoded once, its five captions share keys and values
repeated  transformers' VisionEncoderDecoderModel (ViT and GPT-2) as it is used: one image with every caption
grouped   the same, its encoder run once an image and the states repeated: only the decoder's step counts

Printed are medians, and the median and range of the ratios of each round.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pycocoevalcap
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from velm_cli import schema
from velm_cli.data.batch import Batch
from velm_cli.engine.checkpoint import Progress
from velm_cli.engine.loop import Run, train_step
from velm_cli.engine.optim import build_optimizer
from velm_cli.files import write_json
from velm_cli.metrics import ptb
from velm_cli.models.velm import VelmModel, count_parameters
from velm_cli.objectives.weights import Weight
from velm_cli.tasks.caption import CaptionTask

VOCAB, PAD, BOS, EOS, CAPTIONS = 10_000, 0, 1, 2, 5
JAR = Path(pycocoevalcap.__path__[0]) / "spice" / "spice-1.0.jar"


def caption_lengths() -> list[list[int]]:
    """Words of each caption of COCO's val2014, by image."""
    with zipfile.ZipFile(JAR) as jar:
        annotations = json.loads(jar.read("coco/annotations/captions_val2014.json"))["annotations"]
    groups: dict[int, list[str]] = {}
    for annotation in annotations:
        groups.setdefault(annotation["image_id"], []).append(annotation["caption"])
    some = [group[:CAPTIONS] for group in list(groups.values())[:2000]]
    return [[len(caption.split()) for caption in ptb.tokenize(group)] for group in some]


def make_batches(count: int, images: int, side: int) -> list[Batch]:
    """Random images and words; of like length in a batch, as velm's loader puts them together."""
    lengths = caption_lengths()
    random.Random(0).shuffle(lengths)
    lengths = sorted(lengths[: 50 * images], key=max)
    groups = [lengths[start : start + images] for start in range(0, len(lengths) - images + 1, images)]
    random.Random(1).shuffle(groups)
    draw = torch.Generator().manual_seed(0)
    return [_batch(group, side, draw) for group in groups[:count]]


def _batch(lengths: list[list[int]], side: int, draw: torch.Generator) -> Batch:
    lengths_BK = torch.tensor(lengths) + 2  # with the first and the last token
    B, K = lengths_BK.shape
    T = int(lengths_BK.max())
    tokens_BKT = torch.randint(3, VOCAB, (B, K, T), generator=draw)
    place_T = torch.arange(T)
    tokens_BKT[place_T.expand(B, K, T) == (lengths_BK - 1)[..., None]] = EOS
    tokens_BKT[place_T.expand(B, K, T) >= lengths_BK[..., None]] = PAD
    tokens_BKT[..., 0] = BOS
    positions = (torch.arange(T - 1) < lengths_BK.view(-1, 1) - 1).flatten().nonzero()[:, 0]
    return Batch(
        image_ids=list(range(B)),
        indices=list(range(B)),
        image_BCHW=torch.randn(B, 3, side, side, generator=draw),
        tokens_BKT=tokens_BKT,
        lengths_BK=lengths_BK,
        positions_M=positions,
        concepts_BC=torch.zeros(B, 1),
        num_captions=B * K,
        num_tokens=len(positions),
    )


def velm_step(sizes: dict[str, int], precision: schema.Precision) -> tuple[Callable[[Batch], object], int]:
    """A step of `velm train`, and the number of parameters."""
    torch.manual_seed(0)
    width, heads = sizes["width"], sizes["heads"]
    model = VelmModel(
        vision=schema.ViTConfig(
            image_size=sizes["side"], patch_size=16, width=width, layers=sizes["vision"], heads=heads, conv_stem=False
        ),
        text=schema.TransformerConfig(width=width, layers=0, heads=heads, dropout=0.1),
        fusion=schema.CrossModalConfig(layers=sizes["text"], heads=heads, dropout=0.1),
        vocab_size=VOCAB,
    )
    task = CaptionTask(model, schema.LossConfig(), concepts=1, active=frozenset({"text"})).train()
    config = schema.TrainRoot(
        dataset=schema.ShapesConfig(), vision=schema.ViTConfig(), text=schema.TransformerConfig(),
        fusion=schema.CrossModalConfig(), task=schema.CaptionTaskConfig(),
    )  # fmt: skip
    run = Run(
        config=config,
        folder=Path(),
        task=task,
        features=None,
        optimizer=build_optimizer(task, config.optim),
        ema=None,
        weights={"text": Weight(1.0, 1.0)},
        own_words=Weight(0.0, 0.0),
        steps_per_epoch=1000,
        device=torch.device("cpu"),
        precision=precision,
        progress=Progress(),
    )
    return lambda batch: train_step(run, 500, [batch]), count_parameters(task)


def transformers_steps(
    sizes: dict[str, int], precision: schema.Precision
) -> tuple[Callable[[Batch], object], Callable[[Batch], object], int]:
    """Steps of VisionEncoderDecoderModel, every caption with its image and grouped; the number of parameters."""
    import transformers as t
    from transformers.modeling_outputs import BaseModelOutput

    torch.manual_seed(0)
    width, heads = sizes["width"], sizes["heads"]
    vision = t.ViTConfig(
        hidden_size=width, num_hidden_layers=sizes["vision"], num_attention_heads=heads, intermediate_size=4 * width,
        image_size=sizes["side"], patch_size=16,
    )  # fmt: skip
    text = t.GPT2Config(
        vocab_size=VOCAB, n_embd=width, n_layer=sizes["text"], n_head=heads, n_positions=64,
        add_cross_attention=True, is_decoder=True, bos_token_id=BOS, eos_token_id=EOS,
    )  # fmt: skip
    model: Any = t.VisionEncoderDecoderModel(
        encoder=t.ViTModel(vision, add_pooling_layer=False), decoder=t.GPT2LMHeadModel(text)
    ).train()
    model.config.decoder_start_token_id, model.config.pad_token_id = BOS, PAD
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    bf16 = precision is schema.Precision.bf16

    def step(batch: Batch, *, grouped: bool) -> None:
        tokens_NT = batch.tokens_BKT.flatten(0, 1)
        lengths_N1 = batch.lengths_BK.view(-1, 1)
        inside_NT = torch.arange(tokens_NT.shape[1] - 1) < lengths_N1 - 1
        labels_NT = tokens_NT[:, 1:].masked_fill(~inside_NT, -100)
        inputs = {"decoder_input_ids": tokens_NT[:, :-1], "decoder_attention_mask": inside_NT.long()}
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            if grouped:
                states_BSD = model.encoder(pixel_values=batch.image_BCHW).last_hidden_state
                inputs["encoder_outputs"] = BaseModelOutput(states_BSD.repeat_interleave(CAPTIONS, dim=0))
            else:
                assert batch.image_BCHW is not None
                inputs["pixel_values"] = batch.image_BCHW.repeat_interleave(CAPTIONS, dim=0)
            loss: Tensor = model(**inputs, labels=labels_NT, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def repeated(batch: Batch) -> None:
        step(batch, grouped=False)

    def once(batch: Batch) -> None:
        step(batch, grouped=True)

    return repeated, once, sum(p.numel() for p in model.parameters())


def matrix_peak(precision: schema.Precision) -> float:
    """FLOP/s of a large matrix product, the best of several."""
    dtype = torch.bfloat16 if precision is schema.Precision.bf16 else torch.float32
    a, b = torch.randn(2048, 2048, dtype=dtype), torch.randn(2048, 2048, dtype=dtype)
    best = 0.0
    for _ in range(10):
        began = time.perf_counter()
        a @ b
        best = max(best, 2 * 2048**3 / (time.perf_counter() - began))
    return best


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=8, help="images a batch, with five captions each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--small", action="store_true", help="a small model, to try the script")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    precision = schema.Precision(options.precision)
    sizes = {"side": 224, "width": 384, "heads": 6, "vision": 12, "text": 6}
    if options.small:
        sizes = {"side": 32, "width": 48, "heads": 2, "vision": 1, "text": 1}
    batches = make_batches(options.rounds + 1, options.images, sizes["side"])
    velm, parameters = velm_step(sizes, precision)
    repeated, grouped, their_parameters = transformers_steps(sizes, precision)
    steps = {"velm": velm, "repeated": repeated, "grouped": grouped}
    print(f"parameters  velm {parameters / 1e6:.2f} M, transformers {their_parameters / 1e6:.2f} M")

    for step in steps.values():  # the first of each is slower
        step(batches[0])
    peak = matrix_peak(precision)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    work = []
    for batch in batches[1:]:
        for name, step in steps.items():
            began = time.perf_counter()
            step(batch)
            seconds[name].append(time.perf_counter() - began)
        with FlopCounterMode(display=False) as counted:
            velm(batch)
        work.append(counted.get_total_flops())
        peak = max(peak, matrix_peak(precision))

    captions = options.images * CAPTIONS
    result: dict[str, Any] = {"setting": {**vars(options), **sizes, "out": None}, "peak_flops": peak}
    result["machine"] = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cpu": platform.processor()}
    for name, times in seconds.items():
        result[name] = {"captions_per_s": captions / statistics.median(times), "seconds": times}
        print(f"{name:<9} {captions / statistics.median(times):8.1f} captions/s")
    for name in ("repeated", "grouped"):
        ratios = [theirs / ours for theirs, ours in zip(seconds[name], seconds["velm"], strict=True)]
        result[f"against_{name}"] = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
        print(f"against {name:<9} {statistics.median(ratios):5.2f} x  ({min(ratios):.2f} to {max(ratios):.2f})")
    share = statistics.median(w / s / peak for w, s in zip(work, seconds["velm"], strict=True))
    result["share_of_peak"] = share
    print(f"velm's step uses {100 * share:.0f} % of {peak / 1e9:.0f} GFLOP/s ({options.precision})")
    if options.out:
        write_json(options.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
