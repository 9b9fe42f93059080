"""Batches on their way to the device. CUDA's streams are stood in for: what is tested is who waits for what."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import torch
from tiny_models import batch_of

from velm_cli.data.batch import Batch
from velm_cli.data.transfer import on_device


def test_on_a_cpu_batches_come_as_they_are():
    batches = [batch_of(torch.full((3, 3, 4, 4), float(number))) for number in range(3)]
    read: list[int] = []
    arriving = on_device((read.append(number) or batch for number, batch in enumerate(batches)), torch.device("cpu"))
    for number, batch in enumerate(batches):
        assert torch.equal(next(arriving).image_XCHW, batch.image_XCHW)
        assert read == list(range(number + 1)), "nothing is read ahead, where nothing is gained by it"
    assert next(arriving, None) is None


def test_all_tensors_of_a_batch_are_moved_and_told_of():
    batch = replace(
        batch_of(torch.zeros(3, 3, 4, 4)),
        feature_XSD=torch.zeros(3, 2, 4),
        image_of_BI=torch.zeros(3, 1, dtype=torch.long),
        source_BL=torch.ones(3, 4, dtype=torch.long),
        source_lengths_B=torch.tensor([4, 3, 0]),
    )
    assert batch.predicted_M is batch.packing.positions_M and len(batch.labels) == 1
    meta = batch.to("meta")
    own = [part for part in vars(batch).values() if isinstance(part, torch.Tensor)] + [*batch.labels.values()]
    there = {id(tensor) for tensor in batch.tensors()}
    assert len(own) == 9 and {id(part) for part in own} < there
    assert len(there) == len(own) + 2, "and those of the packing, of which one is predicted_M"
    assert len(list(meta.tensors())) == len(list(batch.tensors()))
    assert all(tensor.device.type == "meta" for tensor in meta.tensors())
    assert meta.packing.sizes.device.type == "cpu", "sizes are read by the program, not by the device"


class Streams:
    """What `on_device` asks of torch.cuda, keeping a diary."""

    def __init__(self) -> None:
        self.diary: list[Any] = []
        self.copies = 0

    def Stream(self, device: torch.device) -> Streams:
        return self

    @contextlib.contextmanager
    def stream(self, stream: Streams):
        yield

    def record_event(self) -> int:
        self.copies += 1
        return self.copies - 1

    def current_stream(self, device: torch.device) -> Streams:
        return self

    def wait_event(self, event: int) -> None:
        self.diary.append(("waited for copy", event))


class Moving(Batch):
    """A batch that writes down when it is moved and which of its tensors a stream is told of."""

    def __init__(self, number: int, streams: Streams) -> None:
        self.number, self.streams = number, streams

    def to(self, device: torch.device | str) -> Batch:
        self.streams.diary.append(("copies", self.number))
        return self

    def tensors(self):
        return iter([self])

    def record_stream(self, stream: Streams) -> None:
        stream.diary.append(("kept for the computing stream", self.number))


def test_with_cuda_the_next_batch_is_copied_before_the_present_one_is_computed_with(monkeypatch):
    streams = Streams()
    for name in ("Stream", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(streams, name))
    found = []
    for batch in on_device((Moving(number, streams) for number in range(3)), torch.device("cuda")):
        streams.diary.append(("computes", batch.number))
        found.append(batch.number)
    assert found == [0, 1, 2]
    for number in found:
        at = {what: streams.diary.index((what, number)) for what in ("copies", "waited for copy", "computes")}
        at["kept"] = streams.diary.index(("kept for the computing stream", number))
        assert at["copies"] < at["waited for copy"] < at["kept"] < at["computes"]
    assert streams.diary.index(("copies", 2)) < streams.diary.index(("computes", 1))
    assert list(on_device(iter(()), torch.device("cuda"))) == []
