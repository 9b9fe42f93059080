"""The texts of a batch as branches of what they are written from: an image, a prompt that stands behind it, or both.

What a language model reads is [image; BOS, words] without prompts, and [image; BOS, prompt; words] with them: the
target's BOS and the prompt's EOS are then left out, and the target's first word is predicted from the prompt's last
token.

Shapes: B examples, K targets an example, N = B * K, X images, R trees, M positions of the row behind the images, P
positions of an image, Q predicted tokens, D width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from velm_cli.data.batch import Batch, Lengths
from velm_cli.data.layout import Layout
from velm_cli.models.fusion.entering import Prefix
from velm_cli.models.fusion.interface import NoFusion
from velm_cli.models.layers import at_least_float32
from velm_cli.models.ranking import POSITIONS, Answers, log_p_of
from velm_cli.models.velm import VelmModel
from velm_cli.models.vision import ImageFeatures


class Branches(NamedTuple):
    """A batch's texts in one row. Trees are images where examples share them, else examples."""

    layout: Layout  # without the images
    token_M: Tensor  # int64: which of all tokens, targets before sources, each [B, ...] flat, stands where
    from_Q: Tensor  # int64: the position of the row that predicts a token, in the order of `Batch.predicted_M`

    @staticmethod
    def of(lengths: Lengths, *, target_length: int, source_length: int = 0, prompts: bool = False) -> Branches:
        """`target_length`, `source_length`: the width of the batch's rows of tokens."""
        B, K = lengths.targets_BK.shape
        image_B = np.arange(B) if lengths.image_B is None else lengths.image_B
        R = int(image_B.max(initial=-1)) + 1
        target_N = np.maximum(lengths.targets_BK.reshape(-1) - 1, 0)
        prompt_B = np.zeros(B, np.int64)
        if prompts:
            assert lengths.source_B is not None
            prompt_B = np.maximum(lengths.source_B - 1, 0)
        # A target without prompt is read from its BOS on; behind one the prompt's last token stands for that.
        begin_N = np.repeat(prompt_B > 0, K).astype(np.int64)
        read_N = np.maximum(target_N - begin_N, 0)
        example_N = np.repeat(np.arange(B), K)
        layout = Layout.of(
            [*[0] * R, *prompt_B.tolist(), *read_N.tolist()],
            [*[-1] * R, *image_B.tolist(), *(R + example_N).tolist()],
        )
        sources = B * K * target_length + np.arange(B) * source_length
        starts = np.concatenate([sources, np.arange(B * K) * target_length + begin_N])
        token_M = _counted(starts, np.concatenate([prompt_B, read_N]))
        row_N = prompt_B.sum() + np.cumsum(read_N) - read_N  # where each target begins in the row
        from_Q = _counted(row_N - begin_N, target_N)
        first_Q = np.cumsum(target_N) - target_N  # the first prediction of each target
        behind_N = (begin_N > 0) & (target_N > 0)
        from_Q[first_Q[behind_N]] = (np.cumsum(prompt_B) - 1)[example_N[behind_N]]
        return Branches(layout, torch.from_numpy(token_M), torch.from_numpy(from_Q))

    def to(self, device: torch.device | str) -> Branches:
        return Branches(self.layout.to(device), self.token_M.to(device), self.from_Q.to(device))


def _counted(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """int64: starts[0], starts[0] + 1 ... (lengths[0] of them), starts[1] ..."""
    return np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())


def reads_branches(model: VelmModel) -> bool:
    """Whether the texts of an image are read as branches of it, where nothing else is asked for."""
    return isinstance(model.fusion, Prefix) and model.text.branches


def branches_of(model: VelmModel, batch: Batch, *, prompts: bool = False) -> Branches:
    """Where the batch's tensors are."""
    assert batch.lengths is not None
    lengths = batch.lengths
    if not _by_image(model, batch):
        lengths = lengths._replace(image_B=None)
    L = 0 if batch.source_BL is None else batch.source_BL.shape[1]
    found = Branches.of(lengths, target_length=batch.tokens_BKT.shape[2], source_length=L, prompts=prompts)
    return found.to(batch.tokens_BKT.device)


