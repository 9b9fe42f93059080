"""What says how fast a run is, and what makes it faster, changes no result."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from velm import TINY, TINY_MODEL, call

from velm_cli.data.packing import Packing
from velm_cli.engine.compiling import _keep_compiled_code_private, compile_model
from velm_cli.engine.meter import Meter, _with_all_heads, matrix_peak
from velm_cli.engine.profile import PARTS
from velm_cli.errors import UserError
from velm_cli.models.layers import Block
from velm_cli.models.velm import VelmModel
from velm_cli.schema import (
    Compile,
    CrossModalConfig,
    LSTMConfig,
    Precision,
    TorchvisionConfig,
    TransformerConfig,
    ViTConfig,
)

STEPS = [
    "run.max_steps=17",
    "run.validate_every=0",
    "metrics.names=[cider]",
    "text.dropout=0",
    "fusion.dropout=0",
    "run.precision=fp32",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("speed")
        patch.chdir(folder)
        assert call("preprocess", "dataset=shapes", *TINY) == 0
        assert call("train", "name=plain", *TINY, *TINY_MODEL, *STEPS) == 0
        yield folder


def steps(place, name: str) -> list[dict]:
    lines = map(json.loads, (place / "runs/train" / name / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "train"]


def test_a_profile_changes_nothing_and_says_where_a_step_went(place, monkeypatch, capfd):
    monkeypatch.chdir(place)
    assert call("train", "name=profiled", *TINY, *TINY_MODEL, *STEPS, "run.profile=true") == 0
    assert [line["loss_text"] for line in steps(place, "profiled")] == [
        line["loss_text"] for line in steps(place, "plain")
    ]
    folder = place / "runs/train/profiled/profile"
    said = capfd.readouterr()
    assert str(folder.relative_to(place) / "summary.txt") in said.out
    assert "ProfilerHandler" not in said.err and "ERROR" not in said.err
    page = (folder / "summary.txt").read_text()
    assert page.startswith("10 steps after the first 5")
    assert all(name in page for name in (*PARTS, "matrix products", "attention", "aten::"))
    trace = json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))
    assert sum(event["name"] == "backward" for event in trace["traceEvents"]) == 10


def test_a_run_too_short_to_be_profiled_leaves_no_page(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert call("train", "name=short", *TINY, *TINY_MODEL, *STEPS, "run.max_steps=4", "run.profile=true") == 0
    assert not (place / "runs/train/short/profile").exists()
    assert "too few steps" in capsys.readouterr().out


@pytest.mark.slow  # the C++ compiler takes a minute or more, whatever the model's size
@pytest.mark.parametrize("how", ["block", "model"])
def test_compiled_steps_lose_the_same(place, monkeypatch, how):
    from torch._dynamo.utils import counters

    counters.clear()
    monkeypatch.chdir(place)
    assert call("train", f"name={how}", *TINY, *TINY_MODEL, *STEPS, "run.max_steps=4", f"run.compile={how}") == 0
    assert counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
    for line, wanted in zip(steps(place, how), steps(place, "plain"), strict=False):
        assert line["loss_text"] == pytest.approx(wanted["loss_text"], abs=2e-4)


@pytest.mark.parametrize("half", [False, True])
def test_a_block_is_compiled_whole_and_not_anew_for_each_batch(half):
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("aot_eager")
    block = Block(16, heads=2, dropout=0.1, image_width=16).train()
    compiled = torch.compile(block, backend=graphs, fullgraph=True)
    for longest in range(3, 12):
        lengths_BK = torch.randint(1, longest, (4, 3)).numpy()
        packing = Packing.of(lengths_BK, longest)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            memory = block.image_memory(torch.randn(4, 7, 16))
            y_1MD, _ = compiled(torch.randn(1, lengths_BK.sum(), 16), causal=True, memory=memory, packing=packing)
        y_1MD.sum().backward()
    assert 1 <= graphs.frame_count <= 3  # of the first sizes, of any


@pytest.mark.parametrize("how", list(Compile))
def test_what_is_compiled(monkeypatch, how):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    model = VelmModel(
        vision=ViTConfig(image_size=32, width=32, layers=2, heads=2),
        text=TransformerConfig(width=32, layers=3, heads=2),
        fusion=CrossModalConfig(layers=1, heads=2),
        vocab_size=20,
    )
    assert model.vision is not None
    blocks = [*model.vision.stages(), *model.text.get_submodule("blocks"), *model.fusion.get_submodule("blocks")]
    wanted = {Compile.off: [], Compile.block: blocks, Compile.model: [model.vision, model.text, model.fusion]}
    compile_model(model, how, torch.device("cpu"))
    assert compiled == wanted[how]


def test_a_machine_without_a_compiler_is_told(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="needs a C"):
        compile_model(nn.Module(), Compile.block, torch.device("cpu"))


def test_operations_of_a_linear_layer_are_counted_exactly():
    meter = Meter(torch.device("cpu"), Precision.fp32)
    layer, x_BD = nn.Linear(8, 16), torch.randn(4, 8)
    with meter.watching(captions=2):
        layer(x_BD).sum().backward()  # forward, and backward for the weights; x wants no gradient
    assert meter.per_caption == 2 * (2 * 4 * 8 * 16) / 2
    assert meter.utilisation(10.0) == pytest.approx(10 * meter.per_caption / meter.peak)
    with meter.watching(captions=2):
        layer(torch.randn(400, 8))
    assert meter.per_caption == 2 * (2 * 4 * 8 * 16) / 2, "only the first step is counted"
    meter.forget()
    with meter.watching(captions=2):
        layer(torch.randn(400, 8))
    assert meter.per_caption == 2 * 400 * 8 * 16 / 2


def test_operations_of_a_step_are_those_that_torch_counts():
    torch.manual_seed(0)
    model = VelmModel(
        vision=TorchvisionConfig(net="resnet18", image_size=32, weights="none"),
        text=LSTMConfig(width=32),
        fusion=CrossModalConfig(layers=1, heads=2),
        vocab_size=20,
    ).train()
    image_BCHW, tokens_NT = torch.randn(2, 3, 32, 32), torch.randint(20, (4, 6))

    def step() -> None:
        fused_NTD, _ = model.fusion.read(model.text, tokens_NT, model.memory(model.encode_image(image_BCHW)))
        model.logits(fused_NTD).sum().backward()

    meter = Meter(torch.device("cpu"), Precision.fp32)
    with meter.watching(captions=1):
        step()
    with FlopCounterMode(display=False) as wanted:
        step()
    assert meter.per_caption == wanted.get_total_flops() > 0


def test_queries_that_share_keys_are_counted_as_if_each_had_its_own():
    """The formula of fused attention in torch 2.9 to 2.11 refuses them; a GPU runs it for language models with such."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention
    query, shared, whole = (torch.empty(2, heads, 5, 8, device="meta") for heads in (4, 2, 4))
    formula = flop_registry[fused]
    args = _with_all_heads((query, shared, shared, 0.0))
    assert (
        formula(*args, out_val=query) == formula(query, whole, whole, 0.0, out_val=query) == 2 * 2 * 2 * 4 * 5 * 5 * 8
    )


