"""The training loop, as a story: batches in, weights out, nothing lost on the way.

The loop knows no loss: a learner turns a batch into terms (a sum over `count` items each), and the loop
minimises sum_i weight_i * (sum of term i) / (global count of term i), over all micro-batches and ranks.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from velm_cli.data.batch import Batch
from velm_cli.data.transfer import on_device
from velm_cli.engine.checkpoint import Checkpoints
from velm_cli.engine.device import autocast
from velm_cli.engine.folder import OpenRun
from velm_cli.engine.meter import Meter
from velm_cli.engine.optim import Ema, learning_rate
from velm_cli.engine.parallel import Replica
from velm_cli.engine.profile import StepProfiler, part
from velm_cli.engine.progress import Progress
from velm_cli.engine.ranks import Ranks
from velm_cli.engine.scaling import is_skipped, scale_of, unscale
from velm_cli.engine.signals import StopRequest
from velm_cli.errors import StageError
from velm_cli.learners.interface import Learner, Moment
from velm_cli.models.weights import not_finite
from velm_cli.observe import Observer
from velm_cli.schema import Precision, TrainRoot

Validate = Callable[[Learner, int, StopRequest], "Validation"]


@dataclass(frozen=True, slots=True)
class Validation:
    """Figures by name, none where there is nothing to validate on; `score` chooses the best checkpoint: the highest."""

    figures: dict[str, float]
    score: float = math.nan


@dataclass(slots=True)
class Run:
    """Everything that a training run consists of."""

    config: TrainRoot
    opened: OpenRun
    learner: Learner
    ranks: Ranks
    replica: Replica
    checkpoints: Checkpoints
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    steps_per_epoch: float
    precision: Precision
    progress: Progress
    meter: Meter
    profiler: StepProfiler | None

    @property
    def folder(self) -> Path:
        return self.opened.path

    @property
    def device(self) -> torch.device:
        return self.ranks.device


def fit(
    run: Run,
    batches: Iterator[Batch],
    *,
    validate: Validate,
    observer: Observer,
    stop: StopRequest,
) -> None:
    """Train until max_steps, early stopping or a stop request; the last state is always saved."""
    options, progress = run.config.run, run.progress
    began, seconds_before = time.perf_counter(), progress.seconds
    saved_step = progress.step
    run.learner.train()
    arriving = on_device(batches, run.device)
    newest: dict[str, Tensor | float] = {}  # figures of a mixture, whose steps do not have all of them
    while True:
        # Here, not after the step, so that a validation that a signal cut short is made up for on resume.
        if _validation_due(run):
            with observer.pause():
                _refuse_to_write(run)
                _validate(run, validate, observer, stop)
                run.learner.train()
        done = progress.step >= options.max_steps or _out_of_patience(run) or run.ranks.stopping(stop)
        if progress.step > saved_step and (done or progress.step % options.checkpoint_every == 0):
            with observer.pause():
                _refuse_to_write(run)
                run.checkpoints.save(run.learner, run.optimizer, run.ema, progress)
            saved_step = progress.step
        if done:
            run.checkpoints.finish()
            return

        with run.profiler.step() if run.profiler else contextlib.nullcontext():
            waited = time.perf_counter()
            with part("wait for data"):
                micro_batches = [next(arriving) for _ in range(options.accumulation)]
            waited = time.perf_counter() - waited

            size = {
                "captions": sum(batch.num_learned for batch in micro_batches),
                "images": sum(len(batch.ids) for batch in micro_batches),
            }
            counts = [run.learner.counts(batch) for batch in micro_batches]
            size |= {f"count of {name}": sum(count[name] for count in counts) for name in counts[0]}
            told = run.ranks.counted(size, stop)
            totals = {name: told[f"count of {name}"] for name in counts[0]}
            if run.config.data.cache_texts and progress.step % max(1, round(run.steps_per_epoch)) == 0:
                run.meter.forget()  # texts that have been read cost nothing from now on
            with run.meter.watching(size["captions"], "+".join(sorted(batch.part for batch in micro_batches))):
                figures = train_step(run, progress.step, micro_batches, totals)
            if run.learner.parts:
                figures = newest = newest | figures
        progress.step += 1
        progress.seconds = seconds_before + time.perf_counter() - began
        observer.advance(captions=told["captions"], images=told["images"], waited=waited)
        if progress.step % options.log_every == 0 or progress.step == options.max_steps:
            observer.log(progress.step, _of_all_ranks(run.ranks, figures))


def _of_all_ranks(ranks: Ranks, figures: dict[str, Tensor | float]) -> dict[str, float]:
    """Losses are sums of the ranks' shares; of other figures that the ranks differ in, the mean is shown."""
    own = {key: float(value) for key, value in figures.items()}
    if ranks.world == 1:
        return own
    summed = ranks.added_up(own)
    return {key: value if key.startswith("loss_") else value / ranks.world for key, value in summed.items()}


