"""The parts of gpu_check.py that compare a GPU's numbers with the CPU's: parity, objectives, compile."""

from __future__ import annotations

import contextlib
import copy
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_check import Report
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from velm_cli import schema
from velm_cli.data.batch import Batch
from velm_cli.engine.compiling import compile_model
from velm_cli.engine.meter import Meter
from velm_cli.learners.interface import Moment
from velm_cli.learners.writing import WritingLearner
from velm_cli.models.decoding import decode_stream
from velm_cli.models.search import image_draws
from velm_cli.models.velm import VelmModel
from velm_cli.objectives.self_critical import SelfCritical
from velm_cli.objectives.weights import constant

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import tiny_models  # transformers' models of a few random weights, in folders

PAD, BOS, EOS = 0, 1, 2
VOCAB = tiny_models.VOCAB  # of all models, since the pretrained ones have no other
CONCEPTS, IMAGES, CAPTIONS, LENGTH = 20, 8, 3, 12
ALL_TERMS = frozenset({"text", "image", "joint"})
# Bounds. In float32 both do the same operations in another order; bf16 has 8 bits of mantissa and fp16 has 11.
FLOAT32_LOSS, FLOAT32_GRADIENT = 1e-4, 1e-3
HALF = {torch.bfloat16: (2e-2, 1e-1), torch.float16: (5e-3, 2e-2)}  # of the loss; 1 - cosine of the gradients
BY_STATISTICS = ("resnet18",)  # batch norm over 8 images of 1 x 1 positions amplifies rounding: 0.10 and 0.012 on a CPU
HALF_BY_STATISTICS = {torch.bfloat16: (2e-2, 2.5e-1), torch.float16: (5e-3, 5e-2)}
FP16_SCALE = 1024.0  # of the loss, so that small gradients are not lost; velm itself does not train in fp16
TIE = 1e-5  # captions whose scores differ by less than this share are equally good


def _torchvision(net: str, layer: int = 0) -> Callable[[], schema.VisionConfig]:
    return lambda: schema.TorchvisionConfig(net=net, image_size=32, weights="none", layer=layer)


def _transformers(kind: str) -> Callable[[], schema.VisionConfig]:
    return lambda: schema.TransformersVisionConfig(name=tiny_models.folder(kind), image_size=24)


