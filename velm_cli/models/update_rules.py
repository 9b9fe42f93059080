"""What of low-rank updates and of weights in 4 bits does not go together. Imports no torch: `validate` asks."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

from velm_cli import schema
from velm_cli.errors import without_effect
from velm_cli.place import place


def update_problems(config: schema.TrainRoot) -> Iterator[str]:
    """A line for each problem of `lora_rank` and `quantize`, of vision and text."""
    for group, part in (("vision", config.vision), ("text", config.text)):
        if isinstance(part, schema.LowRank):
            yield from _lora(group, part)
    yield from _quantize(config)


def _lora(group: str, part: Any) -> Iterator[str]:
    if not part.lora_rank:
        yield from without_effect(group, part, "lora_alpha", "lora_targets", chosen=f"{group}.lora_rank=0")
        return
    if importlib.util.find_spec("peft") is None:
        yield f"{group}.lora_rank={part.lora_rank} needs peft: pip install peft"
    if part.freeze != "none":
        yield f"{group}.lora_rank trains updates of a frozen model by itself: leave {group}.freeze=none"


def _quantize(config: schema.TrainRoot) -> Iterator[str]:
    text = config.text
    if not isinstance(text, schema.CausalLMConfig) or text.quantize is schema.Quantize.none:
        return
    option = f"text.quantize={text.quantize.value}"
    if importlib.util.find_spec("bitsandbytes") is None:
        yield f"{option} needs bitsandbytes: pip install bitsandbytes"
    if not text.lora_rank and text.freeze != "all":
        yield f"{option} packs frozen weights: set text.lora_rank=8 (updates of them learn) or text.freeze=all"
    if config.run.parallel is schema.Parallel.fsdp and place().world > 1:
        yield f"{option} keeps whole layers on each process: set run.parallel=ddp"
