"""A few training steps whose figures are the same on every processor, up to rounding.

The code is that of training (`new_learner`, `train_step`); what depends on the machine is replaced: weights, images
and captions come from numpy's Philox generator, whose numbers are integers, and the arithmetic is float64. What is
left differs in the last bits of a float64, and 12 steps do not make them visible: see `BOUND`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from velm_cli import schema
from velm_cli.data.batch import Batch
from velm_cli.engine.checkpoint import Checkpoints
from velm_cli.engine.folder import OpenRun
from velm_cli.engine.loop import Run, train_step
from velm_cli.engine.meter import Meter
from velm_cli.engine.optim import Ema, build_optimizer
from velm_cli.engine.parallel import Replica
from velm_cli.engine.progress import Progress
from velm_cli.engine.ranks import Ranks
from velm_cli.place import Place
from velm_cli.schema import Precision, TrainRoot
from velm_cli.stages.starting import new_learner

STEPS, STEPS_PER_EPOCH = 12, 4
VOCAB, CONCEPTS = 40, 7
PAD, BOS, EOS, UNK, MASK = 0, 1, 2, 3, 4


@dataclass
class Case:
    """What is trained. `draws`: the losses depend on numbers that torch draws in the type of the weights."""

    vision: schema.VisionConfig
    text: schema.TextConfig
    fusion: schema.FusionConfig
    loss: dict[str, Any] = field(default_factory=dict)
    optim: dict[str, Any] = field(default_factory=dict)
    accumulation: int = 1
    ema: float = 0.0
    draws: bool = False


def _vit(**options: Any) -> schema.ViTConfig:
    return schema.ViTConfig(image_size=16, patch_size=4, width=16, layers=2, heads=2, dropout=0.1, **options)


def _convnet() -> schema.ConvNetConfig:
    return schema.ConvNetConfig(image_size=16, width=16, stages=2)


def _transformer() -> schema.TransformerConfig:
    return schema.TransformerConfig(width=16, layers=2, heads=2)


CASES = {
    "vit-transformer-cross_modal": Case(
        _vit(),
        _transformer(),
        schema.CrossModalConfig(layers=1, heads=2),
        {"alpha": "linear(0.5,1,6)", "beta": "0.1", "gamma": "cosine(0.2,0.1,2ep)", "label_smoothing": 0.1},
        ema=0.9,
    ),
    "vit-lstm-concat": Case(
        _vit(conv_stem=False), schema.LSTMConfig(width=16), schema.ConcatConfig(), {"chunk": 5}, accumulation=2
    ),
    "resnet18-transformer-concat": Case(
        schema.TorchvisionConfig(net="resnet18", image_size=32, weights="none", layer=3),
        _transformer(),
        schema.ConcatConfig(),
        optim={"vision_lr_scale": 0.1},
    ),
    "convnet-gru-attention": Case(
        _convnet(),
        schema.GRUConfig(width=16),
        schema.AttentionConfig(score=schema.AttentionScore.additive, width=8),
        {"alpha": "learned", "gamma": "learned", "joint": schema.JointLoss.sigmoid},
    ),
    "convnet-transformer-gated": Case(
        _convnet(),
        _transformer(),
        schema.GatedConfig(heads=2),
        {"scheduled_sampling": "step(0,0.5,3)"},
        draws=True,
    ),
    "convnet-transformer-prefix-matching": Case(
        _convnet(),
        _transformer(),
        schema.PrefixConfig(mapper=schema.PrefixMapper.transformer, length=3, layers=1, heads=2),
        {"gamma": "0.5", "joint": schema.JointLoss.matching},
        draws=True,
    ),
    "vit-transformer-weighted_sum-masked": Case(
        _vit(),
        _transformer(),
        schema.WeightedSumConfig(weights=schema.SumWeights.gate),
        {
            "beta": "0.5",
            "text": schema.TextLoss.masked,
            "image": schema.ImageLoss.masked_patches,
            "patch_size": 4,
            "masked_words": 0.3,
        },
        {"schedule": schema.LrSchedule.linear, "grad_clip": 0.0},
    ),
}


def losses(case: Case, precision: Precision | None = None) -> list[dict[str, float]]:
    """The figures of each step: losses, weights, gradient norm, learning rate, and a mean over the weights after it.

    `precision=None` is float64.
    """
    config = TrainRoot(
        dataset=schema.ShapesConfig(),
        vision=case.vision,
        text=case.text,
        fusion=case.fusion,
        task=schema.CaptionTaskConfig(),
        loss=schema.LossConfig(num_concepts=CONCEPTS, joint_width=8, **case.loss),
        optim=schema.OptimConfig(**{"lr": 3e-3, "warmup_steps": 3, **case.optim}),
        run=schema.RunConfig(max_steps=STEPS, batch_size=4, accumulation=case.accumulation),
    )
    with _default_dtype(torch.float32 if precision else torch.float64):
        torch.manual_seed(0)
        run = _run(config, case, precision or Precision.fp32)
        torch.manual_seed(0)  # dropout; how many numbers the first weights took depends on their type
        found = []
        for step in range(STEPS):
            batches = [
                _batch(step * case.accumulation + part, case.vision.image_size) for part in range(case.accumulation)
            ]
            counts = [run.learner.counts(batch) for batch in batches]
            totals = {name: sum(count[name] for count in counts) for name in counts[0]}
            figures = train_step(run, step, batches, totals)
            found.append({key: float(value) for key, value in figures.items()} | _weights(run))
    return found


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _run(config: TrainRoot, case: Case, precision: Precision) -> Run:
    tokenizer: Any = SimpleNamespace(vocab_size=VOCAB, mask_id=MASK, never_written=[PAD, BOS, UNK])
    learner = new_learner(config, {"concepts": ["concept"] * CONCEPTS}, tokenizer)
    learner.to(torch.get_default_dtype())
    _fill(learner)
    learner.train()
    alone = Ranks(Place(), torch.device("cpu"))
    return Run(
        config=config,
        opened=OpenRun(Path()),
        learner=learner,
        ranks=alone,
        replica=Replica(learner, alone, config.run.parallel),
        checkpoints=Checkpoints(Path(), alone, keep=1),
        optimizer=build_optimizer(learner, config.optim),
        ema=Ema(learner, case.ema) if case.ema else None,
        steps_per_epoch=STEPS_PER_EPOCH,
        precision=precision,
        progress=Progress(),
        meter=Meter(torch.device("cpu"), precision),
        profiler=None,
    )


def _random(*names: str | int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox([zlib.crc32(str(name).encode()) for name in names]))


def _fill(task: torch.nn.Module) -> None:
    """Matrices get U(-1, 1) / sqrt(inputs / 3); constant vectors (and numbers) move by up to 0.1, drawn ones are 0.1 U."""
    with torch.no_grad():
        for name, parameter in task.named_parameters():
            shape = tuple(parameter.shape)
            draw = torch.from_numpy(_random(name).uniform(-1, 1, shape)).to(parameter.dtype)
            if len(shape) > 1:
                parameter.copy_(draw * (3 / np.prod(shape[1:])) ** 0.5)
            elif bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(0.1 * draw)
            else:
                parameter.copy_(0.1 * draw)


def _batch(number: int, image_size: int) -> Batch:
    """Four images of up to two captions."""
    random, (B, K, T) = _random("batch", number), (4, 2, 8)
    lengths_BK = random.integers(3, T + 1, (B, K))
    lengths_BK[random.integers(B), 1] = 0  # an empty slot
    tokens_BKT = random.integers(MASK + 1, VOCAB, (B, K, T))
    column_T = np.arange(T)
    tokens_BKT[:, :, 0] = BOS
    tokens_BKT[column_T == lengths_BK[..., None] - 1] = EOS
    tokens_BKT[column_T >= lengths_BK[..., None]] = PAD
    image = random.uniform(-2, 2, (B, 3, image_size, image_size))
    concepts = random.integers(0, 2, (B, CONCEPTS))
    dtype = torch.get_default_dtype()
    return Batch.of(
        torch.from_numpy(tokens_BKT),
        torch.from_numpy(lengths_BK),
        image_XCHW=torch.from_numpy(image).to(dtype),
        labels={"concepts": torch.from_numpy(concepts).to(dtype)},
    )


def _weights(run: Run) -> dict[str, float]:
    """A weighted sum of all parameters, and of their moving average: no wrong update can hide in it."""
    sums = {"weights": {name: p for name, p in run.learner.named_parameters() if p.requires_grad}}
    if run.ema is not None:
        sums["averages"] = run.ema.average
    return {
        key: sum(
            float((p.detach().double() * torch.from_numpy(_random(name, "sum").uniform(0.5, 1, tuple(p.shape)))).sum())
            for name, p in parameters.items()
        )
        for key, parameters in sums.items()
    }
