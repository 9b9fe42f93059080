"""ddp and fsdp on two gloo ranks: the gradients, and the clipped norm, of one process with the whole batch.

Whatever is frozen, whichever objectives are on: parameters that get no gradient must not hold anybody up.
"""

from __future__ import annotations

import copy
import datetime
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from velm_cli import schema
from velm_cli.data.batch import Batch
from velm_cli.engine.parallel import Replica, whole_tensors
from velm_cli.engine.ranks import Ranks
from velm_cli.learners.interface import Moment
from velm_cli.learners.writing import WritingLearner
from velm_cli.models.velm import VelmModel
from velm_cli.objectives.weights import Weight, constant
from velm_cli.place import Place

IMAGES, SIDE, VOCAB, CONCEPTS, LIMIT = 4, 32, 50, 7, 0.5
VIT = {"image_size": SIDE, "patch_size": 16, "width": 16, "layers": 2, "heads": 2}
WIDE = {"width": 16, "dropout": 0.0}
LAYERS = {"layers": 2, "heads": 2}
TRANSFORMER = schema.TransformerConfig(**WIDE, **LAYERS)
CROSS = schema.CrossModalConfig(dropout=0.0, **LAYERS)
ALL = frozenset({"text", "image", "joint"})
# name -> vision, text, fusion, objectives, those of learned weight, loss options
CELLS = {
    "all objectives": (schema.ViTConfig(**VIT), TRANSFORMER, CROSS, ALL, frozenset(), {}),
    "frozen vision": (schema.ViTConfig(**VIT, freeze="all"), schema.LSTMConfig(**WIDE), schema.AttentionConfig(dropout=0.0), frozenset({"text"}), frozenset(), {}),
    "half frozen, learned weights, sigmoid": (schema.ViTConfig(**VIT, freeze="first:1"), schema.GRUConfig(**WIDE), schema.ConcatConfig(dropout=0.0), ALL, ALL, {"joint": schema.JointLoss.sigmoid}),
    "frozen convolutions and statistics": (schema.TorchvisionConfig(net="resnet18", image_size=SIDE, weights="none", freeze="all"), TRANSFORMER, schema.WeightedSumConfig(dropout=0.0), frozenset({"text"}), frozenset(), {}),
    "only images and pairs": (schema.ViTConfig(**VIT), TRANSFORMER, schema.NoFusionConfig(), frozenset({"image", "joint"}), frozenset(), {}),
    "only text": (schema.NoVisionConfig(), TRANSFORMER, schema.NoFusionConfig(), frozenset({"text"}), frozenset(), {}),
    "prefix": (schema.ViTConfig(**VIT), TRANSFORMER, schema.PrefixConfig(mapper=schema.PrefixMapper.tokens, dropout=0.0), frozenset({"text"}), frozenset({"text"}), {}),
}  # fmt: skip


def make_task(cell: str) -> WritingLearner:
    torch.manual_seed(1)
    vision, text, fusion, active, learned, options = CELLS[cell]
    model = VelmModel(vision=vision, text=text, fusion=fusion, vocab_size=VOCAB)
    loss = schema.LossConfig(joint_width=8, **options)
    return (
        WritingLearner(
            model,
            loss,
            concepts=CONCEPTS,
            weights=constant(*active) | {name: Weight(1.0, 1.0, learned=True) for name in learned},
        )
        .double()
        .train()
    )


def make_batch(rows: slice) -> Batch:
    draw = torch.Generator().manual_seed(2)
    K, T = 2, 9
    image = torch.randn(IMAGES, 3, SIDE, SIDE, generator=draw, dtype=torch.double)[rows]
    tokens = torch.randint(3, VOCAB, (IMAGES, K, T), generator=draw)[rows].contiguous()
    lengths = torch.randint(4, T + 1, (IMAGES, K), generator=draw)[rows].contiguous()
    lengths[:, 1][lengths[:, 1] == 4] = 0  # an empty slot here and there
    concepts = torch.randint(0, 2, (IMAGES, CONCEPTS), generator=draw).double()[rows]
    ids = list(range(IMAGES))[rows]
    return Batch.of(tokens, lengths, ids=ids, image_XCHW=image, labels={"concepts": concepts})


def step(cell: str, replica: Replica, batches: list[Batch]) -> tuple[dict[str, torch.Tensor], float]:
    """Gradients by name, whole and clipped, and their norm before, as the loop computes them."""
    task, active = replica.learner, CELLS[cell][3]
    whole = make_batch(slice(None))
    total = {name: 2 * count for name, count in task.counts(whole).items()}  # two micro-batches
    for number, batch in enumerate(batches, start=1):
        with replica.micro_batch(last=number == len(batches)):
            terms = replica(batch, Moment(active))
            factor = dict.fromkeys(active, 1.0) | {n: (-s).exp() for n, s in task.log_variance.items()}
            replica.backward(sum(factor[name] * term.sum / total[name] for name, term in terms.items()))
    replica.add_up_the_rest()
    parameters = [p for p in task.parameters() if p.requires_grad]
    norm = replica.clip(parameters, LIMIT)
    grads = {name: p.grad for name, p in task.named_parameters() if p.grad is not None}
    return whole_tensors(grads, replica.ranks), float(norm)


def rank_of_two(rank: int, how: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/{how}", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
    )
    ranks = Ranks(Place(rank, 2), torch.device("cpu"), torch.distributed.group.WORLD)
    out = {}
    for cell in CELLS:
        replica = Replica(make_task(cell), ranks, schema.Parallel(how))
        mine = make_batch(slice(rank, None, 2))
        gradients, norm = step(cell, replica, [mine, mine])
        with replica.undivided() as task, torch.no_grad():
            alone = {
                name: term.sum for name, term in task.eval()(make_batch(slice(None)), Moment(CELLS[cell][3])).items()
            }
        out[cell] = (gradients, norm, alone)
    torch.save(out, f"{folder}/{how}-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_gradients_are_those_of_one_process(how, tmp_path):
    torch.multiprocessing.spawn(rank_of_two, (how, str(tmp_path)), nprocs=2)
    first, second = (torch.load(Path(tmp_path) / f"{how}-{rank}.pt", weights_only=True) for rank in range(2))
    alone = Ranks(Place(), torch.device("cpu"))
    for cell in CELLS:
        task = make_task(cell)
        plain = copy.deepcopy(task).eval()
        whole = make_batch(slice(None))
        gradients, norm = step(cell, Replica(task, alone, schema.Parallel.ddp), [whole, whole])
        found, found_norm, found_alone = first[cell]
        assert found.keys() == gradients.keys() and len(gradients) > 3, cell
        for name, gradient in gradients.items():
            error = float((found[name] - gradient).norm() / gradient.norm().clamp(min=1e-6))
            assert error < 1e-6, f"{cell}: {name} {error}"  # cosines of pairs are float32
        assert norm > LIMIT, "so that clipping does something"
        assert found_norm == pytest.approx(norm, rel=1e-6) == second[cell][1]
        with torch.no_grad():
            for name, term in plain(whole, Moment(CELLS[cell][3])).items():
                assert float(found_alone[name]) == pytest.approx(float(term.sum), rel=1e-6)