VISION: dict[str, Callable[[], schema.VisionConfig]] = {
    "vit": lambda: schema.ViTConfig(image_size=32, width=64, layers=2),
    "convnet": lambda: schema.ConvNetConfig(image_size=32, width=64, stages=2),
    "resnet18": _torchvision("resnet18"),
    "dinov2": _transformers("dinov2"),
    "clip": _transformers("clip"),
    "rcnn": lambda: schema.RegionsConfig(image_size=48, weights="none", regions=3),
    "vgg16": _torchvision("vgg16", 10),
    "hf_vit": _transformers("vit"),
    "siglip": _transformers("siglip"),
    "efficientnet_b0": _torchvision("efficientnet_b0", 5),
    "swin_t": _torchvision("swin_t", 3),
}
TEXT: dict[str, Callable[[], schema.TextConfig]] = {
    "transformer": lambda: schema.TransformerConfig(width=64, dropout=0.0),
    "lstm": lambda: schema.LSTMConfig(width=64, layers=2, dropout=0.0),
    "gru": lambda: schema.GRUConfig(width=64, dropout=0.0),
    "gpt2": lambda: schema.CausalLMConfig(name=tiny_models.folder("gpt2")),
    "llama": lambda: schema.CausalLMConfig(name=tiny_models.folder("llama")),
    "bloom": lambda: schema.CausalLMConfig(name=tiny_models.folder("bloom")),
    "bert": lambda: schema.BertConfig(name=tiny_models.folder("bert")),
}
FUSION: dict[str, Callable[[], schema.FusionConfig]] = {
    "cross_modal": lambda: schema.CrossModalConfig(dropout=0.0),
    "attention": lambda: schema.AttentionConfig(heads=2, dropout=0.0),
    "weighted_gate": lambda: schema.WeightedSumConfig(weights=schema.SumWeights.gate, dropout=0.0),
    "prefix": lambda: schema.PrefixConfig(length=3, dropout=0.0),
    "gated": lambda: schema.GatedConfig(heads=2, dropout=0.0),
    "prefix_tokens": lambda: schema.PrefixConfig(mapper=schema.PrefixMapper.tokens, dropout=0.0),
    "concat": lambda: schema.ConcatConfig(dropout=0.0),
    "add": lambda: schema.AddConfig(dropout=0.0),
    "multiply": lambda: schema.MultiplyConfig(dropout=0.0),
    "weighted_sum": lambda: schema.WeightedSumConfig(dropout=0.0),
    "attention_additive": lambda: schema.AttentionConfig(score=schema.AttentionScore.additive, width=8, dropout=0.0),
    "co_attention": lambda: schema.CoAttentionConfig(heads=2, dropout=0.0),
    "prefix_transformer": lambda: schema.PrefixConfig(
        mapper=schema.PrefixMapper.transformer, length=3, layers=1, heads=2, dropout=0.0
    ),
    "none": schema.NoFusionConfig,
}
# Each kind at least once; text encoders and fusions that have branches of their own on a GPU several times.
CELLS = [
    ("vit", "transformer", "cross_modal"),
    ("convnet", "lstm", "attention"),
    ("resnet18", "gru", "weighted_gate"),
    ("dinov2", "gpt2", "prefix"),
    ("clip", "llama", "gated"),
    ("siglip", "bloom", "prefix_tokens"),
    ("rcnn", "bert", "cross_modal"),
    ("vgg16", "lstm", "concat"),
    ("hf_vit", "gru", "add"),
    ("efficientnet_b0", "gpt2", "multiply"),
    ("swin_t", "llama", "weighted_sum"),
    ("vit", "gru", "attention_additive"),
    ("convnet", "transformer", "co_attention"),
    ("vit", "bert", "prefix_transformer"),
    ("convnet", "transformer", "gated"),
    ("vit", "lstm", "cross_modal"),
    ("convnet", "gpt2", "none"),
]
DECODING = {
    "greedy": schema.DecodeConfig(max_length=LENGTH),
    "4 beams": schema.DecodeConfig(beams=4, max_length=LENGTH),
    "4 beams, short": schema.DecodeConfig(beams=4, max_length=LENGTH, length_penalty=0.0),
    "nucleus": schema.DecodeConfig(method=schema.DecodeMethod.nucleus, max_length=LENGTH),
}


# ---------------------------------------------------------------------------------------- models and batches


def make_task(
    vision: str, text: str, fusion: str, loss: schema.LossConfig | None = None, active: frozenset[str] = ALL_TERMS
) -> WritingLearner:
    """The task on the CPU. Its weights are the same each time, and large enough for words to differ by image."""
    configs = {"vision": VISION[vision](), "text": TEXT[text](), "fusion": FUSION[fusion]()}
    torch.manual_seed(0)
    loss = loss or schema.LossConfig()
    model = VelmModel(**configs, vocab_size=VOCAB, causal=loss.text is not schema.TextLoss.masked)
    with torch.no_grad():
        for name, parameter in model.fusion.named_parameters():
            if "gate_" in name:  # gated cross-attention starts shut, and then no image would matter
                parameter.fill_(0.7)
    task = WritingLearner(
        model, loss, concepts=CONCEPTS, weights=constant(*active), mask_id=3, never_written=[PAD, BOS]
    ).train()
    for module in task.modules():
        if isinstance(module, nn.Dropout) or type(module).__name__ == "StochasticDepth":  # torchvision's
            module.p = 0.0
    return task


