"""Matrices as int8 in weight files: what comes back, and what is refused."""

import pytest
import torch

from velm_cli.models import int8


def test_matrices_come_back_within_half_a_step_of_their_row():
    torch.manual_seed(0)
    state = {
        "w": torch.randn(40, 64) * torch.logspace(-4, 3, 40)[:, None],
        "b": torch.randn(4000),
        "i": torch.arange(3),
    }
    state["zero"], state["conv"] = torch.zeros(64, 64), torch.randn(32, 3, 5, 5)
    stored = int8.packed(state)
    assert stored["w"].dtype is stored["conv"].dtype is torch.int8 and stored["b"] is state["b"]
    back = int8.unpacked(stored)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        step = tensor.float().flatten(1).abs().amax(dim=1) / 127 if tensor.dim() > 1 else None
        if step is None:
            assert torch.equal(back[name], tensor)
        else:
            assert ((back[name] - tensor).flatten(1).abs() <= 0.5001 * step[:, None]).all(), name


def test_packing_twice_changes_nothing_more():
    once = int8.unpacked(int8.packed({"w": torch.randn(64, 64)}))
    twice = int8.unpacked(int8.packed(once))
    assert (once["w"] - twice["w"]).abs().max() <= 1e-6


@pytest.mark.parametrize(
    "state",
    [
        {"w.int8_scale": torch.ones(3)},
        {"w": torch.ones(3, 3), "w.int8_scale": torch.ones(3)},
        {"w": torch.ones(3, 3, dtype=torch.int8), "w.int8_scale": torch.ones(4)},
    ],
)
def test_scales_that_fit_no_matrix_are_refused(state):
    with pytest.raises(ValueError, match="scale"):
        int8.unpacked(state)
