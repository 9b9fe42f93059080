"""Which image tokens a fusion can take: what of `vision` and `fusion` does not go together. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from velm_cli import schema
from velm_cli.errors import without_effect

TAKE_POOLED = (schema.ConcatConfig, schema.AddConfig, schema.MultiplyConfig, schema.WeightedSumConfig)


def token_problems(config: schema.TrainRoot, active: set[str]) -> Iterator[str]:
    """A line for each. `active`: the weights of losses that are not always 0, of alpha, beta and gamma."""
    vision, fusion = config.vision, config.fusion
    if isinstance(fusion, schema.PrefixConfig):
        yield from _projector(vision, fusion)
    if isinstance(vision, schema.NoVisionConfig):
        yield from without_effect("vision", vision, "tiles", chosen="vision=none")
    elif vision.tiles > 1:
        yield from _tiles(config, active)


def _projector(vision: schema.VisionConfig, fusion: schema.PrefixConfig) -> Iterator[str]:
    shuffle = fusion.shuffle
    if fusion.mapper is not schema.PrefixMapper.tokens:
        chosen = f"fusion.mapper={fusion.mapper.value}"
        yield from without_effect("fusion", fusion, "shuffle", "projector", chosen=chosen)
    elif shuffle > 1 and vision.output is schema.VisionOutput.pooled:
        yield f"fusion.shuffle={shuffle} joins squares of tokens, and vision.output=pooled has one: set it to grid"
    elif shuffle > 1 and isinstance(vision, schema.RegionsConfig):
        yield f"fusion.shuffle={shuffle} joins squares of a grid, and regions are none: use fusion.mapper=resampler"
    elif vision.grid % shuffle:
        yield f"fusion.shuffle={shuffle}: vision.grid={vision.grid} is no multiple of it"


def _tiles(config: schema.TrainRoot, active: set[str]) -> Iterator[str]:
    vision, fusion, loss = config.vision, config.fusion, config.loss
    if vision.output is schema.VisionOutput.pooled:
        yield f"vision.tiles={vision.tiles} are tokens, and vision.output=pooled has one of the whole: set it to grid"
        return
    if isinstance(vision, schema.RegionsConfig):
        yield f"vision.tiles={vision.tiles}: regions are boxes of the whole picture: raise vision.image_size instead"
    of_pooled = isinstance(fusion, TAKE_POOLED)
    if isinstance(fusion, schema.PrefixConfig) and fusion.mapper is schema.PrefixMapper.mlp:
        of_pooled = True
    if of_pooled and not ("gamma" in active and loss.joint_queries):
        yield (
            f"vision.tiles={vision.tiles}: fusion={fusion.kind} takes the pooled image, which is that of the whole "
            "picture: choose what takes tokens (fusion=prefix with fusion.mapper=tokens or resampler, gated, "
            "cross_modal, attention)"
        )
    if "beta" in active and loss.image is schema.ImageLoss.masked_patches:
        yield f"loss.image=masked_patches paints one grid, and vision.tiles={vision.tiles} makes several: leave one out"
