"""How many positions a language model reads of an image: found with sizes alone, on torch's meta device."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch

from velm_cli.errors import UserError
from velm_cli.models.fusion.entering import Prefix
from velm_cli.models.velm import VelmModel
from velm_cli.schema import NoVisionConfig, PrefixConfig, PrefixMapper, TrainRoot
from velm_cli.stages.starting import new_learner
from velm_cli.stages.task_data import TaskData


def image_positions(model: VelmModel) -> int:
    """Positions of one image that stand before a text (fusion=prefix), else tokens that the fusion takes of it.

    `model` is on the meta device. UserError where its grid does not fit its options.
    """
    side = model.image_size
    with torch.device("meta"), torch.no_grad():
        features = model.encode_image(torch.empty(2, 3, side, side))  # of one image batches have no statistics
        assert features is not None
        if isinstance(model.fusion, Prefix):
            positions: int = model.fusion.memory(features)[0].shape[1]
            return positions
        return features.tokens_BSD.shape[1] if model.fusion.uses != {"pooled"} else 1


def position_problems(config: TrainRoot, data: TaskData) -> Iterator[str]:
    """A line where the grid of images does not fit, or leaves no room for words; of options that change the grid."""
    vision, fusion = config.vision, config.fusion
    shuffles = isinstance(fusion, PrefixConfig) and fusion.shuffle > 1
    in_a_row = isinstance(fusion, PrefixConfig) and fusion.mapper is PrefixMapper.tokens
    most_images = data.store.most_images
    if in_a_row and not vision.images and most_images > 1 and data.talks is None:
        yield (
            f"fusion.mapper=tokens puts all positions before the text, and examples of {data.store.path} have up to "
            f"{most_images} images: set vision.images={most_images}, or fusion.mapper=resampler"
        )
    if isinstance(vision, NoVisionConfig) or not (shuffles or vision.tiles > 1):
        return
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of layers for no concepts, which is another problem
        try:
            learner = new_learner(config, data.spaces, data.tokenizer)
        except UserError:  # whoever builds it to train it says so
            return
    try:
        positions = image_positions(learner.model)
    except UserError as error:
        yield str(error)
        return
    most = getattr(learner.model.text, "positions", None)
    if isinstance(fusion, PrefixConfig) and most is not None and positions * max(1, vision.images) >= most:
        yield (
            f"an image takes {positions:,} positions before the text, and the text encoder has {most:,} for both: "
            "raise fusion.shuffle, lower vision.tiles, or use fusion.mapper=resampler"
        )
