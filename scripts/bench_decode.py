"""How fast are captions decoded beside transformers' `generate` and open_clip's CoCa? Side by side in one run.

    python scripts/bench_decode.py [--images 64] [--coca-images 16] [--rounds 5] [--small] [--out bench_decode.json]

One architecture for all: ViT-S/16 at 224 x 224 (12 blocks, width 384), a decoder of 6 blocks of width 384 with
cross-attention in each, vocabulary 10,000, at most 20 tokens. The contestants take turns on the same images, in float32
and, where `velm eval` would take it (`run.precision=auto`), in bfloat16 (autocast for all; captions may differ there,
since words of the same rounded logit are many).

velm      `decode_stream`, with what it needs of the images (keys and values) made anew for every batch, and the
          matrices laid out once for all batches, as `velm eval` does: in turns of a batch each, and of all batches
          together or one after another
generate  transformers' VisionEncoderDecoderModel (ViT and GPT-2) with velm's weights: one function, so the captions
          must agree token by token. A caption that differs and does not score the same is an error (exit code 1).
          `early_stopping="never"` is the search that velm does. Both decode what velm's encoder said of the images:
          ViTModel is alike in size but not in weights, so encoders have their own turns, and times are added.
CoCa      open_clip's beam search, of the same width: its 3 text and 3 multimodal layers have about the weights of
          velm's 6 blocks. It has other weights and so other words, hence both write 20 tokens, with the end forbidden.
          Both write for fewer images, since CoCa takes minutes for 64.
          It asks transformers for a BeamSearchScorer, which transformers 5 lacks: a lean one stands in (`Scorer`).

The weights are random, and shaped so that captions have COCO's lengths and words that depend on the image: a few
dimensions of the states are kept free of everything but the position, the end's logit reads these, and how steeply is
chosen from a look at captions without an end (`end_like_captions`). The last norm is scaled until the likeliest words
are as likely as in trained captioners (log p of about -1 a word). It takes seconds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from benching import ratio, row, save, take_turns
from torch import Tensor, nn

from velm_cli import schema
from velm_cli.engine.device import pick_precision, prepare
from velm_cli.models.decoding import decode_stream, laid_out_for_steps
from velm_cli.models.layers import sinusoids
from velm_cli.models.velm import VelmModel
from velm_cli.models.vision import ImageFeatures

VOCAB, PAD, BOS, EOS, LENGTH, BEAMS = 10_000, 0, 1, 2, 20, 5
MEAN_LENGTH, SPREAD = 11.5, 2.4  # tokens of COCO's captions with their end, and their standard deviation
Sizes = dict[str, int]
Captions = list[list[int]]


# ---------------------------------------------------------------------------------------- weights


def captioner(sizes: Sizes) -> VelmModel:
    """velm's model; the two norms that transformers' decoder does not have are left out."""
    width, heads = sizes["width"], sizes["heads"]
    model = VelmModel(
        vision=schema.ViTConfig(
            image_size=sizes["side"], patch_size=16, width=width, layers=sizes["vision"], heads=heads, conv_stem=False
        ),
        text=schema.TransformerConfig(width=width, layers=0, heads=heads),
        fusion=schema.CrossModalConfig(layers=sizes["text"], heads=heads),
        vocab_size=VOCAB,
    )
    model.text.norm = nn.Identity()
    model.fusion.norm_image = nn.Identity()
    return model.eval()


def make_images(count: int, side: int) -> Tensor:
    """Large patches of random colours: images that differ in more than noise."""
    coarse = torch.randn(count, 3, 4, 4)
    return nn.functional.interpolate(coarse, size=(side, side), mode="nearest") + 0.2 * torch.randn(1, 3, side, side)


@torch.no_grad()
def end_like_captions(model: VelmModel, features: ImageFeatures) -> None:
    """Shape the weights, so that captions of `features` have COCO's lengths. See the head of this file."""
    width, embedding, norm = model.text.width, model.text.embedding.weight, model.fusion.norm
    rate = torch.exp(torch.arange(width // 2) * (-9.21 / (width // 2)))  # of `sinusoids`
    free = ((rate > 1 / 30) & (rate < 1 / 12)).nonzero()[:, 0]  # their sines grow over a whole caption
    for block in model.fusion.blocks:
        for part in (block.attention.out, block.cross.out, block.mlp[2]):
            part.weight[free] = 0.0
    signs = torch.randint(2, (width,)) * 2.0 - 1.0  # else a word's likeliest successor is itself
    norm.weight.copy_(12.0 * signs)  # and large, for some words to be much likelier than others
    norm.weight[free] = 12.0
    embedding[:, free] = 0.0
    embedding[EOS] = 0.0

    position_BT, best_BT = _without_end(model, features, free)
    slope, start = _slope_and_start(position_BT, best_BT)
    embedding[EOS, free] = slope
    norm.bias[free] = -start / len(free)


def _without_end(model: VelmModel, features: ImageFeatures, free: Tensor) -> tuple[Tensor, Tensor]:
    """Of greedy captions that never end, at each step: what the end can read, and the logit it has to beat."""
    memory, state = model.memory(features), None
    tokens_B1 = torch.full((len(features.pooled_BD), 1), BOS)
    position, best = [], []
    for _ in range(LENGTH):
        fused_B1D, state = model.fusion.read(model.text, tokens_B1, memory, state)
        logits_BV = model.logits(fused_B1D[:, -1])
        tokens_B1 = logits_BV.argmax(dim=1, keepdim=True)
        position.append(fused_B1D[:, -1, free].sum(dim=1))
        best.append(logits_BV.amax(dim=1))
    return torch.stack(position, dim=1), torch.stack(best, dim=1)


def _slope_and_start(position_BT: Tensor, best_BT: Tensor) -> tuple[float, float]:
    """The end's logit is slope * (position - start): those with which the lengths are most like COCO's."""

    def unlike(slope: float, start: float) -> float:
        ends_BT = slope * (position_BT - start) > best_BT
        length_B = torch.where(ends_BT.any(dim=1), ends_BT.int().argmax(dim=1) + 1, LENGTH).float()
        return abs(float(length_B.mean()) - MEAN_LENGTH) + abs(float(length_B.std()) - SPREAD)

    low, high = float(position_BT.min()), float(position_BT.max())
    starts = torch.linspace(low - 2 * (high - low), high, 200).tolist()
    slopes = [float(best_BT.mean()) / (high - low) * 2**power for power in range(-4, 5)]
    return min(((slope, start) for slope in slopes for start in starts), key=lambda pair: unlike(*pair))


def as_transformers(model: VelmModel, sizes: Sizes) -> Any:
    """The same decoder as transformers' GPT-2 with cross-attention, behind a ViT of the same size."""
    import transformers as t

    width, heads = sizes["width"], sizes["heads"]
    vision = t.ViTConfig(
        hidden_size=width, num_hidden_layers=sizes["vision"], num_attention_heads=heads, intermediate_size=4 * width,
        image_size=sizes["side"], patch_size=16,
    )  # fmt: skip
    text = t.GPT2Config(
        vocab_size=VOCAB, n_embd=width, n_layer=sizes["text"], n_head=heads, n_positions=64, activation_function="gelu",
        add_cross_attention=True, is_decoder=True, tie_word_embeddings=False, bos_token_id=BOS, eos_token_id=EOS,
    )  # fmt: skip
    decoder = t.GPT2LMHeadModel(text)
    decoder.load_state_dict(_weights_of_gpt2(model, positions=64))
    both = t.VisionEncoderDecoderModel(encoder=t.ViTModel(vision, add_pooling_layer=False), decoder=decoder)
    both.generation_config.decoder_start_token_id = BOS
    both.generation_config.eos_token_id, both.generation_config.pad_token_id = EOS, PAD
    return both.eval()


def _weights_of_gpt2(model: VelmModel, positions: int) -> dict[str, Tensor]:
    """velm's weights under GPT-2's names. GPT-2 keeps its matrices the other way round."""
    embedding, width = model.text.embedding.weight.detach(), model.text.width
    weights = {
        "transformer.wte.weight": embedding * width**0.5,
        "transformer.wpe.weight": sinusoids(torch.arange(positions), width, embedding.dtype),
        "lm_head.weight": embedding,
    }
    names = {
        "norm_attention": "ln_1", "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj",
        "norm_cross": "ln_cross_attn", "cross.query": "crossattention.q_attn",
        "cross.key_value": "crossattention.c_attn", "cross.out": "crossattention.c_proj", "norm_mlp": "ln_2",
        "mlp.0": "mlp.c_fc", "mlp.2": "mlp.c_proj",
    }  # fmt: skip
    parts = {
        f"blocks.{n}.{ours}": f"h.{n}.{its}" for n in range(len(model.fusion.blocks)) for ours, its in names.items()
    }
    for ours, its in (parts | {"norm": "ln_f"}).items():
        part = model.fusion.get_submodule(ours)
        assert isinstance(part, nn.Linear | nn.LayerNorm)
        weights[f"transformer.{its}.weight"] = part.weight.detach().T if isinstance(part, nn.Linear) else part.weight
        weights[f"transformer.{its}.bias"] = part.bias
    return weights


# ---------------------------------------------------------------------------------------- contestants


def by_velm(model: VelmModel, features: ImageFeatures, beams: int, banned: Sequence[int]) -> Captions:
    return by_velm_together(model, [features], beams, banned)


def by_velm_together(
    model: VelmModel, encoded: Sequence[ImageFeatures], beams: int, banned: Sequence[int] = ()
) -> Captions:
    """Of several batches, the images of the later ones entering where captions of the earlier ones have ended."""
    config = schema.DecodeConfig(beams=beams, max_length=LENGTH)

    def memories() -> Iterator[tuple[tuple, int]]:
        for features in encoded:
            with torch.no_grad():
                memory = model.memory_for(features, config)
            yield memory, len(features.pooled_BD)

    device = encoded[0].pooled_BD.device
    found = decode_stream(model, memories(), config=config, bos_id=BOS, eos_id=EOS, banned=banned, device=device)
    return [tokens for _, tokens in sorted(found)]


@torch.no_grad()
def by_generate(model: Any, features: ImageFeatures, beams: int) -> Captions:
    from transformers.modeling_outputs import BaseModelOutput

    rows = model.generate(
        encoder_outputs=BaseModelOutput(features.tokens_BSD), num_beams=beams, max_new_tokens=LENGTH, do_sample=False,
        length_penalty=1.0, early_stopping="never" if beams > 1 else False, use_cache=True,
    )  # fmt: skip
    captions = [row[1:] for row in rows.tolist()]
    return [row[: row.index(EOS)] if EOS in row else row for row in captions]


class Scorer:
    """What open_clip asks of transformers' BeamSearchScorer, which transformers 5 no longer has.

    It is less work than the original, and enough where no caption ends before the last token.
    """

    def __init__(self, batch_size: int, num_beams: int, device: torch.device, num_beam_groups: int) -> None:
        self.num_beams, self.num_beam_groups, self.is_done = num_beams, num_beam_groups, False
        self._beam_hyps = [None] * batch_size
        self.first_B1 = num_beams * torch.arange(batch_size, device=device)[:, None]

    def process(self, _ids: Tensor, scores: Tensor, tokens: Tensor, beams: Tensor, **_: Any) -> dict[str, Tensor]:
        K = self.num_beams
        rows = self.first_B1 + beams[:, :K]
        best = {"scores": scores[:, :K], "tokens": tokens[:, :K], "indices": rows}
        return {f"next_beam_{name}": value.flatten() for name, value in best.items()}

    def finalize(self, ids: Tensor, *_: Any, **__: Any) -> dict[str, Tensor]:
        return {"sequences": ids[:: self.num_beams]}


def coca(sizes: Sizes) -> Callable[[Tensor], Tensor] | None:
    """open_clip's beam search as a function of images; None where open_clip is not installed."""
    import transformers.generation

    if not hasattr(transformers.generation, "BeamSearchScorer"):
        transformers.generation.BeamSearchScorer = Scorer
    try:
        from open_clip.coca_model import CoCa
    except ImportError:
        return None
    width, heads, layers = sizes["width"], sizes["heads"], max(1, sizes["text"] // 2)
    text = {"context_length": 76, "vocab_size": VOCAB, "width": width, "heads": heads, "layers": layers}
    vision = {"image_size": sizes["side"], "patch_size": 16, "width": width, "layers": sizes["vision"]}
    model = CoCa(
        embed_dim=width,
        multimodal_cfg=text,
        text_cfg=text | {"embed_cls": True, "output_tokens": True},
        vision_cfg=vision | {"head_width": width // heads, "output_tokens": True},
    ).eval()
    nn.init.normal_(model.text_decoder.text_projection, std=width**-0.5)  # CoCa leaves it as memory was: slow numbers

    @torch.no_grad()
    def write(image_BCHW: Tensor) -> Tensor:
        return model.generate(
            image_BCHW, num_beams=BEAMS, num_beam_groups=1, seq_len=LENGTH + 1, min_seq_len=LENGTH, pad_token_id=PAD,
            sot_token_id=BOS, eos_token_id=EOS,
        )  # fmt: skip

    return write


# ---------------------------------------------------------------------------------------- agreement


@torch.no_grad()
def score(model: VelmModel, features: ImageFeatures, tokens: list[int]) -> float:
    """Mean log p of a caption's tokens, by one pass over all of them."""
    device = features.pooled_BD.device
    inputs_1T = torch.tensor([[BOS, *tokens[:-1]]], device=device)
    targets_T1 = torch.tensor(tokens, device=device)[:, None]
    fused_1TD, _ = model.fusion.read(model.text, inputs_1T, model.memory(features))
    return float(model.logits(fused_1TD[0]).log_softmax(-1).gather(1, targets_T1).mean())


def agreements(model: VelmModel, encoded: list[ImageFeatures], found: dict[str, list[Any]]) -> dict[str, Counter]:
    """For each contestant of `generate`: how many captions are the same as velm's, tie with them, or are others."""
    counts = {}
    for name in found:
        if name.startswith("generate"):
            beams = 1 if "greedy" in name else BEAMS
            ours = found[f"velm {name.removeprefix('generate ')}"]
            counts[name] = Counter({"same": 0, "tie": 0, "other": 0})
            for batch in zip(encoded, ours, found[name], strict=False):  # the last that is encoded warms up
                counts[name].update(agreement(model, *batch, beams))
    return counts


def agreement(model: VelmModel, features: ImageFeatures, ours: Captions, theirs: Captions, beams: int) -> list[str]:
    """Of each caption: "same", "tie" or "other"."""
    verdicts = []
    for image, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        if our == their:
            verdicts.append("same")
            continue
        pair = [[*tokens, EOS][:LENGTH] for tokens in (our, their)]
        if beams == 1:  # greedy: tied are the two tokens at which the ways part
            parting = next(t for t in range(LENGTH) if pair[0][t] != pair[1][t])
            pair = [tokens[: parting + 1] for tokens in pair]
        one = features.select(torch.tensor([image], device=features.pooled_BD.device))
        first, second = (score(model, one, tokens) for tokens in pair)
        verdicts.append("tie" if abs(first - second) < 1e-5 * abs(first) else "other")
    return verdicts


# ---------------------------------------------------------------------------------------- the run

# What is printed: a name, velm's contestant, the other one, how many times faster velm is asked to be.
ROWS = [
    ("greedy: transformers' generate", "velm greedy", "generate greedy", 2.5),
    ("beam 5: transformers' generate", "velm beam 5", "generate beam 5", 4.0),
    ("greedy, batches together: one after another", "velm together", "velm apart", None),
    ("greedy, with the image encoder: generate", "velm greedy, image", "generate greedy, image", None),
    ("beam 5, with the image encoder: generate", "velm beam 5, image", "generate beam 5, image", None),
    ("beam 5, with the image encoder, 20 tokens: open_clip's CoCa", "velm 20 tokens", "CoCa 20 tokens", 8.0),
    ("greedy, bf16: transformers' generate", "velm greedy, bf16", "generate greedy, bf16", None),
    ("beam 5, bf16: transformers' generate", "velm beam 5, bf16", "generate beam 5, bf16", None),
    ("beam 5, with the image encoder, 20 tokens, bf16: CoCa", "velm 20 tokens, bf16", "CoCa 20 tokens, bf16", None),
]


def make_contestants(
    sizes: Sizes, images: int, coca_images: int, batches: int
) -> tuple[VelmModel, list[ImageFeatures], dict[str, Callable[[int], Any]]]:
    """velm's model, what its encoder says of each batch, and by name what is done with the batch of a number."""
    model = captioner(sizes)
    pixels = [make_images(images, sizes["side"]) for _ in range(batches)]
    with torch.no_grad():
        encoded = [model.encode_image(batch) for batch in pixels]
    end_like_captions(model, encoded[-1])
    theirs, coca_writes = as_transformers(model, sizes), coca(sizes)

    @torch.no_grad()
    def encode(number: int) -> None:
        model.encode_image(pixels[number])

    @torch.no_grad()
    def encode_theirs(number: int) -> None:
        theirs.encoder(pixel_values=pixels[number])

    def write_to_the_end(number: int) -> None:
        with torch.no_grad():
            features = model.encode_image(pixels[number][:coca_images])
        by_velm(model, features, BEAMS, banned=(EOS,))

    contestants: dict[str, Callable[[int], Any]] = {"velm encoder": encode, "ViTModel encoder": encode_theirs}
    for beams, name in ((1, "greedy"), (BEAMS, f"beam {BEAMS}")):
        contestants[f"velm {name}"] = lambda number, beams=beams: by_velm(model, encoded[number], beams, ())
        contestants[f"generate {name}"] = lambda number, beams=beams: by_generate(theirs, encoded[number], beams)
    contestants["velm together"] = lambda _: by_velm_together(model, encoded, 1)
    contestants["velm apart"] = lambda _: [each for features in encoded for each in by_velm(model, features, 1, ())]
    if coca_writes is not None:
        contestants[f"velm {LENGTH} tokens"] = write_to_the_end
        contestants[f"CoCa {LENGTH} tokens"] = lambda number: coca_writes(pixels[number][:coca_images])
    return model, encoded, contestants


def in_bf16(work: Callable[[int], Any]) -> Callable[[int], Any]:
    """The same in autocast to bfloat16."""

    def cast(number: int) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return work(number)

    return cast


def with_encoder(seconds: dict[str, list[float]]) -> dict[str, list[float]]:
    """The times, and those of captions from pixels: the encoder's and the decoder's of the same round, added."""
    both = dict(seconds)
    for decoder in ("greedy", f"beam {BEAMS}"):
        for whose, encoder in (("velm", "velm encoder"), ("generate", "ViTModel encoder")):
            name = f"{whose} {decoder}"
            both[f"{name}, image"] = [sum(pair) for pair in zip(seconds[encoder], seconds[name], strict=True)]
    return both


def _images(contestant: str, options: argparse.Namespace, batches: int) -> int:
    """How many images a turn of it captions."""
    if "tokens" in contestant:
        return options.coca_images
    return options.images * (batches if contestant in ("velm together", "velm apart") else 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--images", type=int, default=64, help="images decoded together, by default as many as velm does"
    )
    parser.add_argument(
        "--coca-images", type=int, default=16, help="images decoded together by CoCa and velm beside it"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a small model, to try the script")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    sizes = {"side": 224, "width": 384, "heads": 6, "vision": 12, "text": 6}
    if options.small:
        sizes = {"side": 32, "width": 48, "heads": 2, "vision": 1, "text": 1}
    prepare(torch.device("cpu"), 0)
    torch.manual_seed(0)
    model, encoded, contestants = make_contestants(sizes, options.images, options.coca_images, options.rounds + 1)
    found: dict[str, list[Any]] = {name: [] for name in contestants}
    kept = {name: (lambda n, name=name, work=work: found[name].append(work(n))) for name, work in contestants.items()}
    with laid_out_for_steps(model):
        for work in contestants.values():  # the first of each is slower
            work(options.rounds)
        seconds = with_encoder(take_turns(kept, options.rounds))
    if pick_precision(schema.Precision.auto, torch.device("cpu")) is schema.Precision.bf16:
        ours_and_theirs = {name for _, *pair, _ in ROWS for name in pair}
        halves = {f"{name}, bf16": in_bf16(work) for name, work in contestants.items()}
        halves = {name: work for name, work in halves.items() if name in ours_and_theirs}
        take_turns(halves, 1)
        seconds |= take_turns(halves, options.rounds)

    rows = [
        row(f"decoding: {what}", ratio(seconds, our, their), asked)
        for what, our, their, asked in ROWS
        if their in seconds
    ]
    result: dict[str, Any] = {"setting": {**vars(options), **sizes, "out": None}, "seconds": seconds}
    result["images_per_s"] = {
        name: _images(name, options, len(encoded)) / statistics.median(times) for name, times in seconds.items()
    }
    for name, speed in result["images_per_s"].items():
        print(f"{name:<28} {speed:8.2f} images/s")
    lengths = [len(tokens) + 1 for captions in found["velm greedy"] for tokens in captions]
    result["tokens"] = {"mean": statistics.mean(lengths), "deviation": statistics.stdev(lengths)}
    print("greedy captions have {mean:.1f} +- {deviation:.1f} tokens with their end".format(**result["tokens"]))

    pairs = zip(chain(*found["velm together"]), chain(*found["velm apart"]), strict=True)
    result["same together and apart"] = statistics.mean(together == apart for together, apart in pairs)
    print(f"together and apart {100 * result['same together and apart']:.2f} % of the captions are the same")
    result["agreement"] = agreements(model, encoded, found)
    for name, counts in result["agreement"].items():
        print(f"{name:<28} " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    save(options.out, rows, result)
    return int(any(counts["other"] for counts in result["agreement"].values()))


if __name__ == "__main__":
    sys.exit(main())
