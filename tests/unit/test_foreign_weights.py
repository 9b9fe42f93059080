"""vision.weights as people bring them: wrapped, prefixed, with heads of other tasks, or not weights at all."""

import argparse
import tarfile
import zipfile

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from velm_cli import schema
from velm_cli.errors import UserError
from velm_cli.models.foreign import fill, under_own_names
from velm_cli.models.vision import build_vision
from velm_cli.models.weights import load_state

HEADS = ("fc.",)


class Net(nn.Module):
    def __init__(self, classes: int = 5, deeper: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(*(nn.Linear(4, 4) for _ in range(2 + deeper)))
        self.fc = nn.Linear(4, classes)


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def trunk(state):
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


STATE = Net().state_dict()
MOCO = {
    **prefixed("module.encoder_q.", STATE),
    **prefixed("module.encoder_k.", Net().state_dict()),
    "module.queue": torch.ones(3),
}
FORMS = {
    "plain": (STATE, "", "fc.weight, fc.bias"),
    "DistributedDataParallel": (prefixed("module.", STATE), " (after module.)", "fc.weight, fc.bias"),
    "training script": (
        {"epoch": 3, "state_dict": prefixed("module.", STATE), "best": torch.tensor(1.0), "optimizer": {"state": {}}},
        " (in state_dict, after module.)",
        "fc.weight, fc.bias",
    ),
    "tutorial": ({"model_state_dict": STATE, "loss": 0.1}, " (in model_state_dict)", "fc.weight, fc.bias"),
    "Lightning": ({"state_dict": prefixed("model.", STATE)}, " (in state_dict, after model.)", "fc.weight, fc.bias"),
    "MoCo": (
        {"state_dict": MOCO},
        " (in state_dict, after module.encoder_q.)",
        "fc.weight, fc.bias, module.encoder_k.conv1.weight and 13 more",
    ),
    "backbone and projector": (
        {**prefixed("backbone.", trunk(STATE)), "head.weight": torch.ones(2)},
        " (after backbone.)",
        "head.weight",
    ),
    "two deep": ({"a": {"model": STATE}}, " (in a.model)", "fc.weight, fc.bias"),
    "ten classes": (Net(10).state_dict() | trunk(STATE), "", "fc.weight, fc.bias"),
    "without classifier": (trunk(STATE), "", None),
    "MLP as head": ({**trunk(STATE), "fc.0.weight": torch.ones(2, 2)}, "", "fc.0.weight"),
    "bfloat16": ({n: t.bfloat16() if t.is_floating_point() else t for n, t in STATE.items()}, "", "fc.weight, fc.bias"),
    "without counters": (
        {n: t for n, t in STATE.items() if not n.endswith("num_batches_tracked")},
        "",
        "fc.weight, fc.bias",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_whatever_is_put_around_them_the_networks_own_tensors_are_taken(form):
    loaded, where, left_out = FORMS[form]
    net = Net()
    said = fill(net, under_own_names(loaded, net.state_dict(), "F"), "F", HEADS)
    assert said == f"F: 10 of 10 tensors{where}" + (f"; left out: {left_out}" if left_out else "")
    for name, tensor in trunk(net.state_dict()).items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(tensor, STATE[name], atol=0.01, rtol=0.01)


@pytest.mark.parametrize(
    ("loaded", "said"),
    [
        ({**STATE, "conv1.weight": torch.ones(4, 3, 7, 7)}, r"conv1.weight has the shape \(4, 3, 7, 7\) there and"),
        ({n: t for n, t in STATE.items() if n != "bn1.bias"}, r"bn1.bias is missing \(9 of 10 tensors fit\)"),
        (Net(deeper=True).state_dict(), "layer1.2.weight is unknown"),
        ({"encoder.layer.0": torch.ones(2)}, r"conv1.weight is missing \(0 of 10 tensors fit\)"),
        ([1, 2], "holds no tensors by name .it is a list"),
        (torch.ones(2), "holds no tensors by name .it is a Tensor"),
        ({"config": {"lr": 1}, 3: 4}, "holds no tensors by name .its keys: config, 3"),
        ({}, "holds no tensors by name"),
        ({**STATE, "conv1.weight": torch.ones(4, 3, 3, 3, dtype=torch.int8)}, "conv1.weight is int8"),
        ({**STATE, "conv1.bias": torch.full([4], torch.nan)}, "not finite"),
        ({n: t.double() * (1e300 if n == "fc.bias" else 1) for n, t in STATE.items()}, "not finite"),
    ],
)
def test_what_would_leave_a_part_of_the_network_random_or_broken_is_refused(loaded, said):
    net = Net()
    with pytest.raises(UserError, match=said):
        fill(net, under_own_names(loaded, net.state_dict(), "F"), "F", HEADS)


def write_pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")


def write_zip(path, name):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, "x")


def write_tar(path):
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "a/weights.pth")


def write_cut(path):
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:1000])


