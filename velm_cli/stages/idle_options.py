"""Options that change nothing beside the others that were chosen, where older runs may have them: said, not refused."""

from __future__ import annotations

from collections.abc import Iterator

from velm_cli import schema
from velm_cli.errors import without_effect

UNUSED = {  # by the mapper of fusion=prefix
    schema.PrefixMapper.mlp: ("layers", "heads"),
    schema.PrefixMapper.tokens: ("length", "layers", "heads"),
}


def idle_options(config: schema.TrainRoot) -> Iterator[str]:
    """A note for each."""
    fusion, optim = config.fusion, config.optim
    lines: list[str] = []
    if isinstance(fusion, schema.PrefixConfig):
        chosen = f"fusion.mapper={fusion.mapper.value}"
        lines += without_effect("fusion", fusion, *UNUSED.get(fusion.mapper, ()), chosen=chosen)
    for name in ("vision", "text", "fusion"):
        part = getattr(config, name)
        if part.freeze == "all" and not getattr(part, "lora_rank", 0):
            lines += without_effect("optim", optim, f"{name}_lr_scale", chosen=f"{name}.freeze=all")
    yield from (f"note: {line}" for line in lines)