@pytest.mark.parametrize("found", ["nothing", "my own", "for everybody", "a link", "the user's choice"])
def test_compiled_code_is_never_taken_from_a_folder_of_others(tmp_path, monkeypatch, found):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    usual = tmp_path / f"velm-compiled-{os.geteuid()}"
    if found == "a link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        usual.symlink_to(tmp_path / "theirs")
    elif found != "nothing":
        usual.mkdir(mode=0o700)
        usual.chmod(0o777 if found == "for everybody" else 0o700)
    if found == "the user's choice":
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    _keep_compiled_code_private()
    chosen = os.environ["TORCHINDUCTOR_CACHE_DIR"]
    if found == "the user's choice":
        assert chosen == "mine"
        return
    assert (chosen == str(usual)) is (found in ("nothing", "my own"))
    assert stat.S_IMODE(os.stat(chosen).st_mode) == 0o700 and Path(chosen).parent == tmp_path
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", chosen)  # is put back afterwards


def test_a_run_does_not_import_the_compiler():
    code = """
import sys, torch
from velm_cli.engine.meter import Meter
from velm_cli.schema import Precision
with Meter(torch.device("cpu"), Precision.fp32).watching(1):
    torch.nn.Linear(2, 2)(torch.ones(1, 2)).sum().backward()
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_peak_is_no_less_than_a_product_reaches_here():
    assert matrix_peak(torch.device("cpu"), Precision.fp32) > 1e8


def test_the_peak_of_a_cpu_does_not_depend_on_what_else_runs(monkeypatch):
    """A starved process once measured a peak 30 times too low, and said that a run used 400 % of the machine."""
    clock = itertools.count(0, 100)  # seconds go by without this process
    monkeypatch.setattr("velm_cli.engine.meter.time.perf_counter", lambda: float(next(clock)))
    assert matrix_peak(torch.device("cpu"), Precision.fp32) > 1e8


def test_log_lines_say_what_is_used_and_what_is_left(place):
    assert all(0 < line["utilisation"] < 1 for line in steps(place, "plain"))


def test_the_time_left_reaches_zero(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert call("train", "name=left", *TINY, *TINY_MODEL, *STEPS, "run.max_steps=3") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ") and "mfu" in line]
    assert len(lines) == 3
    assert lines[-1].endswith("00:00 left")


def test_tiny_numbers_cost_nothing_extra():
    code = """
import torch
from velm_cli.engine.device import prepare
prepare(torch.device("cpu"), 2)
x = torch.full((2_000_000,), 1e-38)  # enough for both threads
assert not (x * 0.1).any()
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "2"})