def make_batch(side: int | None, *, images: int = IMAGES, seed: int = 0, rows: slice = slice(None)) -> Batch:
    """Random images and captions of different lengths; or those of its `rows`."""
    draw = torch.Generator().manual_seed(seed)
    lengths_BK = torch.randint(4, LENGTH + 1, (images, CAPTIONS), generator=draw)
    image_BCHW = torch.randn(images, 3, side or 1, side or 1, generator=draw)
    tokens_BKT = torch.randint(4, VOCAB, (images, CAPTIONS, LENGTH), generator=draw)
    concepts_BC = torch.randint(0, 2, (images, CONCEPTS), generator=draw).float()
    lengths_BK = lengths_BK[rows].contiguous()
    ids: list[int | str] = list(range(images))[rows]
    return Batch.of(
        tokens_BKT[rows].contiguous(),
        lengths_BK,
        ids=ids,
        image_XCHW=image_BCHW[rows] if side else None,
        labels={"concepts": concepts_BC[rows]},
    )


def loss_of(task: Callable[..., Any], batch: Batch, terms: frozenset[str]) -> Tensor:
    return sum(term.sum / term.count for term in task(batch, Moment(terms)).values())


def gradients(
    task: WritingLearner, batch: Batch, terms: frozenset[str], *, half: torch.dtype | None = None
) -> tuple[float, Tensor]:
    """The loss, and the gradient of all parameters in one row, on the CPU in float64."""
    device = next(task.parameters()).device
    task.zero_grad(set_to_none=True)
    scale = FP16_SCALE if half is torch.float16 else 1.0
    with torch.autocast(device.type, dtype=half or torch.bfloat16, enabled=half is not None):
        loss = loss_of(task, batch.to(device), terms)
    (scale * loss).backward()
    rows = [p.grad.flatten().double().cpu() / scale for p in task.parameters() if p.grad is not None]
    return float(loss.detach()), torch.cat(rows)


