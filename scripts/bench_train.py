"""How fast is a training step beside transformers' and open_clip's? Captions a second, side by side in one run.

    python scripts/bench_train.py [--images 16] [--rounds 5] [--precision auto|fp32|bf16] [--compile block] [--small]
                                  [--out bench_train.json]

ViT-S/16 at 224 x 224 (12 blocks, width 384), vocabulary 10,000, all parameters trained, 5 captions an image with the
lengths of COCO's, AdamW, gradients clipped. The contestants take turns, so a busy machine slows all; each has a process
of its own, velm's with the settings of `velm train`, the others' with torch's, and some steps to warm up:

velm      one step of `velm train`: the image is encoded once, its five captions share keys and values; a decoder of
          6 blocks of width 384 with cross-attention in each, dropout 0.1
repeated  transformers' VisionEncoderDecoderModel (ViT and GPT-2) of these sizes as it is used: one image with every
          caption
grouped   the same, its encoder run once an image and the states repeated: only the decoder's step counts
both      velm with a contrastive loss too: 4 blocks of text alone, 3 with cross-attention
coca      open_clip's CoCa, caption + contrastive loss, 3 blocks of text, 3 + 3 of its decoder (and an output matrix of
          its own: 5 M parameters more); one image with every caption, the captions cut to the longest of the batch
          (its own tokenizer pads to 76)

Printed are medians, the median and range of the ratios of each round, and what the ratio would be if both did their
floating-point operations equally fast.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import benching
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from velm_cli import schema
from velm_cli.data.batch import Batch
from velm_cli.engine.compiling import compile_model
from velm_cli.engine.device import pick_precision, prepare
from velm_cli.engine.meter import matrix_peak
from velm_cli.learners.writing import WritingLearner
from velm_cli.metrics import ptb
from velm_cli.metrics.authority import SPICE_JAR, pycocoevalcap
from velm_cli.models.velm import VelmModel, count_parameters
from velm_cli.objectives.weights import constant

VOCAB, PAD, BOS, EOS, CAPTIONS = 10_000, 0, 1, 2, 5
ROWS = [  # velm's contestant, the other one, who that is, how many times faster velm is asked to be
    ("velm", "repeated", "transformers, one image a caption", 6.0),
    ("velm", "grouped", "transformers, grouped by image", 1.5),
    ("both", "coca", "open_clip's CoCa, with contrastive loss", 3.0),
]
Step = Callable[[Batch], object]


def caption_lengths() -> list[list[int]]:
    """Words of each caption of COCO's val2014, by image."""
    with zipfile.ZipFile(pycocoevalcap() / SPICE_JAR) as jar:
        annotations = json.loads(jar.read("coco/annotations/captions_val2014.json"))["annotations"]
    groups: dict[int, list[str]] = {}
    for annotation in annotations:
        groups.setdefault(annotation["image_id"], []).append(annotation["caption"])
    some = [group[:CAPTIONS] for group in list(groups.values())[:2000]]
    return [[len(caption.split()) for caption in ptb.tokenize(group)] for group in some]


def make_batches(count: int, images: int, side: int, lengths: list[list[int]]) -> list[Batch]:
    """Random images and words; of like length in a batch, as velm's loader puts them together.

    `lengths`: words of each caption, by image.
    """
    lengths = [*lengths]
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
    image_XCHW = torch.randn(B, 3, side, side, generator=draw)
    return Batch.of(tokens_BKT, lengths_BK, image_XCHW=image_XCHW, labels={"concepts": torch.zeros(B, 1)})


class Contestant:
    """One that trains on batches, which are the same for all."""

    def __init__(self, name: str, sizes: dict[str, int], options: dict[str, Any]) -> None:
        if name in ("velm", "both"):
            prepare(torch.device("cpu"), 0)
        precision, how = schema.Precision(options["precision"]), schema.Compile(options["compile"])
        self.batches = make_batches(options["rounds"] + 1, options["images"], sizes["side"], caption_lengths())
        self._step: Step
        if name == "coca":
            self._step, self.parameters = coca_step(sizes, precision)
        elif name in ("repeated", "grouped"):
            self._step, self.parameters = transformers_step(sizes, precision, grouped=name == "grouped")
        else:
            self._step, self.parameters = velm_step(sizes, precision, how, contrastive=name == "both")

    def count(self) -> int:
        """Its parameters."""
        return self.parameters

    def step(self, number: int) -> None:
        """Train on a batch."""
        self._step(self.batches[number % len(self.batches)])

    def operations(self, number: int) -> int:
        """Floating-point operations of that step, as written: a compiled step is not looked into."""
        with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counted:
            self.step(number)
        return counted.get_total_flops()