def is_over(run: Run) -> bool:
    """Whether nothing is left to train: all steps done, and the last validation not cut short by a signal."""
    done = run.progress.step >= run.config.run.max_steps
    return (done or _out_of_patience(run)) and not _validation_due(run)


def _out_of_patience(run: Run) -> bool:
    """Decided anew by every command, whose patience may be another one."""
    patience = run.config.run.patience
    return 0 < patience <= run.progress.bad_validations


def _validation_due(run: Run) -> bool:
    options, progress = run.config.run, run.progress
    if progress.step == 0 or progress.validated_step == progress.step:
        return False
    every = options.validate_every
    return progress.step >= options.max_steps or (every > 0 and progress.step % every == 0)


def train_step(run: Run, step: int, micro_batches: list[Batch], totals: dict[str, int]) -> dict[str, Tensor | float]:
    """One optimiser step over the micro-batches; the figures of the step, not yet fetched.

    `totals`: the items of each objective, in the micro-batches of all ranks.
    """
    share = run.learner.shares(micro_batches)
    weight: dict[str, Tensor | float] = {
        name: w.at(step, run.steps_per_epoch) * share.get(name, 1.0) for name, w in run.learner.weights.items()
    }
    active = frozenset(name for name, value in weight.items() if value > 0)
    now = Moment(active, step, run.steps_per_epoch)
    log_variance = run.learner.log_variance  # of the terms with learned weights: sum_i exp(-s_i) L_i + s_i
    weight |= {name: (-s.detach()).exp() for name, s in log_variance.items()}
    total = {name: max(1, totals[name]) for name in active}
    scale = scale_of(run.progress, run.precision)

    figures: dict[str, Tensor | float] = {}
    for number, batch in enumerate(micro_batches, start=1):
        with run.replica.micro_batch(last=number == len(micro_batches)):
            with part("forward"):
                with autocast(run.device, run.precision):
                    terms = run.replica(batch, now)
                factor = weight | {name: (-s).exp() for name, s in log_variance.items()}
                loss = sum(factor[name] * term.sum / total[name] for name, term in terms.items())
            if isinstance(loss, Tensor) and loss.requires_grad:
                with part("backward"):
                    run.replica.backward(loss if scale == 1 else loss * scale)
        for name, term in terms.items():
            figures[f"loss_{name}"] = figures.get(f"loss_{name}", 0.0) + term.sum.detach() / total[name]
            for key, value in term.figures.items():
                figures[key] = figures.get(key, 0.0) + value / len(micro_batches)

    run.replica.add_up_the_rest()
    if log_variance:
        (torch.stack(list(log_variance.values())).sum() * scale).backward()

    with part("optimiser"):
        parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
        unscale(parameters, scale)
        norm = run.replica.clip(parameters, run.config.optim.grad_clip or math.inf)
        skipped = is_skipped(run.progress, run.precision, norm, lambda: _losses_are_finite(run.ranks, figures))
        if not skipped and not torch.isfinite(norm):
            _stop_at_nan(figures, micro_batches, step, run.precision)
        lr = _leave_out(run, step) if skipped else _update(run, step)
    told = {f"weight_{name}": value for name, value in weight.items() if share.get(name, 1.0)}
    if run.precision is Precision.fp16:
        told |= {"grad_scale": scale, "skipped_steps": run.progress.skipped_steps}
    return figures | {"lr": lr, "grad_norm": norm} | told