def without_tf32() -> None:
    """Float32 products and convolutions are float32 on a GPU too."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


# ---------------------------------------------------------------------------------------- parity


def parity(report: Report, device: torch.device) -> None:
    """Each cell: losses, gradients, words, and half precisions."""
    without_tf32()
    for cell in CELLS[:2] if report.small else CELLS:
        name = " + ".join(cell)
        here = make_task(*cell)
        there = copy.deepcopy(here).to(device)
        batch = make_batch(here.model.image_size)
        loss, gradient = gradients(here, batch, ALL_TERMS)
        other_loss, other_gradient = gradients(there, batch, ALL_TERMS)
        report.check(f"{name}: loss", abs(other_loss - loss) / abs(loss), FLOAT32_LOSS)
        report.check(f"{name}: gradient", relative(other_gradient, gradient), FLOAT32_GRADIENT)
        for what, config in DECODING.items():
            pairs = list(zip(captions_of(here, batch, config), captions_of(there, batch, config), strict=True))
            others = [(number, *pair) for number, pair in enumerate(pairs) if pair[0] != pair[1]]
            worse = sum(not _tie(here, batch, config, *other) for other in others)
            report.check(f"{name}: captions that differ and do not tie, {what}", worse, 0)
        if cell[0] == "rcnn":  # which boxes are the surest is a choice: rounded numbers make another
            continue
        for half, (most, apart) in (HALF_BY_STATISTICS if cell[0] in BY_STATISTICS else HALF).items():
            what = str(half).removeprefix("torch.")
            half_loss, half_gradient = gradients(there, batch, ALL_TERMS, half=half)
            report.check(f"{name}: {what} loss", abs(half_loss - loss) / abs(loss), most)
            cosine = torch.cosine_similarity(half_gradient, gradient, dim=0)
            report.check(f"{name}: {what} gradient, 1 - cosine", 1 - float(cosine), apart)


def captions_of(task: WritingLearner, batch: Batch, config: schema.DecodeConfig) -> list[list[int]]:
    """Of all images through three places: images enter while others are being captioned."""
    device = next(task.parameters()).device
    model = copy.deepcopy(task.model).eval()
    assert batch.image_XCHW is not None
    with torch.inference_mode():
        memories = [
            (model.memory(model.encode_image(images.to(device))), len(images)) for images in batch.image_XCHW.split(3)
        ]

    def draws(numbers: range) -> Tensor:
        rows = image_draws(list(numbers), seed=0, count=config.max_length)
        return torch.from_numpy(rows).to(device, torch.float32)

    found = decode_stream(
        model, memories, config=config, bos_id=BOS, eos_id=EOS, banned=[PAD, BOS], device=device, draws=draws
    )
    return [tokens for _, tokens in sorted(found)]


def _tie(task: WritingLearner, batch: Batch, config: schema.DecodeConfig, number: int, *texts: list[int]) -> bool:
    """Whether two captions of an image score alike, by a pass over each on the CPU; greedy ones up to where they part.

    Drawn ones never do: the numbers that decide are the same, and far from where words change.
    """
    if config.method is schema.DecodeMethod.nucleus:
        return False
    ended = [[*tokens, EOS][: config.max_length] for tokens in texts]
    if config.beams == 1:
        parting = next(t for t, pair in enumerate(zip(*ended, strict=False)) if pair[0] != pair[1])
        ended = [tokens[: parting + 1] for tokens in ended]
    model = copy.deepcopy(task.model).eval()
    assert batch.image_XCHW is not None
    with torch.no_grad():
        memory = model.memory(model.encode_image(batch.image_XCHW[number : number + 1]))
        scores = []
        for tokens in ended:
            fused_1TD, _ = model.fusion.read(model.text, torch.tensor([[BOS, *tokens[:-1]]]), memory)
            logits_TV = model.logits(fused_1TD[0]).index_fill(1, torch.tensor([PAD, BOS]), float("-inf"))
            log_p = logits_TV.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None]).sum()
            scores.append(float(log_p) / len(tokens) ** (config.length_penalty if config.beams > 1 else 0.0))
    return abs(scores[0] - scores[1]) <= TIE * abs(scores[0])


# ---------------------------------------------------------------------------------------- objectives


class SameDraws(TorchFunctionMode):
    """Random numbers come from the CPU's generator whatever the device, so that two devices get the same."""

    DRAW = (torch.rand, torch.randn, torch.randint, torch.randperm, torch.multinomial, torch.rand_like)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func not in self.DRAW:
            return func(*args, **kwargs)
        device = kwargs.pop("device", None) or next((a.device for a in args if isinstance(a, Tensor)), None)
        args = [arg.cpu() if isinstance(arg, Tensor) else arg for arg in args]
        return func(*args, **kwargs).to(device)


OBJECTIVES: dict[str, tuple[tuple[str, str, str], str, schema.LossConfig]] = {
    "next word, smoothed": (CELLS[0], "text", schema.LossConfig(label_smoothing=0.1)),
    "next word, logits in chunks": (CELLS[0], "text", schema.LossConfig(chunk=16)),
    "next word, scheduled sampling": (CELLS[1], "text", schema.LossConfig(scheduled_sampling="0.5")),
    "hidden words": (CELLS[6], "text", schema.LossConfig(text=schema.TextLoss.masked)),
    "self-critical": (CELLS[0], "text", schema.LossConfig(text=schema.TextLoss.self_critical)),
    "self-critical, recurrent": (CELLS[1], "text", schema.LossConfig(text=schema.TextLoss.self_critical)),
    "concepts, mean": (CELLS[0], "image", schema.LossConfig(image_reduction=schema.Reduction.mean)),
    "hidden patches": (CELLS[0], "image", schema.LossConfig(image=schema.ImageLoss.masked_patches, patch_size=8)),
    "contrastive": (CELLS[0], "joint", schema.LossConfig()),
    "sigmoid": (CELLS[2], "joint", schema.LossConfig(joint=schema.JointLoss.sigmoid)),
    "matching": (CELLS[0], "joint", schema.LossConfig(joint=schema.JointLoss.matching)),
    "all three": (CELLS[0], "text image joint", schema.LossConfig()),
}


