"""Whether images and texts fit the positions of a language model: said before anything is trained or written."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import torch

from velm_cli.data.store import Store
from velm_cli.data.talk_tokens import TalkTokens
from velm_cli.errors import UserError
from velm_cli.models.velm import VelmModel
from velm_cli.schema import NoVisionConfig, PrefixConfig, PrefixMapper, PretrainedTextConfig, TrainRoot
from velm_cli.stages.image_tokens import image_positions
from velm_cli.stages.starting import new_learner
from velm_cli.stages.task_data import TaskData


def position_problems(config: TrainRoot, data: TaskData) -> Iterator[str]:
    """A line where the grid of images does not fit or leaves no room for words, or conversations are too long."""
    vision, fusion = config.vision, config.fusion
    in_a_row = isinstance(fusion, PrefixConfig) and fusion.mapper is PrefixMapper.tokens
    most_images = data.store.most_images
    if in_a_row and not vision.images and most_images > 1 and data.talks is None:
        yield (
            f"fusion.mapper=tokens puts all positions before the text, and examples of {data.store.path} have up to "
            f"{most_images} images: set vision.images={most_images}, or fusion.mapper=resampler"
        )
    limited = isinstance(config.text, PretrainedTextConfig)
    sees = not isinstance(vision, NoVisionConfig) and data.store.has_images
    before = sees and isinstance(fusion, PrefixConfig) and (limited or fusion.shuffle > 1)
    if not (before or (sees and vision.tiles > 1) or (limited and data.talks is not None)):
        return
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of layers for no concepts, which is another problem
        try:
            learner = new_learner(config, data.spaces, data.tokenizer)
        except UserError:  # whoever builds it to train it says so
            return
    try:
        positions = image_positions(learner.model) if sees else 0
    except UserError as error:
        yield str(error)
        return
    most = getattr(learner.model.text, "positions", None)
    if isinstance(fusion, PrefixConfig) and most is not None and positions * max(1, vision.images) >= most:
        fewer = "raise fusion.shuffle, lower vision.tiles, or use fusion.mapper=resampler"
        yield (
            f"an image takes {positions:,} positions before the text, and the text encoder has {most:,} for both: "
            f"{fewer if in_a_row else 'lower fusion.length'}"
        )
    elif before and most is not None and (longest := _longest(data)) + positions * max(1, vision.images) > most:
        yield (
            f"an image takes {positions:,} positions before the text and the longest text {longest:,}, and the text "
            f"encoder has {most:,} for both: lower tokenizer.max_tokens, or "
            f"{'raise fusion.shuffle' if in_a_row else 'lower fusion.length'}"
        )
    elif data.talks is not None:
        validated = data.store.split("val")[: config.run.validate_images or None]
        yield from too_long_to_learn(learner.model, data.talks, data.store)
        _, line = too_long_to_reply(learner.model, data.talks, data.store, validated, config.decode.max_length)
        yield from [line] if line else []


def _longest(data: TaskData) -> int:
    """Tokens that are read of the longest target, BOS among them; 0 where none is read behind an image."""
    if data.talks is not None or data.targets is None or data.task.options.judges:
        return 0
    return 1 + int((data.targets.offsets[1:] - data.targets.offsets[:-1]).max(initial=0))


def too_long_to_learn(model: VelmModel, talks: TalkTokens, store: Store) -> Iterator[str]:
    """A line where training conversations, as far as they are learned from, have more positions than the model."""
    if (most := _most(model)) is None:
        return
    examples = store.split("train")
    examples = examples[talks.learnable(examples)]
    needed = talks.lengths(examples) + _of_images(model, store, examples)
    if count := int((needed > most).sum()):
        yield (
            f"{count:,} training conversations take up to {needed.max():,} positions, those of images among them, and "
            f"the text encoder has {most:,}: lower task.max_tokens={talks.limit}{_images_take(model, store)}"
        )


def too_long_to_reply(
    model: VelmModel, talks: TalkTokens, store: Store, examples: np.ndarray, reply: int
) -> tuple[np.ndarray, str]:
    """Those of the examples that leave the model no positions for a reply of so many tokens, and a line about them."""
    if (most := _most(model)) is None or not len(examples):
        return examples[:0], ""
    before = talks.prompts[examples] + _of_images(model, store, examples)
    beyond = np.flatnonzero(before + reply > most)
    if not len(beyond):
        return examples[:0], ""
    longest = int(before[beyond].max())
    fits = f"lower decode.max_length to {most - longest}" if longest < most else "leave them out of the data"
    return examples[beyond], (
        f"{len(beyond):,} conversations (first: {store.example_id(int(examples[beyond[0]]))}) take up to {longest:,} "
        f"positions before the reply, those of images among them, decode.max_length={reply} come behind, and the text "
        f"encoder has {most:,}: {fits}{_images_take(model, store)}"
    )


def _most(model: VelmModel) -> int | None:
    found: int | None = getattr(model.text, "positions", None)
    return found


def _of_images(model: VelmModel, store: Store, examples: np.ndarray) -> np.ndarray:
    """int64: positions of the images of each example, beyond the one that each is counted as."""
    if model.vision is None or not store.has_images or not len(examples):
        return np.zeros(len(examples), np.int64)
    images_B = (store.images_of(examples)[1] >= 0).sum(axis=1)
    return np.asarray(images_B * (image_positions(model) - 1))


def _images_take(model: VelmModel, store: Store) -> str:
    if model.vision is None or not store.has_images:
        return ""
    return f", or give each image fewer than {image_positions(model):,} positions (fusion.shuffle, fusion.mapper)"