def velm_step(
    sizes: dict[str, int],
    precision: schema.Precision,
    how: schema.Compile,
    *,
    contrastive: bool = False,
    device: torch.device = benching.CPU,
) -> tuple[Step, int]:
    """A step of `velm train`, and the number of parameters. Batches have to be on the device."""
    torch.manual_seed(0)
    width, heads = sizes["width"], sizes["heads"]
    text_layers, fusion_layers = (
        (0, sizes["text"]) if not contrastive else (sizes["text"] // 2 + 1, -(-sizes["text"] // 2))
    )
    model = VelmModel(
        vision=schema.ViTConfig(
            image_size=sizes["side"], patch_size=16, width=width, layers=sizes["vision"], heads=heads, conv_stem=False
        ),
        text=schema.TransformerConfig(width=width, layers=text_layers, heads=heads, dropout=0.1),
        fusion=schema.CrossModalConfig(layers=fusion_layers, heads=heads, dropout=0.1),
        vocab_size=VOCAB,
    )
    terms = frozenset({"text", "joint"} if contrastive else {"text"})
    task = (
        WritingLearner(model, schema.LossConfig(joint_width=width), concepts=1, weights=constant(*terms))
        .train()
        .to(device)
    )
    compile_model(model, how, device)
    config = schema.TrainRoot(
        dataset=schema.ShapesConfig(), vision=schema.ViTConfig(), text=schema.TransformerConfig(),
        fusion=schema.CrossModalConfig(), task=schema.CaptionTaskConfig(),
    )  # fmt: skip
    run = benching.run_of(task, config, precision, device)
    return lambda batch: benching.step(run, batch), count_parameters(task)


def coca_step(sizes: dict[str, int], precision: schema.Precision) -> tuple[Step, int]:
    """A step of open_clip's CoCa with both its losses, and the number of parameters."""
    from open_clip import CoCa, CoCaLoss

    torch.manual_seed(0)
    width, heads = sizes["width"], sizes["heads"]
    layers = -(-sizes["text"] // 2)
    text = {"vocab_size": VOCAB, "width": width, "heads": heads, "layers": layers, "context_length": 76}
    model = CoCa(
        embed_dim=width,
        multimodal_cfg=text,
        text_cfg={**text, "embed_cls": True, "output_tokens": True},
        vision_cfg={
            "image_size": sizes["side"], "patch_size": 16, "width": width, "layers": sizes["vision"],
            "head_width": width // heads, "output_tokens": True,
        },
        pad_id=PAD,
    ).train()  # fmt: skip
    torch.nn.init.normal_(model.text_decoder.text_projection, std=width**-0.5)  # CoCa leaves it as memory was
    judge = CoCaLoss(caption_loss_weight=1.0, clip_loss_weight=1.0, pad_id=PAD)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)

    def step(batch: Batch) -> None:
        assert batch.image_XCHW is not None
        image_NCHW = batch.image_XCHW.repeat_interleave(CAPTIONS, dim=0)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is schema.Precision.bf16):
            out = model(image_NCHW, batch.tokens_BKT.flatten(0, 1))
            clip_loss, caption_loss = judge(**out)
        _descend(model, optimizer, clip_loss + caption_loss)

    return step, count_parameters(model)


