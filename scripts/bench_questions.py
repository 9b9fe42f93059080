"""Eight questions of an image that share its encoding against one question an image: examples a second.

    python scripts/bench_questions.py [--small] [--frozen] [--out questions.json]

The same questions, batches of the same size and the same weights: once the eight stand side by side and the image is
encoded once for them, once each is an example by itself. The losses summed over all examples must be the same.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Iterable
from io import BytesIO
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import benching
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from velm_cli import schema
from velm_cli.data.batch import Batch, Columns
from velm_cli.data.loader import TrainLoader, eval_batches
from velm_cli.engine.device import prepare
from velm_cli.learners.interface import Learner, Moment
from velm_cli.models.velm import VelmModel
from velm_cli.objectives.weights import Weight

EACH = 8  # questions of an image
WORDS, ANSWERS, LENGTH = 1000, 500, 8
NOW = Moment(frozenset({"joint"}))
SAME = 1e-5  # relative difference of the losses


class DrawnQuestions:
    """The interface of a Store: noise as images, random words as questions; `shared`: EACH in a row of one image."""

    has_images = True

    def __init__(self, images: int, side: int, *, shared: bool) -> None:
        self.one_image_each, self.num_images = not shared, images if shared else images * EACH
        self._each = EACH if shared else 1
        draw = np.random.default_rng(0)
        self._jpegs = [_jpeg(draw.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(images)]
        words_NL = draw.integers(4, WORDS, (images * EACH, LENGTH))
        tokenizer = SimpleNamespace(pad_id=0, bos_id=1, eos_id=2)
        offsets = np.arange(len(words_NL) + 1) * LENGTH
        self.questions = SimpleNamespace(ids=words_NL.reshape(-1), offsets=offsets, tokenizer=tokenizer)
        self._answers = draw.integers(0, ANSWERS, len(words_NL))

    def __len__(self) -> int:
        return len(self._answers)

    def split(self, name: str) -> np.ndarray:
        return np.arange(len(self))

    def example_id(self, i: int) -> int:
        return i

    def source(self, i: int) -> str:
        return f"question {i}"

    def targets(self, i: int) -> list[str]:
        return []

    def images_of(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, first, rows = np.unique(examples // self._each, return_index=True, return_inverse=True)
        order = np.argsort(first)
        return images[order], np.argsort(order)[rows][:, None]

    def image_name(self, x: int) -> int:
        return x

    def image_bytes(self, x: int) -> bytes:
        return self._jpegs[x * self._each // EACH]

    @property
    def columns(self) -> Columns:
        return Columns(source=self.questions, labels={"answers": self})

    width = ANSWERS  # the store as Labels

    def row(self, example: int) -> tuple[np.ndarray, np.ndarray]:
        return self._answers[example : example + 1], np.ones(1, np.float32)


def _jpeg(pixels_HWC: np.ndarray) -> bytes:
    Image.fromarray(pixels_HWC).save(buffer := BytesIO(), "JPEG")
    return buffer.getvalue()


def make_learner(side: int, width: int, layers: int, *, frozen: bool) -> Learner:
    """Any learner of answers to questions: here the one that judges."""
    from velm_cli.learners.judging import JudgingLearner

    heads = width // 64 or 1
    vision = schema.ViTConfig(
        image_size=side, patch_size=16, width=width, layers=layers, heads=heads, conv_stem=False,
        freeze="all" if frozen else "none",
    )  # fmt: skip
    text = schema.TransformerConfig(width=width, layers=2, heads=heads)
    torch.manual_seed(0)
    model = VelmModel(vision=vision, text=text, fusion=schema.CrossModalConfig(layers=2, heads=heads), vocab_size=WORDS)
    weights = {"text": Weight(0, 0), "image": Weight(0, 0), "joint": Weight(1, 1)}
    return JudgingLearner(model, schema.LossConfig(), weights=weights, labels=ANSWERS)


def total_loss(learner: Learner, store: DrawnQuestions, batch_size: int) -> float:
    """Summed over all examples, in float64."""
    learner.eval()
    batches = eval_batches(store, store.columns, range(len(store)), batch_size=batch_size, pixels=learner.pixels)  # type: ignore[arg-type]
    with torch.inference_mode():
        return sum(float(term.sum) for batch in batches for term in learner(batch, NOW).values())


def train(learner: Learner, optimizer: torch.optim.Optimizer, batches: Iterable[Batch]) -> None:
    for batch in batches:
        loss: Tensor = sum(term.sum / term.count for term in learner(batch, NOW).values())  # type: ignore[assignment]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--batch", type=int, default=64, help="questions")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frozen", action="store_true", help="the image encoder does not learn")
    parser.add_argument("--small", action="store_true", help="few and small images, to try the script")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    images, side, width, layers = (8, 32, 32, 2) if options.small else (options.images, 224, 192, 6)
    random.seed(0)
    prepare(benching.CPU, 0)

    learner = make_learner(side, width, layers, frozen=options.frozen)
    stores = {name: DrawnQuestions(images, side, shared=name == "shared") for name in ("shared", "alone")}
    losses = {name: total_loss(learner, store, options.batch) for name, store in stores.items()}
    apart = abs(losses["shared"] / losses["alone"] - 1)
    print(f"loss of {images * EACH} examples {losses['shared']:.6f}, {apart:.1e} apart")
    assert apart < SAME, losses

    optimizer = torch.optim.AdamW([weight for weight in learner.parameters() if weight.requires_grad], lr=1e-5)
    learner.train()
    data = schema.DataConfig(examples_per_image=EACH)
    loaders = {
        name: TrainLoader(store, store.columns, data, batch_size=options.batch, pixels=learner.pixels, seed=0)  # type: ignore[arg-type]
        for name, store in stores.items()
    }
    encoded: dict[str, list[int]] = {name: [] for name in loaders}

    def epoch(name: str, number: int) -> None:
        loader = loaders[name]
        batches = loader.batches(number * loader.batches_per_epoch)
        taken = list(islice(batches, loader.batches_per_epoch))
        batches.close()
        encoded[name].append(sum(len(batch.images) for batch in taken))
        train(learner, optimizer, taken)

    for name in loaders:  # until no memory is fetched from the system any more
        epoch(name, 0)
    seconds = benching.take_turns(
        {name: lambda number, name=name: epoch(name, number) for name in loaders},  # type: ignore[misc]
        options.rounds,
    )
    result: dict[str, Any] = {"setting": {**vars(options), "images": images, "side": side, "out": None}}
    for name, times in seconds.items():
        rate = images * EACH / statistics.median(times)
        print(f"{name:<7} {rate:8.1f} examples a second, {encoded[name][-1]} images encoded an epoch")
    rows = [
        benching.row(
            f"training, {EACH} questions of an image together: one by one",
            benching.ratio(seconds, "shared", "alone"),
            3,
        )
    ]
    benching.save(options.out, rows, result | {"seconds": seconds, "loss": losses, "apart": apart})
    return 0


if __name__ == "__main__":
    sys.exit(main())
