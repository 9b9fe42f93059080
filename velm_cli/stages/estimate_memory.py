"""What a step of training holds in memory, part by part, from a learner on torch's meta device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from velm_cli.learners.interface import Learner
from velm_cli.models.velm import count_parameters
from velm_cli.schema import Precision, RunConfig

AVERAGES = 2 * 4  # bytes of AdamW's two averages of a weight
OBJECTIVES = "objectives"
HALF = 0.6  # of float32's activations in bfloat16: norms and the sums of blocks stay in float32


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at the peak of a step, beside the program itself."""

    weights: dict[str, int]  # by part of the model
    copies: int  # of weights that bfloat16 products take
    gradients: int
    optimiser: int
    activations: int

    @staticmethod
    def of(learner: Learner, run: RunConfig, precision: Precision, activations: int, *, packed: int = 0) -> Memory:
        """`activations`: bytes that backward needs, as `one_step` counts them in float32. `packed`: those that the
        language model's frozen matrices do not take, since they lie in 4 bits."""
        trained = sum(p.numel() for p in learner.parameters() if p.requires_grad)
        half = precision is not Precision.fp32
        return Memory(
            weights={name: size - packed * (name == "text") for name, size in weights_by_part(learner)},
            copies=2 * _multiplied(learner) if half else 0,
            gradients=4 * trained,
            optimiser=(AVERAGES + 4 * bool(run.ema_decay)) * trained,
            activations=round(HALF * activations) if half else activations,
        )

    @property
    def peak(self) -> int:
        """All at once, though backward frees a layer's activations as it makes its gradients: that makes up for what it
        needs in between (measured: docs/training.md)."""
        return sum(self.weights.values()) + self.optimiser + self.copies + self.gradients + self.activations

    def rows(self) -> Iterator[tuple[str, str]]:
        """Labels and figures of a dry run."""
        parts = ", ".join(f"{name} {mib(size)}" for name, size in self.weights.items())
        yield "memory", f"{mib(self.peak)} MiB at the peak of a step, beside what the program itself takes"
        yield "  weights", f"{mib(sum(self.weights.values()))} MiB: {parts}"
        if self.copies:
            yield "", f"{mib(self.copies)} MiB more in bfloat16, for products"
        yield "  gradients", f"{mib(self.gradients)} MiB"
        yield "  optimiser", f"{mib(self.optimiser)} MiB"
        yield "  activations", f"{mib(self.activations)} MiB"


def weights_by_part(learner: Learner) -> Iterator[tuple[str, int]]:
    """Bytes of each part of the model that has any; of all objectives together."""
    model = learner.model
    named = {id(parameter) for part in model.children() for parameter in part.parameters()}
    for name, part in model.named_children():
        own = _bytes(part)
        if name == "text":  # whose output layer has a bias in the model itself
            own += sum(p.numel() * p.element_size() for p in model.parameters(recurse=False) if id(p) not in named)
        if own:
            yield name, own
    if rest := _bytes(learner) - _bytes(model):
        yield OBJECTIVES, rest


def _bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))


def _multiplied(learner: Learner) -> int:
    """Weights in float32 of which a product in bfloat16 keeps a copy for backward: of all parts that it passes."""
    model = learner.model
    passed = [part for part in model.children() if any(p.requires_grad for p in part.parameters())]
    if not model.fusion.after_text and model.text not in passed:
        passed.append(model.text)  # through which gradients reach the image's way in
    return sum(p.numel() for part in passed for p in part.parameters() if p.ndim >= 2 and p.element_size() == 4)


def mib(size: float) -> str:
    return f"{size / 2**20:,.0f}"


def parameters_by_part(learner: Learner) -> Iterator[tuple[str, str]]:
    """Labels and counts of the parts of the model, and how much of each is trained where that is not all."""
    for name, part in learner.model.named_children():
        if count := count_parameters(part):
            trained = count_parameters(part, trainable=True)
            which = "" if trained == count else f" ({trained:,} trained)" if trained else " (frozen)"
            yield f"  {name}", f"{count:,}{which}"
