"""Whether a pretrained text encoder means what its language model means: compared on two short texts at loading.

Shapes: N = 2 texts of one beginning, T positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from velm_cli.errors import UserError
from velm_cli.models import transformers_internals as internals
from velm_cli.models.hub import first_line
from velm_cli.models.layers import soft_capped
from velm_cli.models.state import Rows, select
from velm_cli.models.text.interface import TextEncoder

TOLERANCE = 1e-3  # nats, in float32: rounding makes 1e-6 to 1e-4 of it


@torch.no_grad()
def refuse_other_logits(text: TextEncoder, model: Any) -> None:
    """UserError where log p of `text` and of the whole `model` that it is of differ, or where `text` cannot run.

    A beginning and two texts that go on from it, as in decoding.
    """
    vocab = model.get_input_embeddings().num_embeddings
    begun_T, ends_NT = torch.arange(1, 6) * vocab // 7, torch.tensor([[1, 2], [4, 3]]) * vocab // 6
    tokens_NT = torch.cat([begun_T.expand(2, -1), ends_NT], dim=1).to(text.output_weight.device)
    family, was_training = internals.family_of(model), model.training
    model.eval()
    try:
        own_NTV = model(input_ids=tokens_NT).logits
        found_NTV = _by_steps(text, tokens_NT)
    except UserError:
        raise
    except Exception as error:  # a family may fail anywhere in code that nobody here has read
        raise UserError(
            f"text.name={text.name}: velm cannot run this model of the family {family}, by its config or by its kind "
            f"({type(error).__name__}: {first_line(error)}); families that it can run: docs/language-models.md"
        ) from error
    finally:
        model.train(was_training)
    if not own_NTV.isfinite().all():
        raise UserError(f"text.name={text.name}: the model's logits are not finite: its weights or config are damaged")
    difference = float((own_NTV.log_softmax(-1) - found_NTV.log_softmax(-1)).abs().max())
    if not difference <= TOLERANCE:
        raise UserError(
            f"text.name={text.name}: log p of velm and of the model itself differ by {difference:.2g} nats "
            f"({TOLERANCE:g} is allowed): its family {family} computes something that velm does not; those that are "
            "the same: docs/language-models.md"
        )


def _by_steps(text: TextEncoder, tokens_NT: Tensor) -> Tensor:
    """Logits (N, T, V) of texts that differ in their last two tokens only."""
    states_1SD, state = text(tokens_NT[:1, :-2])
    states, state = [states_1SD.expand(2, -1, -1)], select(state, Rows(tokens_NT.new_zeros(1, 2)))
    for token_N1 in tokens_NT[:, -2:].split(1, dim=1):
        states_N1D, state = text(token_N1, state)
        states.append(states_N1D)
    logits_NTV = F.linear(torch.cat(states, dim=1) * text.output_scale, text.output_weight, text.head_bias)
    return soft_capped(logits_NTV, text.output_cap)
