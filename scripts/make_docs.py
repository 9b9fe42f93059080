"""Write what the code says of itself: docs/config.md (every option) and docs/matrix.md (every legal combination).

python scripts/make_docs.py            writes them
python scripts/make_docs.py --check    exits with 1 when one is stale
"""

from __future__ import annotations

import ast
import itertools
import re
import sys
from pathlib import Path

from velm_cli import schema
from velm_cli.schema.bounds import bounds_of
from velm_cli.validate import model_problems

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "velm_cli" / "schema"
CONF = ROOT / "conf"

# Dataclass -> how its options are addressed on the command line.
SECTIONS = [
    ("Stages", "", ["PreprocessRoot", "TrainRoot", "FinetuneRoot", "EvaluateRoot", "ScoreRoot",
                    "DoctorRoot"]),
    ("dataset", "dataset.", ["DatasetConfig", "ShapesConfig", "CocoConfig", "FlickrConfig", "ManifestConfig",
                             "FolderConfig", "WebDatasetConfig"]),
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
    ("eval", "eval.", ["EvalConfig"]),
    ("report", "report.", ["ReportConfig"]),
]  # fmt: skip


def options_page() -> str:
    """The reference of options as Markdown."""
    files = (file for file in sorted(SCHEMA.glob("*.py")) if file.name != "bounds.py")  # which has no options
    source = "\n".join(file.read_text(encoding="utf-8") for file in files)
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
        "Written by `make docs` from `velm_cli/schema/`; do not edit. `velm STAGE --help` prints the values of",
        "a stage, `velm STAGE --cfg job ...` those of a command. A group takes one of its choices",
        "(`fusion=concat`), an option a value (`fusion.dropout=0.2`).",
        "",
        "## Groups and their choices",
        "",
        "| group | choices |",
        "|---|---|",
    ]
    for folder in sorted(path for path in CONF.iterdir() if path.is_dir() and path.name != "hydra"):
        choices = ", ".join(f"`{file.stem}`" for file in sorted(folder.glob("*.yaml")))
        out.append(f"| `{folder.name}` | {choices} |")
    for title, prefix, names in SECTIONS:
        out += ["", f"## {title}"]
        for name in names:
            table = [row for row in rows(classes[name], lines, prefix) if row[0] != f"{prefix}kind"]
            if not table:
                continue
            out += ["", f"**{heading(name)}**", "", "| option | default | range | meaning |", "|---|---|---|---|"]
            out += [f"| `{key}` | {default} | {bounds} | {meaning} |" for key, default, bounds, meaning in table]
    return "\n".join(out) + "\n"


def heading(name: str) -> str:
    for suffix in ("Config", "Root"):
        name = name.removesuffix(suffix)
    return name


def rows(node: ast.ClassDef, lines: list[str], prefix: str) -> list[tuple[str, str, str, str]]:
    """(option, default, range, meaning) of the dataclass's own fields; groups are left to their sections."""
    out = []
    for field in node.body:
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        kind = ast.unparse(field.annotation)
        meaning = lines[field.end_lineno - 1].partition("  # ")[2].replace("|", "\\|")
        if kind.endswith("Config") or (kind == "Any" and not meaning) or field.target.id == "stage":
            continue
        default = ast.unparse(_default(field.value)) if field.value else ""
        bounds = str(bounds_of(getattr(schema, node.name), field.target.id) or "")
        out.append((prefix + field.target.id, f"`{_plain(default)}`", bounds, meaning))
    return out


def _default(value: ast.expr) -> ast.expr:
    """That of `within(default, least=...)`, or the value itself."""
    is_within = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "within"
    return value.args[0] if is_within else value


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


def matrix_page() -> str:
    """Which combinations of vision, text and fusion are legal, as `validate` decides, as Markdown."""
    choices = {group: _choices(group) for group in ("vision", "text", "fusion")}
    refused: dict[str, list[tuple[str, str, str]]] = {}
    legal = 0
    for vision, text, fusion in itertools.product(*(choices[group] for group in choices)):
        config = schema.TrainRoot(
            dataset=schema.ShapesConfig(),
            vision=choices["vision"][vision],
            text=choices["text"][text],
            fusion=choices["fusion"][fusion],
            task=schema.CaptionTaskConfig(),
        )
        problems = list(model_problems(config))
        legal += not problems
        for problem in problems:
            refused.setdefault(problem, []).append((vision, text, fusion))
    out = [
        "# Every vision with every text with every fusion",
        "",
        "Written by `make docs` from `conf/` and `velm_cli/validate.py`; do not edit. A cell is one command,",
        "`velm train vision=V text=T fusion=F`, with captions to be written (`loss.alpha` above 0).",
        "",
        "| group | choices |",
        "|---|---|",
        *(
            f"| `{group}` ({len(names)}) | {' '.join(f'`{name}`' for name in names)} |"
            for group, names in choices.items()
        ),
        "",
        f"{legal:,} of {' x '.join(str(len(names)) for names in choices.values())} = "
        f"{legal + len(set(itertools.chain.from_iterable(refused.values()))):,} cells are legal. Refused are:",
        "",
        "| text | fusion | cells | reason |",
        "|---|---|---|---|",
    ]
    for problem, cells in refused.items():
        texts = " ".join(f"`{text}`" for text in dict.fromkeys(text for _, text, _ in cells))
        fusions = " ".join(f"`{fusion}`" for fusion in dict.fromkeys(fusion for _, _, fusion in cells))
        assert len(cells) % len(choices["vision"]) == 0, "the reason would depend on the vision encoder"
        out.append(f"| {texts} | {fusions} | {len(cells)} | {problem} |")
    out += [
        "",
        "Frozen, LoRA and pooled variants, and forms of one fusion (`fusion.score=additive`, `fusion.mapper=tokens`),",
        "are options of these cells. `tests/unit/test_matrix.py` runs tiny models through them: causality, incremental",
        "decoding, captions of an image kept apart, beam search, save and load, gradients, a falling loss. `make test`",
        "takes a covering design in which every pair occurs, `make test-all` the full product.",
    ]
    return "\n".join(out) + "\n"


def _choices(group: str) -> dict[str, object]:
    """The configs of a group by the name of their YAML file, with its values; none and other packages' are left out."""
    found = {}
    for file in sorted((CONF / group).glob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        kind = re.search(rf"/_kind/{group}/(\w+)@", text)
        assert kind is not None, file
        if kind[1] not in ("none", "external"):
            found[file.stem] = schema.KINDS[group][kind[1]](**dict(re.findall(r"^(name|net): (\S+)$", text, re.M)))
    return found


PAGES = {"config.md": options_page, "matrix.md": matrix_page}


def main() -> int:
    stale = 0
    for name, page in PAGES.items():
        path, text = ROOT / "docs" / name, page()
        if "--check" in sys.argv[1:]:
            stale += not path.exists() or path.read_text(encoding="utf-8") != text
            continue
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
    return int(stale > 0)


if __name__ == "__main__":
    sys.exit(main())
