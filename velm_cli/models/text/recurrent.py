"""LSTMs and GRUs over texts of different lengths that compute none of their padding, for CPUs.

torch's has the choice between padding (a third of the positions of short captions) and a packed path that multiplies
the weights' gradients step by step; here they are one product, as are the inputs' shares of all gates.

Shapes: M positions of all texts, first the first ones, longest text first, then the second ones ...; D width, G the
gates: input, forget, cell, output of an LSTM (4 D), reset, update, new of a GRU (3 D).
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from velm_cli.models.layers import product_dtype


def packed_layer(x_MD: Tensor, cells: nn.LSTM | nn.GRU, layer: int, sizes: list[int]) -> Tensor:
    """(M, D): the hidden states of layer number `layer`. `sizes`: how many texts have a first position, a second ..."""
    weight_GD, hidden_GD, bias_G, more_G = (
        getattr(cells, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    dtype = product_dtype(weight_GD)
    states_MD: Tensor
    if isinstance(cells, nn.LSTM):
        states_MD = _LSTM.apply(*(tensor.to(dtype) for tensor in (x_MD, weight_GD, hidden_GD, bias_G + more_G)), sizes)
    else:
        inputs = (x_MD, weight_GD, hidden_GD, bias_G, more_G)
        states_MD = _GRU.apply(*(tensor.to(dtype) for tensor in inputs), sizes)
    return states_MD


class _LSTM(torch.autograd.Function):
    """Hochreiter & Schmidhuber 1997 with a forget gate. Products are in the inputs' type, all else at least float32."""

    @staticmethod
    def forward(
        ctx: Any, x_MD: Tensor, weight_GD: Tensor, hidden_GD: Tensor, bias_G: Tensor, sizes: list[int]
    ) -> Tensor:
        (M, _), D = x_MD.shape, hidden_GD.shape[1]
        exact = torch.promote_types(x_MD.dtype, torch.float32)
        before_MG = torch.addmm(bias_G, x_MD, weight_GD.t())
        gates_MG = before_MG if x_MD.dtype == exact else before_MG.new_empty(before_MG.shape, dtype=exact)
        cell_MD, seen_MD = (x_MD.new_empty(M, D, dtype=exact) for _ in range(2))  # seen: tanh(cell)
        states_MD = x_MD.new_empty(M, D)
        last: slice | None = None
        for start, size in zip(accumulate(sizes, initial=0), sizes, strict=False):
            rows = slice(start, start + size)
            if last is not None:
                before_MG[rows].addmm_(states_MD[last][:size], hidden_GD.t())
            gates_XG = gates_MG[rows]  # X: the texts that have this position
            if gates_MG is not before_MG:
                gates_XG.copy_(before_MG[rows])
            gate_XD, forget_XD, new_XD, out_XD = gates_XG.chunk(4, 1)
            gates_XG[:, : 2 * D].sigmoid_()
            new_XD.tanh_()
            out_XD.sigmoid_()
            torch.mul(gate_XD, new_XD, out=cell_MD[rows])
            if last is not None:
                cell_MD[rows].addcmul_(forget_XD, cell_MD[last][:size])
            torch.tanh(cell_MD[rows], out=seen_MD[rows])
            states_MD[rows] = out_XD * seen_MD[rows]
            last = rows
        ctx.save_for_backward(x_MD, weight_GD, hidden_GD, gates_MG, cell_MD, seen_MD, states_MD)
        ctx.sizes = sizes
        return states_MD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_MD, weight_GD, hidden_GD, gates_MG, cell_MD, seen_MD, states_MD = ctx.saved_tensors
        sizes, exact = ctx.sizes, gates_MG.dtype
        d_gates_MG = torch.empty_like(gates_MG, dtype=x_MD.dtype)
        starts = [0, *accumulate(sizes)]
        d_cell_XD: Tensor | None = None  # what comes back from the position after
        d_state_XD: Tensor | None = None
        for step in reversed(range(len(sizes))):
            rows = slice(starts[step], starts[step + 1])
            gate_XD, forget_XD, new_XD, out_XD = gates_MG[rows].chunk(4, 1)
            d_XD = gradients[0][rows].to(exact, copy=True)
            if d_state_XD is not None:
                d_XD[: len(d_state_XD)] += d_state_XD
            d_now_XD = torch.ops.aten.tanh_backward(d_XD * out_XD, seen_MD[rows])
            if d_cell_XD is not None:
                d_now_XD[: len(d_cell_XD)] += d_cell_XD
            d_gates_XG = d_gates_MG[rows]
            d_gate_XD, d_forget_XD, d_new_XD, d_out_XD = d_gates_XG.chunk(4, 1)
            d_out_XD.copy_(torch.ops.aten.sigmoid_backward(d_XD * seen_MD[rows], out_XD))
            d_gate_XD.copy_(torch.ops.aten.sigmoid_backward(d_now_XD * new_XD, gate_XD))
            d_new_XD.copy_(torch.ops.aten.tanh_backward(d_now_XD * gate_XD, new_XD))
            if step == 0:
                d_forget_XD.zero_()
                break
            cell_XD = cell_MD[starts[step - 1] :][: sizes[step]]
            d_forget_XD.copy_(torch.ops.aten.sigmoid_backward(d_now_XD * cell_XD, forget_XD))
            d_cell_XD = d_now_XD * forget_XD
            d_state_XD = d_gates_XG @ hidden_GD
        d_later_MG = d_gates_MG[starts[min(1, len(sizes))] :]
        before_MD = [states_MD[start : start + size] for start, size in zip(starts, sizes[1:], strict=False)]
        d_hidden_GD = d_later_MG.t() @ torch.cat(before_MD) if before_MD else torch.zeros_like(hidden_GD)
        return d_gates_MG @ weight_GD, d_gates_MG.t() @ x_MD, d_hidden_GD, d_gates_MG.sum(0), None


