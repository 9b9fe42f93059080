"""Is velm right and fast on this machine's GPUs? `make gpu-check` runs it; it needs no data.

1. parity     the same weights and batch on CPU and GPU: losses, gradients, greedy and beam captions
2. bf16       autocast stays near float32, and its gradients point the same way
3. compile    torch.compile gives the same losses
4. ranks      one process a GPU (NCCL), ddp and fsdp: all keep the same weights, those of one process with all data
5. speed      training step and beam decoding of a ViT-S-sized captioner, and the share of the matrix peak

Every check prints what it found and the bound; the exit code is 1 if one fails. On a machine without CUDA it says so
and exits with 2. `--device cpu` runs the same code there (two gloo ranks, tiny sizes): that tests this script.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import os
import sys
import tempfile
import time
from collections.abc import Callable

import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor

from velm_cli import schema
from velm_cli.data.batch import Batch
from velm_cli.engine.parallel import Replica, is_slice
from velm_cli.engine.ranks import Ranks
from velm_cli.models.decoding import decode_stream
from velm_cli.models.packing import Packing
from velm_cli.models.velm import VelmModel
from velm_cli.objectives.ranks import alone as no_ranks
from velm_cli.place import Place
from velm_cli.tasks.caption import CaptionTask

VOCAB, BOS, EOS = 1000, 1, 2
TERMS = frozenset({"text", "image", "joint"})
MODELS: dict[str, tuple[schema.VisionConfig, schema.TextConfig, schema.FusionConfig]] = {
    "vit + transformer + cross_modal": (
        schema.ViTConfig(image_size=64, width=128),
        schema.TransformerConfig(width=128, dropout=0.0),
        schema.CrossModalConfig(dropout=0.0),
    ),
    "convnet + lstm + attention": (
        schema.ConvNetConfig(image_size=64, width=128),
        schema.LSTMConfig(width=128, dropout=0.0),
        schema.AttentionConfig(dropout=0.0),
    ),
    "resnet18 + gru + weighted_sum": (
        schema.TorchvisionConfig(net="resnet18", image_size=64, weights="none"),
        schema.GRUConfig(width=128, dropout=0.0),
        schema.WeightedSumConfig(weights=schema.SumWeights.gate, dropout=0.0),
    ),
    "vit + transformer + prefix": (
        schema.ViTConfig(image_size=64, width=128),
        schema.TransformerConfig(width=128, dropout=0.0),
        schema.PrefixConfig(mapper=schema.PrefixMapper.tokens, dropout=0.0),
    ),
}
failures = 0


def check(name: str, found: float, bound: float) -> None:
    """A line of the report: `found` must not exceed `bound`."""
    global failures
    good = found <= bound  # False for NaN too
    failures += not good
    print(f"  {'ok  ' if good else 'FAIL'}  {name:<58} {found:.2e}  (at most {bound:.0e})", flush=True)


def make_task(model: tuple, seed: int = 0) -> CaptionTask:
    vision, text, fusion = model
    torch.manual_seed(seed)
    captioner = VelmModel(vision=vision, text=text, fusion=fusion, vocab_size=VOCAB)
    return CaptionTask(captioner, schema.LossConfig(), concepts=20, active=TERMS).train()


def make_batch(
    images: int, side: int, *, captions: int = 3, length: int = 12, seed: int = 0, rows: slice = slice(None)
) -> Batch:
    """A batch of so many images, or those of its `rows`."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, length + 1, (images, captions), generator=draw)[rows].contiguous()
    packing = Packing.of((lengths - 1).numpy(), length - 1)
    ids = list(range(images))[rows]
    return Batch(
        image_ids=list(ids),
        indices=list(ids),
        image_BCHW=torch.randn(images, 3, side, side, generator=draw)[rows],
        tokens_BKT=torch.randint(3, VOCAB, (images, captions, length), generator=draw)[rows].contiguous(),
        lengths_BK=lengths,
        packing=packing,
        concepts_BC=torch.randint(0, 2, (images, 20), generator=draw)[rows].float(),
        num_captions=len(ids) * captions,
        num_tokens=len(packing.positions_M),
    )


