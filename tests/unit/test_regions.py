"""`vision=rcnn`: the detector is the one that torchvision makes for weights, in evaluation and in training."""

from __future__ import annotations

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from velm_cli import schema
from velm_cli.engine.optim import build_optimizer
from velm_cli.engine.parallel import load_whole
from velm_cli.engine.snapshot import optimizer_tensors, restore_optimizer
from velm_cli.models.vision import build_vision
from velm_cli.models.weights import Undrawn

NETS = [
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
]
SIDE = 64


def trained_state(net: str) -> dict[str, torch.Tensor]:
    """As if trained: statistics and gains are neither 0 nor 1, and variances small enough for an eps to matter."""
    state = torchvision.models.get_model(net, weights=None, weights_backbone=None).state_dict()
    for name, tensor in state.items():
        if name.endswith("running_var"):
            tensor.uniform_(0.01, 0.5)
        elif name.endswith("running_mean"):
            tensor.normal_(std=0.1)
        elif tensor.ndim == 1 and "bn" in name and name.endswith("weight"):
            tensor.uniform_(0.1, 0.3)
    return state


def config(net: str, weights: str, **options) -> schema.RegionsConfig:
    return schema.RegionsConfig(net=net, image_size=SIDE, weights=weights, regions=3, **options)


@pytest.fixture
def weight_file(tmp_path):
    def write(net: str) -> tuple[dict, str]:
        state, path = trained_state(net), tmp_path / f"{net}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
        return state, str(path)

    return write


@pytest.mark.parametrize("net", NETS)
def test_the_detector_is_torchvisions_own_for_weights(net, weight_file, monkeypatch):
    state, path = weight_file(net)
    published = torchvision.models.get_model_weights(net).DEFAULT
    monkeypatch.setattr(type(published), "get_state_dict", lambda *args, **options: state)  # instead of a download
    reference = torchvision.models.get_model(
        net, weights=published, weights_backbone=None, min_size=SIDE, max_size=SIDE
    )
    own = build_vision(config(net, path)).net
    image_BCHW = torch.rand(2, 3, SIDE, SIDE)
    for mode in (False, True):  # training last: it moves the statistics of those norms that have any
        wanted = reference.train(mode).backbone(image_BCHW)
        found = own.train(mode).backbone(image_BCHW)
        assert found.keys() == wanted.keys()
        for level in wanted:
            assert torch.equal(found[level], wanted[level]), (mode, level, (found[level] - wanted[level]).abs().max())
    assert own.state_dict().keys() == reference.state_dict().keys()


@pytest.mark.parametrize("net", NETS[1:3])
def test_every_detector_says_how_wide_its_regions_are(net):
    encoder = build_vision(config(net, "none")).eval()
    with torch.no_grad():
        features = encoder(torch.rand(1, 3, SIDE, SIDE))
    assert features.tokens_BSD.shape == (1, 3, encoder.width)


def test_without_weights_norms_learn_and_with_weights_to_come_they_do_not(weight_file):
    """An evaluation builds the net before its weights are read from the run: it must be the one that was trained."""
    net = NETS[0]
    drawn = build_vision(config(net, "none"))
    assert any(isinstance(part, nn.BatchNorm2d) for part in drawn.modules())
    with Undrawn():
        empty = build_vision(config(net, "/gone.safetensors"))
    norms = [part for part in empty.modules() if isinstance(part, FrozenBatchNorm2d)]
    assert norms and {norm.eps for norm in norms} == {0.0}
    assert not any(isinstance(part, nn.BatchNorm2d) for part in empty.modules())


class Trained(nn.ModuleDict):
    """As much of a learner as the optimiser asks for."""

    def rates(self):
        return ()


def test_what_was_trained_before_norms_were_frozen_still_loads(weight_file):
    """Weights with counters of batches, and moments of gains that are no parameters any more."""
    net = NETS[0]
    state, path = weight_file(net)
    old = torchvision.models.get_model(net, weights=None, weights_backbone=None)
    old.load_state_dict(state)
    assert any(name.endswith("num_batches_tracked") for name in old.state_dict())
    task = Trained({"net": old})
    optimizer = build_optimizer(task, schema.OptimConfig())
    for parameter in task.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moments = optimizer_tensors(task, optimizer)
    assert "net.backbone.body.bn1.weight/exp_avg" in moments

    new = Trained({"net": build_vision(config(net, path, freeze="none")).net})
    load_whole(new, task.state_dict())
    assert torch.equal(new["net"].backbone.body.bn1.running_mean, old.backbone.body.bn1.running_mean)
    resumed = build_optimizer(new, schema.OptimConfig())
    restore_optimizer(new, resumed, moments)
    found = optimizer_tensors(new, resumed)
    assert found.keys() == {name for name in moments if name.rpartition("/")[0] in dict(new.named_parameters())}
    assert all(torch.equal(found[name], moments[name]) for name in found)
