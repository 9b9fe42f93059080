"""What learners share: L_image of any of them, and the loss of words, next or hidden.

Shapes: B images or examples, N texts, T positions, M predicted tokens, D width, C concepts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from velm_cli.errors import UserError
from velm_cli.models.velm import VelmModel
from velm_cli.models.vision import ImageFeatures
from velm_cli.objectives.image import ConceptLoss, MaskedPatchLoss
from velm_cli.objectives.text import hide_words, words_loss
from velm_cli.schema import LossConfig


def masked_patch_loss(model: VelmModel, loss: LossConfig) -> MaskedPatchLoss:
    """Made for the grid of the model's encoder, which a look at an empty image tells."""
    assert model.vision is not None
    device = next(model.vision.parameters()).device
    with torch.no_grad():
        nothing = torch.zeros(1, 3, model.image_size, model.image_size, device=device)
        positions = model.vision.eval()(nothing).tokens_BSD.shape[1]
    try:
        return MaskedPatchLoss(
            model.vision.width, positions, model.image_size, patch_size=loss.patch_size, share=loss.masked_patches
        )
    except ValueError as error:
        raise UserError(f"loss.image=masked_patches: {error}: change vision.image_size or loss.patch_size") from error


def image_loss(
    objective: ConceptLoss | MaskedPatchLoss | None,
    model: VelmModel,
    features: ImageFeatures | None,
    image_BCHW: Tensor | None,
    concepts_BC: Tensor | None,
) -> Tensor:
    """L_image of the images, by concepts from their `features`, or by looking at what is not hidden of them."""
    if isinstance(objective, MaskedPatchLoss):
        assert image_BCHW is not None
        hidden_BCHW, where = objective.hide(image_BCHW)
        assert model.vision is not None
        return objective(model.vision(hidden_BCHW).tokens_BSD, image_BCHW, where)
    assert features is not None and objective is not None and concepts_BC is not None
    return objective(features.pooled_BD, concepts_BC)


def states_words_loss(
    model: VelmModel, loss: LossConfig, fused_MD: Tensor, targets_M: Tensor, *, training: bool
) -> Tensor:
    """Of the words that follow from fused states, summed; label smoothing in training only."""
    return words_loss(
        model.scaled(fused_MD),
        model.output_weight,
        model.output_bias,
        targets_M,
        cap=model.text.output_cap,
        chunk=loss.chunk,
        label_smoothing=loss.label_smoothing if training else 0.0,
    )


def hidden_words_loss(
    model: VelmModel,
    loss: LossConfig,
    tokens_NT: Tensor,
    lengths_N: Tensor,
    memory: tuple,
    *,
    words: int,
    predicted: int,
    mask_id: int,
    training: bool,
) -> Tensor:
    """Of texts of so many `words`, scaled from the hidden ones to `predicted`, the number that L_text is divided by."""
    hidden_NT, chosen_M = hide_words(
        tokens_NT,
        lengths_N,
        share=loss.masked_words,
        words=words,
        mask_id=mask_id,
        vocab_size=len(model.output_bias),
    )
    fused_NTD, _ = model.fusion.read(model.text, hidden_NT, memory, lengths_N=lengths_N)
    found = states_words_loss(
        model,
        loss,
        fused_NTD.flatten(0, 1).index_select(0, chosen_M),
        tokens_NT.flatten().index_select(0, chosen_M),
        training=training,
    )
    return found * (predicted / max(1, len(chosen_M)))