def objectives(report: Report, device: torch.device) -> None:
    """Each objective with the same weights, batch and random draws on the CPU and the device."""
    without_tf32()
    for name in ("self-critical", "matching") if report.small else OBJECTIVES:
        cell, active, loss = OBJECTIVES[name]
        terms = frozenset(active.split())
        found = []
        for where in (torch.device("cpu"), device):
            task = make_task(*cell, loss, terms)
            if loss.text is schema.TextLoss.self_critical:
                task.critic = _critic(where)
            task.to(where)
            batch = make_batch(task.model.image_size)
            with SameDraws():
                torch.manual_seed(1)
                found.append(gradients(task, batch, terms))
        (expected, gradient), (value, other) = found
        report.check(f"{name}: loss", abs(value - expected) / max(abs(expected), 1e-6), FLOAT32_LOSS)
        report.check(f"{name}: gradient", relative(other, gradient), FLOAT32_GRADIENT)
    if not report.small:
        _counted(report, device)


def _counted(report: Report, device: torch.device) -> None:
    """The operations of a step are counted also where queries share keys, which torch's own formulas may refuse."""
    meter = Meter(device, schema.Precision.bf16)
    task = make_task("convnet", "llama", "none", weights=constant("text")).to(device)
    with meter.watching(IMAGES * CAPTIONS):
        gradients(task, make_batch(task.model.image_size), frozenset({"text"}), half=torch.bfloat16)
    report.check("llama: a step whose operations are not counted", not meter.per_caption, 0)


def _critic(device: torch.device) -> SelfCritical:
    words = [f"w{number}" for number in range(VOCAB)]
    batch = make_batch(None)
    references = {
        record: [" ".join(words[token] for token in row) for row in rows]
        for record, rows in zip(batch.examples, batch.tokens_BKT.tolist(), strict=True)
    }
    return SelfCritical(
        references, words, bos_id=BOS, eos_id=EOS, banned=[PAD, BOS], samples=4, max_length=LENGTH, device=device
    )


# ---------------------------------------------------------------------------------------- compile


def compile(report: Report, device: torch.device) -> None:
    """Losses and gradients of compiled code, blocks and whole, against those of the code as written."""
    without_tf32()
    cell = ("convnet", "transformer", "add") if report.small else CELLS[0]
    if report.small:  # torch's tracing alone: making C++ of it takes minutes on two cores
        nn.Module.compile = functools.partialmethod(nn.Module.compile, backend="aot_eager")
    for how in [schema.Compile.block] if report.small else [schema.Compile.block, schema.Compile.model]:
        plain = make_task(*cell).to(device)
        compiled = copy.deepcopy(plain)
        batch = make_batch(plain.model.image_size)
        loss, gradient = gradients(plain, batch, ALL_TERMS)
        compile_model(compiled.model, how, device)
        other_loss, other_gradient = gradients(compiled, batch, ALL_TERMS)
        report.check(f"run.compile={how.value}: loss", abs(other_loss - loss) / abs(loss), FLOAT32_LOSS)
        report.check(f"run.compile={how.value}: gradient", relative(other_gradient, gradient), FLOAT32_GRADIENT)
        gradients(compiled, make_batch(plain.model.image_size, seed=1), ALL_TERMS)  # from here on sizes may vary
        with _counted_graphs() as graphs:
            gradients(compiled, make_batch(plain.model.image_size, seed=2), ALL_TERMS)
        report.figure(f"run.compile={how.value}: graphs compiled anew for a third batch", graphs(), "")


@contextlib.contextmanager
def _counted_graphs() -> Iterator[Callable[[], int]]:
    """How many graphs torch's compiler made within."""
    from torch._dynamo.utils import counters

    before = counters["stats"]["unique_graphs"]
    yield lambda: counters["stats"]["unique_graphs"] - before
