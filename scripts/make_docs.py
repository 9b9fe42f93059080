"""Write docs/config.md, the reference of every option, from `velm_cli/schema.py`.

python scripts/make_docs.py            writes it
python scripts/make_docs.py --check    exits with 1 when it is stale
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "velm_cli" / "schema.py"
PAGE = ROOT / "docs" / "config.md"

# Dataclass -> how its options are addressed on the command line.
SECTIONS = [
    ("Stages", "", ["PreprocessRoot", "TrainRoot", "FinetuneRoot", "EvaluateRoot", "DoctorRoot"]),
    ("dataset", "dataset.", ["DatasetConfig", "ShapesConfig", "CocoConfig", "FlickrConfig", "ManifestConfig",
                             "FolderConfig"]),
    ("tokenizer", "tokenizer.", ["TokenizerConfig"]),
    ("preprocess", "preprocess.", ["PreprocessConfig"]),
    ("data", "data.", ["DataConfig"]),
    ("vision", "vision.", ["VisionConfig", "ConvNetConfig", "ViTConfig", "TorchvisionConfig",
                           "TransformersVisionConfig", "RegionsConfig"]),
    ("text", "text.", ["TextConfig", "ScratchTextConfig", "TransformerConfig", "LSTMConfig", "GRUConfig",
                       "PretrainedTextConfig"]),
    ("fusion", "fusion.", ["FusionConfig", "WeightedSumConfig", "AttentionConfig", "CrossModalConfig",
                           "CoAttentionConfig", "PrefixConfig", "GatedConfig", "ExternalFusionConfig"]),
    ("loss", "loss.", ["LossConfig"]),
    ("optim", "optim.", ["OptimConfig"]),
    ("run", "run.", ["RunConfig"]),
    ("init", "init.", ["InitConfig"]),
    ("decode", "decode.", ["DecodeConfig"]),
    ("metrics", "metrics.", ["MetricsConfig"]),
]  # fmt: skip


def page() -> str:
    """The reference as Markdown."""
    source = SCHEMA.read_text(encoding="utf-8")
    lines = source.splitlines()
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    documented = {name for _, _, names in SECTIONS for name in names}
    forgotten = [
        name
        for name, node in classes.items()
        if name not in documented and any(row for row in rows(node, lines, "")) and not _is_enum(node)
    ]
    forgotten = [name for name in forgotten if [r for r in rows(classes[name], lines, "") if r[0] != "kind"]]
    assert not forgotten, f"scripts/make_docs.py knows no section for {forgotten}"
    out = [
        "# Every option",
        "",
        "Written by `make docs` from `velm_cli/schema.py`; do not edit. `velm STAGE --help` prints the values of",
        "a stage, `velm STAGE --cfg job ...` those of a command. A group takes one of its choices",
        "(`fusion=concat`), an option a value (`fusion.dropout=0.2`).",
        "",
        "## Groups and their choices",
        "",
        "| group | choices |",
        "|---|---|",
    ]
    for folder in sorted(path for path in (ROOT / "conf").iterdir() if path.is_dir() and path.name != "hydra"):
        choices = ", ".join(f"`{file.stem}`" for file in sorted(folder.glob("*.yaml")))
        out.append(f"| `{folder.name}` | {choices} |")
    for title, prefix, names in SECTIONS:
        out += ["", f"## {title}"]
        for name in names:
            table = [row for row in rows(classes[name], lines, prefix) if row[0] != f"{prefix}kind"]
            if not table:
                continue
            out += ["", f"**{heading(name)}**", "", "| option | default | meaning |", "|---|---|---|"]
            out += [f"| `{key}` | {default} | {meaning} |" for key, default, meaning in table]
    return "\n".join(out) + "\n"


def heading(name: str) -> str:
    for suffix in ("Config", "Root"):
        name = name.removesuffix(suffix)
    return name


def rows(node: ast.ClassDef, lines: list[str], prefix: str) -> list[tuple[str, str, str]]:
    """(option, default, meaning) of the dataclass's own fields; groups are left to their sections."""
    out = []
    for field in node.body:
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        kind = ast.unparse(field.annotation)
        if kind.endswith("Config") or kind == "Any" or field.target.id == "stage":
            continue
        default = ast.unparse(field.value) if field.value else ""
        meaning = lines[field.end_lineno - 1].partition("  # ")[2].replace("|", "\\|")
        out.append((prefix + field.target.id, f"`{_plain(default)}`", meaning))
    return out


def _plain(default: str) -> str:
    if "METRIC_NAMES" in default:
        return "all"
    if default == "field(default_factory=list)":
        return "[]"
    if default == "MISSING":
        return "required"
    if default == "None":
        return "null"
    if default in ("True", "False"):
        return default.lower()
    if default[:1].isupper() and "." in default:  # an enum's member
        return default.partition(".")[2]
    return default.strip("'\"")


def _is_enum(node: ast.ClassDef) -> bool:
    return any(isinstance(base, ast.Name) and base.id == "Enum" for base in node.bases)


def main() -> int:
    text = page()
    if "--check" in sys.argv[1:]:
        return int(not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text)
    PAGE.write_text(text, encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
