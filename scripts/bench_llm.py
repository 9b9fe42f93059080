"""A language model that sees: samples a second and memory of a training step, velm against transformers' SmolVLM.

    python scripts/bench_llm.py [--rounds 3] [--images 8] [--small] [--memory] [--out bench_llm.json]

SigLIP-B/16 at 224 x 224 (12 blocks, width 768), SmolLM2-135M (30 blocks, width 576, vocabulary 49,152), 49 image tokens
(2 x 2 tokens of the grid in one, a linear map), random weights, all trained, bf16 by autocast, AdamW, gradients
clipped, the same texts. The contestants take turns, each in a process of its own, velm's with the settings of
`velm train`:

velm      a step of `velm train`: the texts of an image are branches of one reading of it, without padding
peer      SmolVLMForConditionalGeneration in a plain loop: every text with its image, padded to the longest with an
          attention mask, labels of -100 on image, question and padding; as many samples to an optimiser step, in
          micro-batches of --peer-batch samples. Its AdamW is torch's default, one tensor after the other on a CPU;
          with --peer-fused the fused one, which velm always uses

one       a caption an image; five: five captions an image; eight: eight questions with short answers an image. Lengths
          are drawn like those of COCO's captions and VQA's questions as SmolLM2's tokenizer reads them.

--memory measures instead how much a step adds to the memory of a fresh process, with and without checkpointed
activations. A ratio above 1 is in velm's favour.
"""

from __future__ import annotations

import argparse
import gc
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import benching
import numpy as np
import torch

from velm_cli import schema
from velm_cli.data.batch import Batch
from velm_cli.engine.device import prepare
from velm_cli.engine.recomputing import checkpoint_activations
from velm_cli.learners.writing import WritingLearner
from velm_cli.models.velm import VelmModel, count_parameters
from velm_cli.objectives.weights import constant

BOS, EOS, PAD, IMAGE = 1, 2, 0, 3
KINDS = {"one": (1, 1.4), "five": (5, 4.0), "eight": (8, 5.0)}  # texts an image, how much faster velm is asked to be
SAID = {"one": "one caption an image", "five": "five captions an image", "eight": "eight questions an image"}
Step = Callable[[int], object]


def vision_config(sizes: dict[str, int]) -> Any:
    import transformers as t

    return t.SiglipVisionConfig(
        hidden_size=sizes["vision"], intermediate_size=4 * sizes["vision"], num_hidden_layers=sizes["vision_layers"],
        num_attention_heads=sizes["vision"] // 64, image_size=sizes["side"], patch_size=16,
    )  # fmt: skip


def text_config(sizes: dict[str, int]) -> Any:
    import transformers as t

    return t.LlamaConfig(
        vocab_size=sizes["vocab"], hidden_size=sizes["text"], intermediate_size=sizes["text"] * 8 // 3,
        num_hidden_layers=sizes["text_layers"], num_attention_heads=sizes["text"] // 64,
        num_key_value_heads=sizes["text"] // 192,
        max_position_embeddings=2048, tie_word_embeddings=True, rope_theta=100000.0, bos_token_id=BOS, eos_token_id=EOS,
        pad_token_id=PAD,
    )  # fmt: skip


def shuffled() -> schema.PrefixConfig:
    """Squares of 2 x 2 image tokens, by a linear map."""
    return schema.PrefixConfig(
        mapper=schema.PrefixMapper.tokens, shuffle=2, projector=schema.Projector.linear, norm=False
    )


