"""format=onnx and format=torch_export: a model's graphs in files, which are given only where they equal the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from velm_cli.errors import UserError
from velm_cli.exporting.graphs import Graph, Run, graphs_of, largest_difference, traced
from velm_cli.files import write_json
from velm_cli.inference.abilities import Able
from velm_cli.inference.pictures import Form
from velm_cli.schema import ExportFormat

NEEDS = 'format=onnx needs onnx, onnxscript and onnxruntime: pip install "velm-cli[onnx]"'


def write_graphs(able: Able, out: Path, form: ExportFormat, tolerance: float) -> float:
    """Write the graphs, the tokenizer and config.json into `out`; the largest difference from the model.

    UserError where that is above the tolerance, or no graph can be made.
    """
    if form is ExportFormat.onnx:
        _onnx()  # before anything takes time
    graphs = graphs_of(able)
    for name, graph in graphs.items():
        program = traced(name, graph)
        if form is ExportFormat.onnx:
            _write_onnx(program, graph, out / f"{name}.onnx")
        else:
            torch.export.save(program, out / f"{name}.pt2")
    runs = read_graphs(out, list(graphs))
    apart = largest_difference(graphs, runs)
    if not apart <= tolerance:  # NaN too
        raise UserError(
            f"format={form.value}: the graphs differ from the model by {apart:.1e} (tolerance={tolerance:g}): nothing "
            "is written"
        )
    able.tokenizer.save(out / "tokenizer")
    write_json(out / "config.json", _about(able, graphs, apart))
    return apart


def read_graphs(folder: Path, names: Sequence[str]) -> dict[str, Run]:
    """What runs each of the graphs in the folder, whichever of the two formats they have."""
    runs: dict[str, Run] = {}
    for name in names:
        onnx_file = folder / f"{name}.onnx"
        runs[name] = _onnx_run(onnx_file) if onnx_file.exists() else _torch_run(folder / f"{name}.pt2")
    return runs


def _torch_run(file: Path) -> Run:
    program = torch.export.load(file)
    module, spec = program.module(), program.call_spec.in_spec

    def run(tensors: Sequence[Tensor]) -> list[Tensor]:
        args, kwargs = torch.utils._pytree.tree_unflatten(list(tensors), spec)
        return torch.utils._pytree.tree_leaves(module(*args, **kwargs))

    return run


def _onnx() -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError(NEEDS) from None
    return onnxruntime


def _onnx_run(file: Path) -> Run:
    session = _onnx().InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(tensors: Sequence[Tensor]) -> list[Tensor]:
        given = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, given)]

    return run


def _write_onnx(program: Any, graph: Graph, file: Path) -> None:
    inputs, outputs = graph.names
    made: Any = torch.onnx.export(
        program, dynamo=True, input_names=inputs, output_names=outputs, verbose=False, optimize=True
    )
    made.save(str(file))


def _about(able: Able, graphs: dict[str, Graph], apart: float) -> dict[str, Any]:
    """config.json: what a program in another language has to know."""
    learner: Any = able.learner
    tokenizer, resizing, form = able.tokenizer, learner.pixels.resizing, Form.of(able.config.dataset)
    return {
        "graphs": {name: {"inputs": graph.names[0], "outputs": graph.names[1]} for name, graph in graphs.items()},
        "image": {
            "size": learner.model.image_size,
            "values": "RGB, float32 from 0 to 1; the graph normalises them",
            "resize": {key: getattr(resizing, key) for key in ("whole", "zoom", "resample", "floors")},
            "stored": {"shorter_side": form.image_size, "jpeg_quality": form.quality},
        },
        "tokens": {
            "bos": tokenizer.bos_id,
            "eos": tokenizer.eos_id,
            "never": tokenizer.never_written,
            "most": able.config.tokenizer.max_tokens,
        },
        "largest_difference": apart,
    }