def loss_of(task: Callable, batch: Batch) -> Tensor:
    return sum(term.sum / term.count for term in task(batch, TERMS).values())  # type: ignore[return-value]


def gradients(task: CaptionTask, batch: Batch, *, bf16: bool = False) -> tuple[float, Tensor]:
    """The loss, and the gradient of all parameters in one row, on the CPU in float64."""
    device = next(task.parameters()).device
    task.zero_grad(set_to_none=True)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        loss = loss_of(task, batch.to(device))
    loss.backward()
    rows = [p.grad.flatten().double().cpu() for p in task.parameters() if p.grad is not None]
    return float(loss), torch.cat(rows)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def captions_of(task: CaptionTask, batch: Batch, beams: int) -> list[list[int]]:
    """Of all images through three places: on a GPU images enter while others are being captioned."""
    device = next(task.parameters()).device
    model = copy.deepcopy(task.model).eval()
    assert batch.image_BCHW is not None
    with torch.inference_mode():
        memories = [
            (model.memory(model.encode_image(images.to(device))), len(images)) for images in batch.image_BCHW.split(3)
        ]
    config = schema.DecodeConfig(beams=beams, max_length=12)
    found = decode_stream(model, memories, config=config, bos_id=BOS, eos_id=EOS, banned=[0], device=device)
    return [tokens for _, tokens in sorted(found)]


def check_parity(device: torch.device) -> None:
    print("1. parity with the CPU in float32 (TF32 off), and 2. bf16")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    for name, model in MODELS.items():
        batch = make_batch(8, 64)
        here = make_task(model)
        there = copy.deepcopy(here).to(device)
        loss, gradient = gradients(here, batch)
        other_loss, other_gradient = gradients(there, batch)
        check(f"{name}: loss", abs(other_loss - loss) / abs(loss), 1e-4)
        check(f"{name}: gradient", relative(other_gradient, gradient), 1e-3)
        for beams in (1, 4):
            pairs = zip(captions_of(here, batch, beams), captions_of(there, batch, beams), strict=True)
            check(f"{name}: captions that differ, {beams} beams", sum(a != b for a, b in pairs), 0)
        bf16_loss, bf16_gradient = gradients(there, batch, bf16=True)
        check(f"{name}: bf16 loss", abs(bf16_loss - loss) / abs(loss), 2e-2)
        cosine = torch.cosine_similarity(bf16_gradient, gradient, dim=0)
        check(f"{name}: bf16 gradient, 1 - cosine", 1 - float(cosine), 1e-1)  # 0.06 where batch norm amplifies


def check_compile(device: torch.device) -> None:
    print("3. torch.compile")
    name, model = next(iter(MODELS.items()))
    batch = make_batch(8, 64).to(device)
    task = make_task(model).to(device)
    plain = float(loss_of(task, batch).detach())
    compiled = float(loss_of(torch.compile(task), batch).detach())
    check(f"{name}: loss", abs(compiled - plain) / abs(plain), 1e-4)


def check_ranks(device: torch.device) -> None:
    world = torch.cuda.device_count() if device.type == "cuda" else 2
    print(f"4. {world} {'GPUs with NCCL' if device.type == 'cuda' else 'gloo ranks'}")
    if world < 2:
        print("  one GPU only: nothing to check")
        return
    for how in schema.Parallel:
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(_rank, (world, device.type, how, folder), nprocs=world)
            drift, difference, moved = torch.load(os.path.join(folder, "found.pt"), weights_only=True).tolist()
        check(f"{how.value}: largest difference of a weight between ranks", drift, 0)
        check(f"{how.value}: weights after 5 steps, from those of one process", difference, 1e-3)
        check(f"{how.value}: the same, as a share of how far they went", difference / moved, 1e-1)


