"""A row of branches has the states of its sequences read one by one, in every kind of text encoder that takes layouts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from causal_families import FAMILIES, RIGHT, family_folder, known
from tiny_models import VOCAB

from velm_cli import schema
from velm_cli.data.layout import Layout
from velm_cli.models.rows import Rows, visible_in
from velm_cli.models.text import build_text


def random_layout(rng: np.random.Generator) -> tuple[Layout, list[int], list[int]]:
    """Trees of any depth, some segments of them empty."""
    lengths, parents = [], []
    for _ in range(rng.integers(1, 5)):
        first = len(lengths)
        for number in range(rng.integers(1, 7)):
            parents.append(-1 if number == 0 else int(rng.integers(first, len(lengths))))
            lengths.append(int(rng.integers(0, 7)))
    if not sum(lengths):
        lengths[0] = 1
    return Layout.of(lengths, parents), lengths, parents


def places(lengths: list[int], parents: list[int], segment: int) -> list[int]:
    """Where in the row the sequence stands that ends with a segment."""
    starts = np.cumsum([0, *lengths])
    path = []
    while segment >= 0:
        path[:0] = range(starts[segment], starts[segment + 1])
        segment = parents[segment]
    return path


def test_positions_and_what_they_see():
    rng = np.random.default_rng()
    for _ in range(100):
        layout, lengths, parents = random_layout(rng)
        M = sum(lengths)
        assert layout.positions == M == len(layout.position_M)
        wanted = torch.zeros(M, M, dtype=torch.bool)
        for segment, length in enumerate(lengths):
            path = places(lengths, parents, segment)
            assert layout.position_M[path].tolist() == [*range(len(path))]
            assert layout.longest >= len(path)
            for place in path[len(path) - length :]:
                wanted[place, [other for other in path if other <= place]] = True
        rows = Rows.of(layout)
        assert rows.size <= 2 * M + len(layout.sizes)
        found = torch.zeros(M, M, dtype=torch.bool)
        place_M = rows.place_M.tolist()
        number = {place: m for m, place in enumerate(place_M)}
        visible_Z = visible_in(layout, rows)
        for group in rows.groups:
            masks = group.of(visible_Z)
            assert masks.any(-1).all()  # a softmax over nothing is not a number
            for g, one, other in masks[:, 0].nonzero().tolist():
                i, j = (number.get(group.start + g * group.width + y) for y in (one, other))
                if i is not None:
                    found[i, j] = True
        assert torch.equal(found, wanted)


def test_a_beginning_before_every_tree():
    rng = np.random.default_rng()
    for _ in range(50):
        roots, P = int(rng.integers(1, 4)), int(rng.integers(1, 6))
        lengths = [0] * roots + rng.integers(0, 6, 8).tolist()
        parents = [-1] * roots + [int(rng.integers(0, segment)) for segment in range(roots, len(lengths))]
        found = Layout.of(lengths, parents).after(P)
        wanted = Layout.of([P] * roots + lengths[roots:], parents)
        assert all(map(torch.equal, found.moved(), wanted.moved()))
        assert (found.sizes, found.longest) == (wanted.sizes, wanted.longest)
        assert all(map(np.array_equal, found.sequences(), wanted.sequences()))


def encoder(name: str):
    config = {
        "transformer": schema.TransformerConfig(width=16, layers=2, heads=2),
        "gru": schema.GRUConfig(width=16),
    }.get(name) or schema.CausalLMConfig(name=family_folder(name))
    return build_text(config, VOCAB, causal=True).eval()


def states_and_gradients(text, embedded, layout, lengths, parents, weight_MD):
    """Of the row, and of its sequences one by one: states, gradients of what was embedded and of the weights."""
    parameters = [p for p in text.parameters() if p.requires_grad]
    row_1ME = embedded.clone().requires_grad_()
    row_1MD = text.run_row(row_1ME, layout)
    grads = torch.autograd.grad((row_1MD[0] * weight_MD).sum(), [row_1ME, *parameters], allow_unused=True)
    single_1ME = embedded.clone().requires_grad_()
    total, single_MD = torch.zeros(()), torch.zeros_like(row_1MD[0])
    for segment, length in enumerate(lengths):
        if not length:
            continue
        path = places(lengths, parents, segment)
        states_1TD, _ = text.run(single_1ME[:, path])
        own = path[len(path) - length :]
        single_MD[own] = states_1TD[0, len(path) - length :].detach()
        total = total + (states_1TD[0, len(path) - length :] * weight_MD[own]).sum()
    single_grads = torch.autograd.grad(total, [single_1ME, *parameters], allow_unused=True)
    return (row_1MD[0].detach(), grads), (single_MD, single_grads)


@pytest.mark.parametrize("name", ["transformer", "gru", *known(sorted(RIGHT), FAMILIES)])
def test_states_and_gradients_are_those_of_single_sequences(name):
    text = encoder(name)
    rng = np.random.default_rng(0)
    for _ in range(2):
        layout, lengths, parents = random_layout(rng)
        M = layout.positions
        embedded = torch.randn(1, M, text.embedding_width)
        found, wanted = states_and_gradients(text, embedded, layout, lengths, parents, torch.randn(M, text.width))
        torch.testing.assert_close(found[0], wanted[0], rtol=1e-4, atol=1e-4)
        for one, other in zip(found[1], wanted[1], strict=True):
            if one is not None and other is not None:
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * max(1.0, float(other.abs().max())))


def test_a_layout_moves_as_a_whole():
    layout, *_ = random_layout(np.random.default_rng(0))
    moved = layout.to("meta")
    assert {part.device.type for part in moved.moved()} == {"meta"} and moved[5:] == layout[5:]