class _GRU(torch.autograd.Function):
    """Cho et al. 2014, the reset gate behind the product, as torch and cuDNN have it. Types as in `_LSTM`."""

    @staticmethod
    def forward(
        ctx: Any, x_MD: Tensor, weight_GD: Tensor, hidden_GD: Tensor, bias_G: Tensor, more_G: Tensor, sizes: list[int]
    ) -> Tensor:
        M, D = len(x_MD), hidden_GD.shape[1]
        exact = torch.promote_types(x_MD.dtype, torch.float32)
        gates_MG = torch.addmm(bias_G, x_MD, weight_GD.t()).to(exact)
        ours_MD, states_MD = x_MD.new_empty(M, D, dtype=exact), x_MD.new_empty(M, D)  # ours: the state's share of new
        before_XD: Tensor | None = None
        for start, size in zip(accumulate(sizes, initial=0), sizes, strict=False):
            rows = slice(start, start + size)
            gates_XG = gates_MG[rows]  # X: the texts that have this position
            if before_XD is None:
                gates_XG[:, : 2 * D] += more_G[: 2 * D]
                ours_MD[rows] = more_G[2 * D :]
            else:
                before_XD = before_XD[:size]
                by_state_XG = torch.addmm(more_G, before_XD, hidden_GD.t())
                gates_XG[:, : 2 * D] += by_state_XG[:, : 2 * D]
                ours_MD[rows] = by_state_XG[:, 2 * D :]
            reset_XD, update_XD, new_XD = gates_XG.chunk(3, 1)
            gates_XG[:, : 2 * D].sigmoid_()
            new_XD.addcmul_(reset_XD, ours_MD[rows]).tanh_()
            state_XD = new_XD - update_XD * new_XD
            if before_XD is not None:
                state_XD.addcmul_(update_XD, before_XD.to(exact))
            states_MD[rows] = state_XD
            before_XD = states_MD[rows]
        ctx.save_for_backward(x_MD, weight_GD, hidden_GD, gates_MG, ours_MD, states_MD)
        ctx.sizes = sizes
        return states_MD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_MD, weight_GD, hidden_GD, gates_MG, ours_MD, states_MD = ctx.saved_tensors
        sizes, exact, D = ctx.sizes, gates_MG.dtype, hidden_GD.shape[1]
        # Of all gates by the inputs, and by the state before: there the reset gate stands before the new state.
        d_gates_MG, d_ours_MG = (torch.empty_like(gates_MG, dtype=x_MD.dtype) for _ in range(2))
        starts = [0, *accumulate(sizes)]
        d_state_XD: Tensor | None = None  # what comes back from the position after
        for step in reversed(range(len(sizes))):
            rows = slice(starts[step], starts[step + 1])
            reset_XD, update_XD, new_XD = gates_MG[rows].chunk(3, 1)
            d_XD = gradients[0][rows].to(exact, copy=True)
            if d_state_XD is not None:
                d_XD[: len(d_state_XD)] += d_state_XD
            change_XD = -new_XD
            if step:
                change_XD += states_MD[starts[step - 1] :][: sizes[step]]
            d_new_XD = torch.ops.aten.tanh_backward(d_XD - d_XD * update_XD, new_XD)
            d_reset_XD = torch.ops.aten.sigmoid_backward(d_new_XD * ours_MD[rows], reset_XD)
            d_update_XD = torch.ops.aten.sigmoid_backward(d_XD * change_XD, update_XD)
            d_gates_XG = torch.cat([d_reset_XD, d_update_XD, d_new_XD], 1)
            d_gates_MG[rows] = d_gates_XG
            d_gates_XG[:, 2 * D :] *= reset_XD
            d_ours_MG[rows] = d_gates_XG
            d_state_XD = d_XD * update_XD + d_ours_MG[rows] @ hidden_GD
        later = starts[min(1, len(sizes))]
        before_MD = [states_MD[start : start + size] for start, size in zip(starts, sizes[1:], strict=False)]
        d_hidden_GD = d_ours_MG[later:].t() @ torch.cat(before_MD) if before_MD else torch.zeros_like(hidden_GD)
        d_x_MD, d_weight_GD = d_gates_MG @ weight_GD, d_gates_MG.t() @ x_MD
        return d_x_MD, d_weight_GD, d_hidden_GD, d_gates_MG.sum(0), d_ours_MG.sum(0), None
