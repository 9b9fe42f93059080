"""export: a trained model as a folder that needs nothing else, for velm or for other programs."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import torch

from velm_cli import __version__, configs
from velm_cli.errors import UserError
from velm_cli.exported import refuse_others, written_whole
from velm_cli.exporting import hf
from velm_cli.exporting.card import USES, card, evaluations, licence, parts_of
from velm_cli.exporting.graph_files import write_graphs
from velm_cli.exporting.slim import write_slim
from velm_cli.files import write_text
from velm_cli.inference.abilities import Able, load_able
from velm_cli.inference.model import load
from velm_cli.schema import ExportFormat, ExportRoot

_GRAPH_LINES = {
    ExportFormat.onnx: """import onnxruntime  # what goes in and comes out: config.json

encoder = onnxruntime.InferenceSession("THIS_FOLDER/encoder.onnx")
""",
    ExportFormat.torch_export: """import torch  # what goes in and comes out: config.json

encoder = torch.export.load("THIS_FOLDER/encoder.pt2").module()
""",
}
NAMES = {"caption": "caption", "vqa": "answer", "retrieve": "embed", "classify": "classify", "chat": "chat"}
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors")


def run(config: ExportRoot) -> float:
    """Write `config.out`; its size in MB."""
    out, home = Path(config.out), configs.run_folder_of(config.checkpoint)
    if out.resolve() == home.resolve():
        raise UserError(f"out={out} is the folder that is exported: name another one")
    refuse_others(out)
    trained = configs.load_run_config(config.checkpoint)
    if trained.fusion.kind == "external":
        raise UserError("fusion=external is code of another package, which an exported folder cannot bring along")
    able = load_able(config.checkpoint, torch.device("cpu"))
    if not able.can:
        raise UserError("\n".join(able.reasons.values()))
    scored = evaluations(home, able.sha256, config.scores)
    about = _about(config, able)
    with written_whole(out, about) as part:
        if config.format is ExportFormat.velm:
            state = write_slim(able, trained, home, part, config.dtype)
            about["parameters"] = sum(tensor.numel() for name, tensor in state.items() if name.startswith("model."))
            load(part, "cpu")  # as whoever gets it will: UserError here rather than there
            lines = _velm_lines(about["can"])
        elif config.format is ExportFormat.hf:
            lines = hf.lines(able)
            apart = hf.write_hf(able, trained, part, config.tolerance)
            print(f"checked     largest difference of logits from the model {apart:.1e}, on random images and words")
        else:
            apart = write_graphs(able, part, config.format, config.tolerance)
            lines = _GRAPH_LINES[config.format]
            print(f"checked     largest difference from the model {apart:.1e}, in batches of 1, 2 and 5 random images")
        parts = parts_of(trained)
        write_text(
            part / "README.md",
            card(trained, home, can=about["can"], about=about, scored=scored, parts=parts, load=lines),
        )
        write_text(part / "LICENSE.md", licence(parts))
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"exported    {out}  ({config.format.value}, {config.dtype.value}, {size / 1e6:.1f} MB)")
    print(f"            can {', '.join(about['can'])}; scores in its card: {len(scored)}")
    return size / 1e6


def _about(config: ExportRoot, able: Able) -> dict[str, Any]:
    """What export.json says."""
    versions = {"velm": __version__, **{name: importlib.metadata.version(name) for name in PACKAGES}}
    return {
        "format": config.format.value,
        "dtype": config.dtype.value,
        "library": "velm" if config.format is ExportFormat.velm else config.format.value,
        "learned": sorted(able.can),
        "can": [NAMES[kind] for kind in able.can if kind in NAMES],
        "weights": able.sha256,
        "parameters": sum(parameter.numel() for parameter in able.learner.parameters()),
        "versions": versions,
    }


def _velm_lines(can: list[str]) -> str:
    lines = ["import velm_cli  # pip install velm-cli", "", 'model = velm_cli.load("THIS_FOLDER")']
    return "\n".join([*lines, *(USES[each] for each in can)])