class Samples:
    """Images and texts of a step, the same for all: prompts and targets without BOS and EOS."""

    def __init__(self, kind: str, images: int, sizes: dict[str, int], seed: int) -> None:
        draw = np.random.default_rng(seed)
        self.each = KINDS[kind][0]
        count = images * self.each
        self.image_XCHW = torch.from_numpy(draw.standard_normal((images, 3, sizes["side"], sizes["side"]), np.float32))
        asks = kind == "eight"
        targets = draw.integers(1, 4, count) if asks else np.clip(draw.normal(11.5, 2.4, count).round(), 8, 30)
        prompts = np.clip(draw.normal(7.5, 2, count).round(), 4, 20) if asks else np.zeros(count)
        self.targets = [draw.integers(4, sizes["vocab"], int(length)).tolist() for length in targets]
        self.prompts = [draw.integers(4, sizes["vocab"], int(length)).tolist() for length in prompts]

    def batch(self) -> Batch:
        """As velm's loader makes it: captions are targets of an example, questions examples that share an image."""
        parts: dict[str, Any] = {}
        targets = [[BOS, *words, EOS] for words in self.targets]
        X = len(self.image_XCHW)
        if any(self.prompts):
            parts["source_BL"], parts["source_lengths_B"] = _padded([[BOS, *words, EOS] for words in self.prompts])
            parts["image_of_BI"] = torch.arange(len(targets))[:, None] // self.each
            shape = (len(targets), 1)
        else:
            shape = (X, self.each)
        tokens_NT, lengths_N = _padded(targets)
        labels = {"concepts": torch.zeros(shape[0], 1)}
        images = [*range(X)]
        return Batch.of(
            tokens_NT.unflatten(0, shape),
            lengths_N.view(shape),
            image_XCHW=self.image_XCHW,
            labels=labels,
            images=images,
            **parts,
        )

    def __len__(self) -> int:
        return len(self.targets)


def _padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
    return tokens, torch.tensor([len(row) for row in rows])


class Contestant:
    """One that trains, or whose memory is measured."""

    def __init__(self, name: str, kind: str, sizes: dict[str, int], options: dict[str, Any]) -> None:
        self.checkpoints: bool = options.get("checkpoints", False)
        self.kind, self.sizes, self.options = kind, sizes, options
        if name == "velm":
            prepare(torch.device("cpu"), 0)
        self._step, self.parameters = (velm_step if name == "velm" else peer_step)(
            sizes, kind, options["peer_batch"], checkpoints=self.checkpoints, fused=options["peer_fused"]
        )

    def count(self) -> int:
        return self.parameters

    def step(self, number: int) -> None:
        """Train on the samples of this number."""
        self._step(Samples(self.kind, self.options["images"], self.sizes, number))

    def peak(self) -> float:
        """MiB that two steps have added at most to what the process had before them."""
        gc.collect()
        before = _resident()
        for number in range(2):
            self.step(number)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before


