"""Attention's own backward, for bfloat16 on a CPU, against float64."""

import pytest
import torch
from torch.nn import functional as F

from velm_cli.models import attention
from velm_cli.models.attention import attend

CASES = {
    "an image": ((3, 2, 50, 50, 16), False, None),
    "text": ((7, 3, 11, 11, 8), True, None),
    "text that looks at an image": ((2, 2, 40, 60, 32), False, None),
    "rows of several lengths": ((4, 2, 9, 13, 16), False, "keys"),
    "text of several lengths": ((4, 2, 13, 13, 16), True, "keys"),
    "one key": ((2, 2, 5, 1, 8), False, None),
}


def inputs(sizes, spread):
    N, H, T, S, d = sizes
    q, k, v = (torch.randn(N, n, H, d).mul(spread).bfloat16().transpose(1, 2).requires_grad_() for n in (T, S, S))
    return q, k, v, torch.randn(N, T, H, d).bfloat16().transpose(1, 2)


def errors(found, exact):
    return [((f.double() - e).norm() / e.norm().clamp(min=1e-3)).item() for f, e in zip(found, exact, strict=True)]


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_float64(case, spread):
    sizes, causal, masked = CASES[case]
    q, k, v, dy = inputs(sizes, spread)
    N, S = sizes[0], sizes[3]
    visible = (torch.arange(S) < torch.randint(1, S + 1, (N, 1)))[:, None, None] if masked else None
    y = attend(q, k, v, visible=visible, causal=causal)
    assert "ByProducts" in type(y.grad_fn).__name__
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    mask = torch.ones(sizes[2], S, dtype=torch.bool)
    mask = mask.tril() if causal else mask
    y_exact = F.scaled_dot_product_attention(*exact, attn_mask=mask if visible is None else mask & visible)
    gradients_exact = torch.autograd.grad(y_exact, exact, dy.double())
    found = errors([y, *torch.autograd.grad(y, (q, k, v), dy)], [y_exact, *gradients_exact])
    assert max(found) < 0.02, found
    if not (visible is not None and causal):  # torch takes one or the other
        theirs = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=causal)
        torch_errors = errors(torch.autograd.grad(theirs, (q, k, v), dy), gradients_exact)
        assert all(ours < 2.5 * other + 1e-3 for ours, other in zip(found[1:], torch_errors, strict=True)), (
            found,
            torch_errors,
        )


@pytest.mark.parametrize("change", ["float32", "no gradient", "too many scores"])
def test_torchs_kernel_serves_the_rest(change, monkeypatch):
    q, k, v, _ = inputs((2, 2, 5, 5, 8), 1.0)
    if change == "float32":
        q, k, v = (x.detach().float().requires_grad_() for x in (q, k, v))
    if change == "no gradient":
        q, k, v = (x.detach() for x in (q, k, v))
    if change == "too many scores":
        monkeypatch.setattr(attention, "SCORES", 99)
    y = attend(q, k, v, causal=True)
    assert y.grad_fn is None or "ByProducts" not in type(y.grad_fn).__name__
    torch.testing.assert_close(y, F.scaled_dot_product_attention(q, k, v, is_causal=True))