def _descend(model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def transformers_step(
    sizes: dict[str, int], precision: schema.Precision, *, grouped: bool, device: torch.device = benching.CPU
) -> tuple[Step, int]:
    """A step of VisionEncoderDecoderModel, every caption with its image or grouped; the number of parameters."""
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
    )
    model.train().to(device)
    model.config.decoder_start_token_id, model.config.pad_token_id = BOS, PAD
    fused = device.type == "cuda" or None  # as transformers' Trainer; torch's default on a CPU
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=fused)
    bf16 = precision is schema.Precision.bf16

    def step(batch: Batch) -> None:
        tokens_NT = batch.tokens_BKT.flatten(0, 1)
        lengths_N1 = batch.lengths_BK.view(-1, 1)
        inside_NT = torch.arange(tokens_NT.shape[1] - 1, device=device) < lengths_N1 - 1
        labels_NT = tokens_NT[:, 1:].masked_fill(~inside_NT, -100)
        inputs = {"decoder_input_ids": tokens_NT[:, :-1], "decoder_attention_mask": inside_NT.long()}
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            if grouped:
                states_BSD = model.encoder(pixel_values=batch.image_XCHW).last_hidden_state
                inputs["encoder_outputs"] = BaseModelOutput(states_BSD.repeat_interleave(CAPTIONS, dim=0))
            else:
                assert batch.image_XCHW is not None
                inputs["pixel_values"] = batch.image_XCHW.repeat_interleave(CAPTIONS, dim=0)
            loss: Tensor = model(**inputs, labels=labels_NT, use_cache=False).loss
        _descend(model, optimizer, loss)

    return step, sum(p.numel() for p in model.parameters())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=16, help="images a batch, with five captions each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm", type=int, default=6, help="rounds before those that count")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="as run.precision")
    parser.add_argument("--compile", choices=["off", "block", "model"], default="off", help="velm's run.compile")
    parser.add_argument("--small", action="store_true", help="a small model, to try the script")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    precision = pick_precision(schema.Precision(options.precision), torch.device("cpu"))
    options.precision = precision.value
    sizes = {"side": 224, "width": 384, "heads": 6, "vision": 12, "text": 6}
    if options.small:
        sizes = {"side": 32, "width": 48, "heads": 2, "vision": 1, "text": 2}
    peaks = [matrix_peak(torch.device("cpu"), precision)]
    names = ("velm", "repeated", "grouped", "both", "coca")
    contestants = {name: benching.Apart(Contestant, name, sizes, vars(options) | {"out": None}) for name in names}
    size = {name: contestant.call("count") for name, contestant in contestants.items()}
    print("parameters  " + ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in size.items()))

    turns = {name: partial(contestant.call, "step") for name, contestant in contestants.items()}
    benching.take_turns(turns, options.warm)  # first steps are slower: code is loaded, and memory fetched
    seconds = benching.take_turns(turns, options.rounds)
    peaks.append(matrix_peak(torch.device("cpu"), precision))
    work = {
        name: [contestant.call("operations", number) for number in range(options.rounds)]
        for name, contestant in contestants.items()
    }
    peaks.append(matrix_peak(torch.device("cpu"), precision))

    captions = options.images * CAPTIONS
    result: dict[str, Any] = {
        "setting": {**vars(options), **sizes, "out": None},
        "parameters": size,
        "seconds": seconds,
    }
    result["peak_flops"] = statistics.median(peaks)
    result["captions_per_s"] = {name: captions / statistics.median(times) for name, times in seconds.items()}
    for name, speed in result["captions_per_s"].items():
        print(f"{name:<9} {speed:8.1f} captions/s")
    rows = []
    for ours, theirs, whose, asked in ROWS:
        times = benching.ratio(seconds, ours, theirs)
        equally_fast = sum(work[theirs]) / sum(work[ours])
        rows.append(
            benching.row(f"training step, {options.precision}: {whose}", times, asked) | {"by_operations": equally_fast}
        )
        print(f"{theirs} does {equally_fast:.2f} times the floating-point operations of {ours}")
    shares = (work / s / result["peak_flops"] for work, s in zip(work["velm"], seconds["velm"], strict=True))
    share = statistics.median(shares)
    result["share_of_peak"] = share
    peak = f"{result['peak_flops'] / 1e9:.0f} GFLOP/s"
    print(f"velm's step uses {100 * share:.0f} % of {peak} ({options.precision}), asked 35 %")
    benching.save(options.out, rows, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
