"""Captions of one batch, in the order of its images."""

from __future__ import annotations

from typing import Any

from velm_cli.models.decoding import StepModel, decode_stream


def decode(model: StepModel, memory: tuple, *, images: int, **options: Any) -> list[list[int]]:
    """The tokens of each image; see `decode_stream`."""
    return [tokens for _, tokens in sorted(decode_stream(model, [(memory, images)], **options))]