def write_cut_head(path):
    save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:-9])


WRONG = {
    "lfs.pth": (write_pointer, "git-lfs pointer.*git lfs pull"),
    "lfs.safetensors": (write_pointer, "git-lfs pointer"),
    "page.pth": (lambda p: p.write_text("<!DOCTYPE html><html><body>404</body></html>"), "web page"),
    "page.safetensors": (lambda p: p.write_text("\n<html>please log in</html>"), "web page"),
    "zero.pth": (lambda p: p.write_bytes(b""), "empty"),
    "zero.safetensors": (lambda p: p.write_bytes(b""), "empty"),
    "net.onnx": (lambda p: p.write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x052.0.0" + b"x" * 99), "ONNX"),
    "net.gguf": (lambda p: p.write_bytes(b"GGUF" + b"x" * 99), "GGUF"),
    "net.h5": (lambda p: p.write_bytes(b"\x89HDF\r\n" + b"x" * 99), "HDF5"),
    "net.pth.gz": (lambda p: p.write_bytes(b"\x1f\x8b" + b"x" * 99), "gzip"),
    "net.zip": (lambda p: write_zip(p, "net.pth"), "zip archive: unpack"),
    "net.npz": (lambda p: np.savez(p, a=np.zeros(3)), "NumPy"),
    "net.tar": (write_tar, "tar archive: unpack"),
    "cut.pth": (write_cut, "cut short"),
    "head.safetensors": (write_cut_head, "not a readable weight file"),
    "args.pth": (lambda p: torch.save({"model": STATE, "args": argparse.Namespace(a=1)}, p), r"\(argparse.Namespace\)"),
    "whole.pth": (lambda p: torch.save(Net(), p), r"more than plain tensors \([\w.]*Net\), and velm runs no code"),
    "folder.pth": (lambda p: p.mkdir(), "is a folder"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_a_file_is_instead_is_said_in_one_line(name, tmp_path):
    write, said = WRONG[name]
    write(tmp_path / name)
    with pytest.raises(UserError, match=said) as error:
        load_state(tmp_path / name)
    assert "\n" not in str(error.value)
    if name.endswith(".safetensors"):
        with torch.device("meta"), pytest.raises(UserError, match=said):  # as a dry run reads it
            load_state(tmp_path / name)


def test_the_content_decides_which_program_wrote_a_file_and_not_its_name(tmp_path):
    save_file(STATE, tmp_path / "weights.bin")
    assert load_state(tmp_path / "weights.bin").keys() == STATE.keys()
    torch.save(STATE, tmp_path / "checkpoint")
    assert load_state(tmp_path / "checkpoint").keys() == STATE.keys()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_an_encoder_takes_them_and_a_dry_run_reads_their_shapes_alone(suffix, tmp_path):
    reference = torchvision.models.resnet18(num_classes=10)
    path = tmp_path / f"weights.{suffix}"
    state = {f"module.{name}": tensor.clone() for name, tensor in reference.state_dict().items()}
    (save_file if suffix == "safetensors" else torch.save)(state, path)
    config = schema.TorchvisionConfig(net="resnet18", image_size=32, weights=str(path))
    encoder = build_vision(config)
    assert torch.equal(encoder.parts[1][0].conv1.weight, reference.layer1[0].conv1.weight)
    assert "100 of 100 tensors (after module.); left out: fc." in encoder.notes[0]
    with torch.device("meta"):
        assert build_vision(config).notes == encoder.notes
        config.net = "resnet34"
        with pytest.raises(UserError, match=r"layer1.2.conv1.weight is missing \(100 of 180 tensors fit"):
            build_vision(config)


def test_positions_of_a_vision_transformer_are_fitted_to_its_image_size(tmp_path):
    torch.save({"model": torchvision.models.vit_b_32(image_size=64).state_dict()}, tmp_path / "vit.pth")
    config = schema.TorchvisionConfig(net="vit_b_32", image_size=96, weights=str(tmp_path / "vit.pth"))
    with torch.device("meta"):
        assert "(in model); left out: heads." in build_vision(config).notes[0]


def test_a_detector_of_other_classes_is_refused_in_one_line(tmp_path):
    options = {"weights": None, "weights_backbone": None}
    net = "fasterrcnn_mobilenet_v3_large_320_fpn"
    torch.save(torchvision.models.get_model(net, num_classes=3, **options).state_dict(), tmp_path / "two.pth")
    config = schema.RegionsConfig(net=net, image_size=32, weights=str(tmp_path / "two.pth"), regions=2)
    with torch.device("meta"), pytest.raises(UserError, match=r"box_predictor.* has the shape \(3, 1024\) there"):
        build_vision(config)