def _resident() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def velm_step(sizes: dict[str, int], kind: str, _: int, *, checkpoints: bool, fused: bool) -> tuple[Any, int]:
    """A step of `velm train`, and its parameters."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        vision, text = Path(folder) / "vision", Path(folder) / "text"
        vision_config(sizes).save_pretrained(vision)
        text_config(sizes).save_pretrained(text)
        model = VelmModel(
            vision=schema.TransformersVisionConfig(name=str(vision), weights="none", image_size=sizes["side"]),
            text=schema.CausalLMConfig(name=str(text), weights="none"),
            fusion=shuffled(),
            vocab_size=sizes["vocab"],
        )
    learner = WritingLearner(
        model, schema.LossConfig(), concepts=1, weights=constant("text"), prompts=kind == "eight"
    ).train()
    if checkpoints:
        checkpoint_activations(learner.model)
    config = schema.TrainRoot(
        dataset=schema.ShapesConfig(), vision=schema.ViTConfig(), text=schema.TransformerConfig(),
        fusion=schema.PrefixConfig(), task=schema.CaptionTaskConfig(),
    )  # fmt: skip
    run = benching.run_of(learner, config, schema.Precision.bf16)
    trained = sum(p.numel() for p in learner.parameters() if p.requires_grad)
    return lambda samples: benching.step(run, samples.batch()), trained


def peer_step(sizes: dict[str, int], kind: str, at_once: int, *, checkpoints: bool, fused: bool) -> tuple[Any, int]:
    """A step of transformers' SmolVLM in a plain loop, and its parameters."""
    import transformers as t

    torch.manual_seed(0)
    vision, text = vision_config(sizes).to_dict(), text_config(sizes).to_dict()
    vision["model_type"] = "smolvlm_vision"
    model = t.SmolVLMForConditionalGeneration(
        t.SmolVLMConfig(
            vision_config=vision, text_config=text, scale_factor=2, image_token_id=IMAGE, tie_word_embeddings=True,
            pad_token_id=PAD,
        )
    ).train()  # fmt: skip
    if checkpoints:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=fused or None)
    image_tokens = [IMAGE] * (sizes["side"] // 32) ** 2

    def step(samples: Samples) -> None:
        total = sum(len(words) + 1 for words in samples.targets)
        for start in range(0, len(samples), at_once):
            numbers = range(start, min(start + at_once, len(samples)))
            heads = [[BOS, *image_tokens, *samples.prompts[n]] for n in numbers]
            rows = [[*head, *samples.targets[n], EOS] for head, n in zip(heads, numbers, strict=True)]
            tokens_NT, lengths_N = _padded(rows)
            place_T = torch.arange(tokens_NT.shape[1])
            inside_NT = place_T < lengths_N[:, None]
            head_N = torch.tensor([len(head) for head in heads])
            labels_NT = tokens_NT.masked_fill((place_T < head_N[:, None]) | ~inside_NT, -100)
            image_N1CHW = samples.image_XCHW[torch.tensor(numbers) // samples.each][:, None]
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(
                    input_ids=tokens_NT, attention_mask=inside_NT.long(), pixel_values=image_N1CHW, labels=labels_NT,
                    use_cache=False, num_items_in_batch=total,
                ).loss  # fmt: skip
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, count_parameters(model, trainable=True)


def memory_rows(kinds: list[str], sizes: dict[str, int], options: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for checkpoints in (False, True):
        for kind in kinds:
            found = {}
            for name in ("velm", "peer"):
                contestant = benching.Apart(Contestant, name, kind, sizes, options | {"checkpoints": checkpoints})
                found[name] = contestant.call("peak")
                contestant.close()
                print(f"{SAID[kind]}, {'with' if checkpoints else 'without'} checkpoints: {name} {found[name]:.0f} MiB")
            ratio = found["peer"] / found["velm"]
            what = f"memory of a step, {SAID[kind]}" + (", checkpointed activations" if checkpoints else "")
            rows.append(benching.row(what, {"median": ratio, "low": ratio, "high": ratio}) | {"mebibytes": found})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=8, help="images of a step with one caption each")
    parser.add_argument("--peer-batch", type=int, default=8, help="samples of the peer's micro-batches")
    parser.add_argument("--peer-fused", action="store_true", help="the peer's AdamW is torch's fused one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", type=int, default=1, help="rounds before those that count")
    parser.add_argument("--kinds", default="one,five,eight")
    parser.add_argument("--small", action="store_true", help="a small model, to try the script")
    parser.add_argument("--memory", action="store_true", help="memory instead of time")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    sizes = {"side": 224, "vision": 768, "vision_layers": 12, "text": 576, "text_layers": 30, "vocab": 49152}
    if options.small:
        sizes = {"side": 64, "vision": 64, "vision_layers": 2, "text": 192, "text_layers": 2, "vocab": 512}
    chosen = vars(options) | {"out": None}
    kinds = options.kinds.split(",")
    if options.memory:
        benching.save(options.out, memory_rows(kinds, sizes, chosen), {"setting": {**chosen, **sizes}})
        return 0
    rows, speeds = [], {}
    for kind in kinds:
        contestants = {name: benching.Apart(Contestant, name, kind, sizes, chosen) for name in ("velm", "peer")}
        print(", ".join(f"{name} {one.call('count') / 1e6:.2f} M" for name, one in contestants.items()), "trained")
        turns = {name: partial(one.call, "step") for name, one in contestants.items()}
        benching.take_turns(turns, options.warm)
        seconds = benching.take_turns(turns, options.rounds)
        for one in contestants.values():
            one.close()
        samples = options.images * KINDS[kind][0]
        speeds[kind] = {name: samples / statistics.median(times) for name, times in seconds.items()}
        print(f"{SAID[kind]}: " + ", ".join(f"{name} {speed:.2f} samples/s" for name, speed in speeds[kind].items()))
        times = benching.ratio(seconds, "velm", "peer")
        rows.append(benching.row(f"training step, {SAID[kind]}: transformers' SmolVLM", times, KINDS[kind][1]))
    benching.save(options.out, rows, {"setting": {**chosen, **sizes}, "samples_per_s": speeds})
    return 0


if __name__ == "__main__":
    sys.exit(main())
