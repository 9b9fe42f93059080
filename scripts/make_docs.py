"""Write what the code says of itself: docs/config.md (every option) and docs/matrix.md (every legal combination).

python scripts/make_docs.py            writes them
python scripts/make_docs.py --check    exits with 1 when one is stale
"""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path

from velm_cli import schema
from velm_cli.options import choices, groups_of, own
from velm_cli.stage_help import takes
from velm_cli.validate import model_problems

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"

STAGES = ("preprocess", "train", "finetune", "evaluate", "score", "caption", "answer", "search", "serve", "doctor")


def options_page() -> str:
    """The reference of options as Markdown."""
    out = [
        "# Every option",
        "",
        "Written by `make docs` from `velm_cli/schema/`; do not edit. `velm STAGE --help` prints the same of a stage,",
        "`velm STAGE --cfg job ...` the values of a command. A group takes one of its choices (`fusion=concat`), an",
        "option a value (`fusion.dropout=0.2`). Text is taken as it is typed, quoted for the shell only:",
        "`dataset.root='photos (1)'`. `~` is the home folder in every path, and `key=null` means none. `${key}` is the",
        "value of another option.",
        "",
        "## Groups and their choices",
        "",
        "| group | choices |",
        "|---|---|",
    ]
    for folder in sorted(path for path in CONF.iterdir() if path.is_dir()):
        out.append(f"| `{folder.name}` | {', '.join(f'`{name}`' for name in choices(folder.name))} |")
    out += ["", "## Stages"]
    groups: dict[str, list[type]] = {}
    for stage in STAGES:
        for node in reversed(schema.ROOTS[stage].__mro__[:-1]):
            if node is schema.ROOTS[stage] or node not in schema.ROOTS.values():
                out += table(node, "")
        groups |= groups_of(stage)
    for group, nodes in groups.items():
        out += ["", f"## {group}"]
        shown = dict.fromkeys(cls for node in nodes for cls in reversed(node.__mro__[:-1]))
        for node in shown:
            out += table(node, f"{group}.")
    return "\n".join(out) + "\n"


def table(node: type, prefix: str) -> list[str]:
    """The dataclass's own options as Markdown; nothing where it has none."""
    rows = [
        f"| `{option.key}` | `{option.default}` | {in_a_cell(takes(option))} | {in_a_cell(option.meaning)} |"
        for option in own(node, prefix)
    ]
    heading = node.__name__.removesuffix("Config").removesuffix("Root")
    return (
        ["", f"**{heading}**", "", "| option | default | values | meaning |", "|---|---|---|---|", *rows]
        if rows
        else []
    )


def in_a_cell(text: str) -> str:
    return text.replace("|", "\\|")


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
