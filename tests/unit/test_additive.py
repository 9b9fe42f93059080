"""Additive attention in pieces is additive attention, and keeps no tanh for backward."""

import pytest
import torch

from velm_cli.models.fusion import additive
from velm_cli.models.fusion.additive import additive_scores

B, X, S, A = 3, 5, 4, 6


def parts(dtype: torch.dtype) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [
        torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in ((B, X, A), (B, S, A), (A,))
    ]


def plain(query: torch.Tensor, key: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    return ((query[:, :, None] + key[:, None]).tanh() * u).sum(-1)


@pytest.mark.parametrize("positions", [1, 2, 4, 7, 12, 100])  # text positions in a piece, of one image or of several
def test_pieces_of_any_size_give_the_scores_and_gradients_of_the_formula(positions, monkeypatch):
    monkeypatch.setitem(additive.PIECE, "cpu", positions * S * A)
    inputs = parts(torch.float64)
    scores, expected = additive_scores(*inputs), plain(*inputs)
    torch.testing.assert_close(scores, expected)
    weights = torch.randn(B, X, S, dtype=torch.float64)
    found = torch.autograd.grad((scores * weights).sum(), inputs)
    for one, other in zip(found, torch.autograd.grad((expected * weights).sum(), inputs), strict=True):
        torch.testing.assert_close(one, other)
    assert torch.autograd.gradcheck(additive_scores, inputs)


def test_in_bfloat16_pieces_are_no_less_exact_than_the_whole(monkeypatch):
    monkeypatch.setitem(additive.PIECE, "cpu", S * A)
    inputs = parts(torch.bfloat16)
    doubles = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = torch.autograd.grad(plain(*doubles).sum(), doubles)
    query, key, u = inputs
    whole = torch.autograd.grad(((query[:, :, None] + key[:, None]).tanh() @ u).sum(), inputs)
    found = torch.autograd.grad(additive_scores(*inputs).sum(), inputs)
    for ours, theirs, exact in zip(found, whole, expected, strict=True):
        assert ours.dtype is torch.bfloat16
        assert (ours.double() - exact).abs().max() <= (theirs.double() - exact).abs().max()


def test_backward_keeps_nothing_larger_than_what_came_in():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        additive_scores(*parts(torch.float32))
    assert sorted(kept) == [A, B * S * A, B * X * A]
