"""L_joint on two gloo ranks: the shares add up to the loss of one process with all images, gradients included."""

from __future__ import annotations

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from velm_cli.objectives.joint import ContrastiveLoss, SigmoidLoss

B, K = 3, 2  # a rank
LOSSES = {"contrastive": lambda: ContrastiveLoss(6, 5, 4, temperature=0.2), "sigmoid": lambda: SigmoidLoss(6, 5, 4)}


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(7)
    image = torch.randn(2 * B, 6, generator=draw, dtype=torch.double)
    text = torch.randn(2 * B, K, 5, generator=draw, dtype=torch.double)
    present = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 1], [0, 0], [1, 0]]).bool()
    return image, text, present


def loss_and_gradients(name: str, image, text, present) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    loss = LOSSES[name]().double()
    image, text = image.clone().requires_grad_(), text.clone().requires_grad_()
    value = loss(image, text, present)
    value.backward()
    weights = torch.cat([parameter.grad.flatten() for parameter in loss.parameters()])
    return value.detach(), weights, image.grad, text.grad


def rank_of_two(rank: int, name: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mine = slice(rank * B, (rank + 1) * B)
    value, weights, image, text = loss_and_gradients(name, *(part[mine] for part in inputs()))
    for shared in (value, weights):
        torch.distributed.all_reduce(shared)  # as the loop adds the ranks' shares up
    torch.save([value, weights, image, text], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", LOSSES)
def test_two_ranks_are_one(name, tmp_path):
    expected = loss_and_gradients(name, *inputs())
    torch.multiprocessing.spawn(rank_of_two, (name, str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for rank in ranks:
        torch.testing.assert_close(rank[0], expected[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(rank[1], expected[1], rtol=1e-5, atol=1e-6)
    for number in (2, 3):  # each rank holds the gradients of its own rows, from the losses of both
        together = torch.cat([rank[number] for rank in ranks])
        torch.testing.assert_close(together, expected[number], rtol=1e-5, atol=1e-6)
        assert expected[number].abs().max() > 1e-3
