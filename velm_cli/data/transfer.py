"""Batches on their way to the device: on a GPU the next one is copied while the present one is computed with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from velm_cli.data.batch import Batch


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches, their tensors on `device`. With CUDA one batch is read ahead, and copied on a stream of its own."""
    if device.type != "cuda":
        for batch in batches:
            yield batch.to(device)
        return
    beside = torch.cuda.Stream(device)
    coming: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(beside):
            copied = batch.to(device), beside.record_event()
        if coming is not None:
            yield _arrived(*coming, device)
        coming = copied
    if coming is not None:
        yield _arrived(*coming, device)


def _arrived(batch: Batch, copied: torch.cuda.Event, device: torch.device) -> Batch:
    """The batch, for the stream that computes: it waits for this copy, and its memory is not reused before."""
    stream = torch.cuda.current_stream(device)
    stream.wait_event(copied)
    for tensor in batch.tensors():
        tensor.record_stream(stream)
    return batch