def prefix_of(model: VelmModel, features: ImageFeatures | None, batch: Batch) -> Tensor | None:
    """(R, P, D): what stands before each tree of the batch's branches; None where they begin with their texts."""
    if isinstance(model.fusion, NoFusion):
        return None
    memory = model.fusion.memory(features) if _by_image(model, batch) else model.memory(features, batch.image_of_BI)
    prefix_RPD: Tensor = memory[0]
    return prefix_RPD


def _by_image(model: VelmModel, batch: Batch) -> bool:
    """Whether examples that share an image are branches of it; several images are side by side for each example."""
    return batch.image_of_BI is not None and batch.image_of_BI.shape[1] == 1 and model.places is None


def read_branches(
    model: VelmModel,
    prefix_RPD: Tensor | None,
    branches: Branches,
    tokens_BKT: Tensor,
    source_BL: Tensor | None = None,
) -> Tensor:
    """(Q, D): the states that predict the batch's tokens, in the order of `Batch.predicted_M`."""
    assert isinstance(model.fusion, (Prefix, NoFusion))
    assert prefix_RPD is None or len(prefix_RPD) == len(branches.layout.sizes)
    tokens = tokens_BKT.flatten() if source_BL is None else torch.cat([tokens_BKT.flatten(), source_BL.flatten()])
    states_MD = model.fusion.read_row(model.text, tokens.index_select(0, branches.token_M), prefix_RPD, branches.layout)
    return states_MD.index_select(0, branches.from_Q)


@torch.no_grad()
def branch_log_probs(
    model: VelmModel, batch: Batch, features: ImageFeatures | None, answers: Answers, *, candidates: int
) -> Tensor:
    """As `models.ranking.answer_log_probs`, (B, C), of answers that go on from the prompts of the batch's examples."""
    lengths = batch.lengths
    assert lengths is not None and batch.source_BL is not None
    B, device = len(batch.ids), batch.source_BL.device
    answers = answers.to(device)
    prefix_RPD = prefix_of(model, features, batch)

    def states_of(chosen_BK: Tensor | None) -> Tensor:
        """Those that predict all tokens of the chosen answers, in order; None: the first token of any."""
        tokens = answers.tokens_CT[:1, :2].expand(B, 1, 2) if chosen_BK is None else answers.tokens_CT[chosen_BK]
        lengths_BK = torch.full((B, 1), 2) if chosen_BK is None else answers.lengths_C[chosen_BK].cpu()
        held = replace(batch, tokens_BKT=tokens, lengths=lengths._replace(targets_BK=lengths_BK.numpy()))
        return read_branches(model, prefix_RPD, branches_of(model, held, prompts=True), tokens, batch.source_BL)

    first_BV = at_least_float32(model.logits(states_of(None))).log_softmax(-1)
    first_BC = first_BV.index_select(1, answers.tokens_CT[:, 1])
    order_BK = first_BC.argsort(dim=1, descending=True, stable=True)[:, : min(candidates, len(answers.tokens_CT))]
    found_BC = torch.full_like(first_BC, -torch.inf)
    for chosen_BK in order_BK.split(max(1, POSITIONS // (B * answers.tokens_CT.shape[1])), dim=1):
        tokens_BKT, lengths_BK = answers.tokens_CT[chosen_BK], answers.lengths_C[chosen_BK]
        said_BKT = torch.arange(1, tokens_BKT.shape[2], device=device) < lengths_BK[:, :, None]
        log_p_Q = log_p_of(model, states_of(chosen_BK), tokens_BKT[:, :, 1:][said_BKT])
        log_p_BK = log_p_Q.new_zeros(said_BKT.shape).masked_scatter(said_BKT, log_p_Q).sum(2)
        found_BC.scatter_(1, chosen_BK, log_p_BK.to(found_BC.dtype))
    return found_BC


def positions_read(lengths: Lengths, image_positions: int, *, prompts: bool = False) -> tuple[int, int]:
    """(positions that the language model runs on for a batch as branches, those of a padded row for each text).

    `image_positions`: of one image's prefix.
    """
    B, K = lengths.targets_BK.shape
    layout = Branches.of(lengths, target_length=0, prompts=prompts).layout.after(image_positions)
    target_N = np.maximum(lengths.targets_BK.reshape(-1) - 1, 0)
    if prompts and lengths.source_B is not None:
        target_N = target_N + np.maximum(np.repeat(lengths.source_B, K) - 2, 0)
    return layout.positions, B * K * (image_positions + int(target_N.max(initial=0)))