def _rank(rank: int, world: int, kind: str, how: schema.Parallel, folder: str) -> None:
    device = torch.device(kind, rank) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    backend = "nccl" if kind == "cuda" else "gloo"
    rendezvous = f"file://{folder}/rendezvous"
    torch.distributed.init_process_group(backend, init_method=rendezvous, rank=rank, world_size=world)
    ranks = Ranks(Place(rank, world, rank), device, torch.distributed.new_group(backend="gloo"))
    task = make_task(MODELS["vit + transformer + cross_modal"]).to(device)
    for module in task.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    alone = copy.deepcopy(task)
    start = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    whole = make_batch(4 * world, 64)
    mine = make_batch(4 * world, 64, rows=slice(rank, None, world))
    totals = task.counts(whole)
    by_itself = Ranks(Place(), device)
    for replica, batch in ((Replica(task, ranks, how), mine), (Replica(alone, by_itself, how), whole)):
        optimizer = torch.optim.SGD([p for p in replica.task.parameters() if p.requires_grad], lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            with contextlib.nullcontext() if replica.task is task else no_ranks():
                terms = replica(batch.to(device), TERMS)
                replica.backward(sum(term.sum / totals[name] for name, term in terms.items()))
            replica.add_up_the_rest()
            optimizer.step()
    reference = torch.cat([tensor.flatten() for tensor in alone.state_dict().values()])
    before = torch.cat([tensor.flatten() for tensor in start.values()])
    held = {name: t.full_tensor() if is_slice(t) else t for name, t in task.state_dict().items()}
    found_here = torch.cat([tensor.flatten() for tensor in held.values()])
    first = found_here.clone()
    torch.distributed.broadcast(first, src=0)
    drift = (found_here - first).abs().max()
    torch.distributed.all_reduce(drift, torch.distributed.ReduceOp.MAX)
    if rank == 0:
        scale = reference.norm()
        found = torch.stack([drift, (found_here - reference).norm() / scale, (reference - before).norm() / scale]).cpu()
        torch.save(found, os.path.join(folder, "found.pt"))
    torch.distributed.destroy_process_group()


def measure_speed(device: torch.device) -> None:
    print("5. speed")
    small = device.type == "cpu"
    dtype = torch.float32 if small else torch.bfloat16
    side, width, images, layers, heads = (64, 64, 2, 1, 2) if small else (224, 384, 64, 12, 6)
    vision = schema.ViTConfig(image_size=side, patch_size=16, width=width, layers=layers, heads=heads)
    text = schema.TransformerConfig(width=width, layers=-(-layers // 4), heads=heads)
    model = (vision, text, schema.CrossModalConfig(layers=-(-layers // 4), heads=heads))
    task = make_task(model).to(device)
    batch = make_batch(images, side, captions=5).to(device)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=not small):
            loss = loss_of(task, batch)
        loss.backward()
        optimizer.step()

    seconds = min(_seconds(step, device, 2 if small else 20) for _ in range(3))
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        step()
    a = torch.randn(512 if small else 8192, 512 if small else 8192, device=device, dtype=dtype)
    peak = 2 * len(a) ** 3 / min(_seconds(lambda: a @ a, device, 5) for _ in range(3))
    reached = counter.get_total_flops() / seconds
    print(f"  training   {images * 5 / seconds:,.0f} captions/s, {images / seconds:,.0f} images/s")
    print(f"  matrices   {reached / 1e12:.2f} of {peak / 1e12:.2f} TFLOP/s {str(dtype)[6:]} = {reached / peak:.0%}")
    seconds = min(_seconds(lambda: captions_of(task, batch, 5), device, 1) for _ in range(2))
    print(f"  decoding   {images / seconds:,.0f} images/s with 5 beams")


def _seconds(do: Callable, device: torch.device, times: int) -> float:
    """Seconds a call, the device's work included, after one to warm up."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    do()
    wait()
    began = time.perf_counter()
    for _ in range(times):
        do()
    wait()
    return (time.perf_counter() - began) / times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    device = torch.device(parser.parse_args().device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here, so nothing was checked (--device cpu tries the script itself)", file=sys.stderr)
        return 2
    print(f"torch {torch.__version__}; {torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}")
    check_parity(device)
    check_compile(device)
    check_ranks(device)
    measure_speed(device)
    print(f"{failures} checks failed" if failures else "all checks passed")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