def _losses_are_finite(ranks: Ranks, figures: dict[str, Tensor | float]) -> bool:
    """Of all ranks, which all ask."""
    own = all(math.isfinite(float(value)) for name, value in figures.items() if name.startswith("loss_"))
    return all(ranks.of_all(own))


def _leave_out(run: Run, step: int) -> float:
    """Drop gradients that overflowed; the learning rate of the step that is left out."""
    run.optimizer.zero_grad(set_to_none=True)
    return learning_rate(run.config.optim, step, run.config.run.max_steps)


def _update(run: Run, step: int) -> float:
    """Move the weights along their gradients, which are then gone; the learning rate."""
    lr = learning_rate(run.config.optim, step, run.config.run.max_steps)
    for group in run.optimizer.param_groups:
        group["lr"] = lr * group["scale"]
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.learner.after_step()
    if run.ema is not None:
        run.ema.update(step)
    return lr


def _validate(run: Run, validate: Validate, observer: Observer, stop: StopRequest) -> None:
    """Score the (averaged) weights; keep them when they are the best so far; count towards patience.

    Until a step was done at the end of all schedules, a score says little about those to come: the newest weights
    stand for the best, and patience does not count. The best is then chosen among later ones only.
    """
    progress, schedules_end = run.progress, run.learner.settled(run.steps_per_epoch)
    moving = progress.step <= schedules_end
    to_beat = progress.best if (progress.best_step or 0) > schedules_end else None
    if run.ema is not None:
        run.ema.swap()
    try:
        run.learner.eval()
        run.replica.same_buffers()
        with run.replica.undivided() as learner:
            found = validate(learner, progress.step, stop)
        if run.ranks.any_stopped(stop):  # cut short: no figure worth keeping
            return
        progress.validated_step = progress.step
        if not found.figures:  # the data set has nothing to validate on
            return
        score = found.score
        if math.isfinite(score) and (to_beat is None or score > to_beat):
            progress.best, progress.best_step, progress.bad_validations = score, progress.step, 0
            run.checkpoints.save_weights(run.learner, run.folder / "best.safetensors")
        else:
            progress.bad_validations += 1
    finally:
        if run.ema is not None:
            run.ema.swap()
    observer.record("validation", progress.step, found.figures | ({"moving": True} if moving else {}))
    best = "" if progress.best is None else f"  (best {progress.best:.4f})"
    if progress.best_step == progress.step:
        best = "  best so far" if run.config.stage == "train" else "  best of this finetuning so far"
    if moving:
        best = f"  (schedules move until step {math.ceil(schedules_end)}: newest weights kept, patience not counted)"
    observer.say(
        f"step {progress.step}/{run.config.run.max_steps}  validation: "
        + "  ".join(f"{key} {value:.4f}" for key, value in found.figures.items())
        + best
    )
    if _out_of_patience(run):
        observer.say(f"no better validation {progress.bad_validations} times in a row: stopping")


def _refuse_to_write(run: Run) -> None:
    """StageError where weights would be saved that are worthless, or into a folder that is not the run's any more.

    A step looks at gradients only: its update may still leave the finite numbers.
    """
    run.opened.refuse_if_gone()
    found = run.ranks.of_all(not_finite(run.learner))
    if name := next(filter(None, found), None):
        raise StageError(
            f"step {run.progress.step}: the weights are not finite ({name}), and are not saved; what was saved before "
            "is from when they were. Try a lower optim.lr, or a smaller optim.grad_clip"
        )


def _stop_at_nan(
    figures: dict[str, Tensor | float], micro_batches: list[Batch], step: int, precision: Precision
) -> None:
    ids = [str(image_id) for batch in micro_batches for image_id in batch.ids]
    losses = ", ".join(f"{key} {float(value):g}" for key, value in figures.items())
    if precision is Precision.fp16:
        losses += "; float16 ends at 65,504: run.precision=bf16 or fp32 does not"
    raise StageError(
        f"step {step + 1}: the gradient is not finite ({losses}); the last checkpoint is from before it. "
        f"Examples of the batch: {', '.join(ids[:64])}{' ...' if len(ids) > 64 else ''}"
    )
