"""Twelve fixed steps against stored figures, on any processor; and the faults that they must notice.

    VELM_GOLDEN=write python -m pytest tests/golden        writes the figures anew: give the reason in the commit

`make golden BASE=REVISION` compares bits, of a revision and this tree on the same machine (scripts/golden.py).
"""

import json
import os
from pathlib import Path

import pytest
import steps
import torch
from steps import CASES

from velm_cli.engine import loop
from velm_cli.learners import writing
from velm_cli.models import attention, layers
from velm_cli.models.text import scratch
from velm_cli.objectives import joint, text
from velm_cli.objectives.weights import Weight
from velm_cli.schema import Precision

STORED = Path(__file__).with_name("stored.json")
# Relative. Between AVX-512, AVX2 and no vector units, MKL's and oneDNN's kernels and 1 to 4 threads, figures differ by
# 3e-13 at most after 12 steps.
BOUND = 1e-9
# Of losses and of the gradient norm, against float64, relative, per step done: rounding adds up. Measured at most:
# 3e-6 in float32 (any step); in bfloat16 7e-4 and 6e-3 in the first step, 2e-2 and 0.13 in any.
ROUNDING = {Precision.fp32: (1e-5, 1e-5), Precision.bf16: (2e-2, 6e-2)}


def stored() -> dict[str, list[dict[str, float]]]:
    return json.loads(STORED.read_text())


@pytest.fixture(scope="module", autouse=True)
def written_anew():
    if os.environ.get("VELM_GOLDEN") == "write":
        STORED.write_text(json.dumps({name: steps.losses(case) for name, case in CASES.items()}, indent=1) + "\n")


def assert_equal(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert len(found) == len(expected) == steps.STEPS
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=True), start=1):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert ours[key] == pytest.approx(value, rel=BOUND, abs=1e-300), f"{key} of step {number}"


@pytest.mark.parametrize("name", CASES)
def test_steps_in_float64_give_the_stored_figures(name):
    assert_equal(steps.losses(CASES[name]), stored()[name])


@pytest.mark.parametrize("precision", ROUNDING, ids=lambda precision: precision.value)
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.draws])
def test_steps_in_lower_precision_stay_near_them(name, precision):
    found = steps.losses(CASES[name], precision)
    for number, (ours, exact) in enumerate(zip(found, stored()[name], strict=True), start=1):
        of_loss, of_norm = (number * bound for bound in ROUNDING[precision])
        for key, value in exact.items():
            if key.startswith("loss_") or key == "grad_norm":
                bound = of_norm if key == "grad_norm" else of_loss
                assert ours[key] == pytest.approx(value, rel=bound), f"{key} of step {number}"


# ---------------------------------------------------------------------------------------- planted faults


def _changed(monkeypatch, owner, name, change):
    """`owner.name(...)` becomes `change(original, ...)`."""
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **options: change(original, *args, **options))


def attention_without_its_scale(monkeypatch):
    def unscaled(original, query, *args, **options):
        return original(query, *args, **{**options, "scale": 1.0})

    _changed(monkeypatch, attention.F, "scaled_dot_product_attention", unscaled)


def learning_rate_a_step_early(monkeypatch):
    _changed(monkeypatch, loop, "learning_rate", lambda original, config, step, last: original(config, step + 1, last))


def weight_of_a_term_a_step_early(monkeypatch):
    _changed(monkeypatch, Weight, "at", lambda original, self, step, epoch: original(self, step + 1, epoch))


def smoothing_with_the_wrong_sign(monkeypatch):
    def wrong(original, logits, targets, *, label_smoothing=0.0):
        plain = original(logits, targets)
        return 2 * plain - original(logits, targets, label_smoothing=label_smoothing)

    _changed(monkeypatch, text, "next_token_loss", wrong)


def contrast_in_one_direction_only(monkeypatch):
    def one_way(original, image_BE, text_CKE):
        cosines_KBC = original(image_BE, text_CKE)
        return (cosines_KBC + cosines_KBC.transpose(1, 2)) / 2

    _changed(monkeypatch, joint, "_cosines", one_way)


def dropout_scaled_by_what_was_asked(monkeypatch):
    """Not by the share of 2^-16ths that is really dropped: a difference of 4e-6."""
    _changed(
        monkeypatch,
        layers.Dropout,
        "forward",
        lambda original, self, x: original(self, x) * ((1 - round(self.p * 2**16) / 2**16) / (1 - self.p)),
    )


def positions_that_start_at_one(monkeypatch):
    _changed(monkeypatch, scratch, "sinusoids", lambda original, position, *rest: original(position + 1, *rest))


def vectors_that_decay(monkeypatch):
    def decaying(original, task, config):
        optimizer = original(task, config)
        for group in optimizer.param_groups:
            group["weight_decay"] = config.weight_decay
        return optimizer

    _changed(monkeypatch, steps, "build_optimizer", decaying)


def gradients_clipped_too_late(monkeypatch):
    _changed(
        monkeypatch,
        steps.Replica,
        "clip",
        lambda original, self, parameters, limit: original(self, parameters, 1.001 * limit),
    )


def micro_batches_that_weigh_alike(monkeypatch):
    """Each loss divided by its own micro-batch's count instead of the step's."""

    def alike(original, run, step, batches, totals):
        return original(
            run, step, batches, {name: len(batches) * count for name, count in run.learner.counts(batches[0]).items()}
        )

    _changed(monkeypatch, steps, "train_step", alike)


def averages_before_the_step(monkeypatch):
    def early(original, run, step):
        run.ema.update(step)
        update, run.ema.update = run.ema.update, lambda *_, **__: None
        try:
            return original(run, step)
        finally:
            run.ema.update = update

    _changed(monkeypatch, loop, "_update", early)


def another_epsilon_of_norms(monkeypatch):
    _changed(
        monkeypatch,
        torch.nn.functional,
        "layer_norm",
        lambda original, x, shape, weight, bias, eps: original(x, shape, weight, bias, 1.01 * eps),
    )


def scheduled_sampling_of_the_true_word(monkeypatch):
    """The word drawn at a position replaces its own input instead of the next one."""

    def own(original, inputs, logits, positions, **options):
        return original(inputs, logits.roll(1, 0), positions, **options)

    _changed(monkeypatch, writing, "own_words", own)


FAULTS = {
    attention_without_its_scale: "vit-transformer-cross_modal",
    learning_rate_a_step_early: "vit-lstm-concat",
    weight_of_a_term_a_step_early: "vit-transformer-cross_modal",
    smoothing_with_the_wrong_sign: "vit-transformer-cross_modal",
    contrast_in_one_direction_only: "vit-transformer-cross_modal",
    dropout_scaled_by_what_was_asked: "vit-lstm-concat",
    positions_that_start_at_one: "resnet18-transformer-concat",
    vectors_that_decay: "convnet-gru-attention",
    gradients_clipped_too_late: "convnet-transformer-gated",
    micro_batches_that_weigh_alike: "vit-lstm-concat",
    averages_before_the_step: "vit-transformer-cross_modal",
    another_epsilon_of_norms: "convnet-transformer-prefix-matching",
    scheduled_sampling_of_the_true_word: "convnet-transformer-gated",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_noticed(fault, monkeypatch):
    fault(monkeypatch)
    found = steps.losses(CASES[FAULTS[fault]])
    with pytest.raises(AssertionError):
        assert_equal(found, stored()[FAULTS[fault]])
