"""Low-rank updates (LoRA) added to the weights that they update: the model then needs neither peft nor their option."""

from __future__ import annotations

from torch import Tensor, nn

BASE, ADAPTER = ".base_layer.", ".lora_"


def merged(learner: nn.Module) -> dict[str, Tensor]:
    """The learner's tensors under the names that a learner without LoRA has. Changes `learner`."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for part in learner.modules():
        if isinstance(part, BaseTunerLayer):
            part.merge(safe_merge=True)  # ValueError where the sum is not finite
    state = learner.state_dict()
    return {name.replace(BASE, "."): tensor for name, tensor in state.items() if ADAPTER not in name}
