"""The model card of an exported folder: what it does, of what it was made, how well, and what it is not for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import OmegaConf

from velm_cli import configs
from velm_cli.errors import UserError
from velm_cli.exporting.anonymous import command_without_places, model_name
from velm_cli.files import read_sealed
from velm_cli.metrics.scores import NOT_REQUESTED, read_summary, scores_of_summary, table
from velm_cli.schema import TrainRoot

USES = {
    "caption": 'print(model.caption("photo.jpg"))',
    "answer": 'print(model.answer("photo.jpg", "what is in the picture?"))',
    "embed": 'print(model.embed_images("photo.jpg") @ model.embed_texts("a dog on a beach"))',
    "classify": 'print(model.classify("photo.jpg"))',
    "chat": 'print(model.chat("<image> What is in the picture?", "photo.jpg"))',
}
DOES = {
    "caption": "writes captions",
    "answer": "answers questions about images",
    "embed": "embeds images and texts",
    "classify": "labels images",
    "chat": "replies in conversations about images",
}
LICENSE = """# Licence of this folder

velm, the program that wrote this folder and runs the model, is under the MIT licence. That licence does not cover the
weights. They were trained by whoever ran velm, on data with terms of its own{parts}
Before you pass the weights on, look up the terms of each.
"""


class Evaluated(NamedTuple):
    """One evaluation, as the card shows it."""

    title: str
    text: str  # the table


def evaluations(home: Path, sha256: str, given: Any) -> list[Evaluated]:
    """Those of exactly these weights: `given` (folders), else those found next to the run, else its last validation.

    UserError where a folder that was given has no scores, or those of other weights.
    """
    if given is not None:
        folders = [Path(each) for each in (given if isinstance(given, (list, tuple)) else [given])]
        found = []
        for folder in folders:
            try:
                found.append(_evaluated(folder, sha256))
            except (OSError, ValueError) as error:
                raise UserError(f"scores={folder}: no scores that can be read ({error})") from error
        return found
    found = []
    for folder in sorted(home.absolute().parent.parent.glob("evaluate/*")):
        try:
            if read_sealed(folder / "weights.json").get("sha256") == sha256 and (folder / "DONE").is_file():
                found.append(_evaluated(folder, sha256))
        except (OSError, ValueError, UserError):
            continue  # nobody asked for it
    if not found and (home / "scores.json").is_file():
        try:
            title = "validation part, at the end of training"
            found = [Evaluated(title, _table(read_summary(home)))]
        except (OSError, ValueError):
            pass
    return found


def _evaluated(folder: Path, sha256: str) -> Evaluated:
    summary = read_summary(folder)
    if (folder / "weights.json").exists() and read_sealed(folder / "weights.json").get("sha256") != sha256:
        raise UserError(f"scores={folder} is an evaluation of other weights than those that are exported")
    config: Any = {}
    if (folder / "config.yaml").is_file():
        config = OmegaConf.to_container(configs.read_config(folder / "config.yaml"))
    if config.get("stage", "evaluate") != "evaluate":
        raise UserError(f"scores={folder} is a run of {config['stage']}: give a folder of velm eval or velm score")
    data = (config.get("dataset") or {}).get("kind", folder.name)
    decode = config.get("decode") or {}
    how = "" if summary["task"] == "retrieve" else f", beams {decode.get('beams', 1)}"
    first = f", first {config['limit']}" if config.get("limit") else ""
    blind = (config.get("eval") or {}).get("blind", "none")
    unseen = f", blind: {blind}" if blind != "none" else ""
    title = f"{data}, {config.get('split', 'given')} part{first}, {summary.get('images', '?')} examples{how}{unseen}"
    return Evaluated(title, _table(summary))


def _table(summary: Mapping[str, Any]) -> str:
    """Without the scores that were not computed, whose reasons are of another machine."""
    scores = scores_of_summary(summary)
    scores.reasons.update({key: NOT_REQUESTED for key, value in scores.corpus.items() if value is None})
    return table(scores)


def parts_of(config: TrainRoot) -> list[str]:
    """Which parts of the model come from elsewhere, a line each; `config` is the run's own."""
    found = []
    for group in ("vision", "text"):
        node: Any = getattr(config, group)
        weights = str(getattr(node, "weights", "none"))
        name = model_name(node.name) if getattr(node, "name", None) else getattr(node, "net", None)
        if weights == "none":
            continue  # only its architecture, if anything
        if weights != "pretrained":
            name = f"{name}, weights {Path(weights).name}" if name else f"weights {Path(weights).name}"
        how = "kept as it was" if node.freeze == "all" else "trained further"
        found.append(f"{group}: {name} ({how})")
    if getattr(config.text, "vectors", None):
        found.append(f"text: word vectors {Path(str(config.text.vectors)).name}")  # type: ignore[attr-defined]
    for key, source in (
        ("vision", config.init.vision),
        ("text", config.init.text),
        ("all", getattr(config, "checkpoint", None)),
    ):
        if source:
            found.append(f"{key}: began with the weights of the run {Path(source).name}")
    return found


def licence(parts: Iterable[str]) -> str:
    """LICENSE.md."""
    listed = "".join(f"\n- {part}" for part in parts)
    return LICENSE.format(parts=f", and from weights of others:\n{listed}\n" if listed else ".\n")


def card(
    config: TrainRoot,
    home: Path,
    *,
    can: Iterable[str],
    about: Mapping[str, Any],
    scored: Iterable[Evaluated],
    parts: Iterable[str],
    load: str,
    limits: Iterable[str] = (),
) -> str:
    """README.md. `load`: lines of Python that use the folder; `about`: what export.json notes."""
    can = list(can)
    vision, text, fusion, data = config.vision, config.text, config.fusion, config.dataset
    said = yaml.safe_dump({"library_name": about["library"], "tags": ["velm", config.task.kind]}, sort_keys=False)
    scored, parts = list(scored), list(parts)
    lines = ["---", said.strip(), "---", "", f"# A velm model that {' and '.join(DOES[each] for each in can)}", ""]
    lines += ["```python", load, "```", ""]
    lines += ["## What it is", ""]
    lines += [
        f"- vision `{vision.kind}` ({vision.image_size} pixels{_tiles(vision)}), text `{text.kind}`, "
        f"fusion `{fusion.kind}`; {about['parameters']:,} parameters, stored as {about['dtype']}",
        f"- task `{config.task.kind}`; loss: alpha {config.loss.alpha} (text), beta {config.loss.beta} (image), "
        f"gamma {config.loss.gamma} (joint)",
        f"- trained on `{data.kind}`{_release(data)}, {config.run.max_steps:,} steps of {config.run.batch_size}, "
        f"seed {config.seed}",
        f"- SHA-256 of the trained weights: `{about['weights']}`",
        *(f"- {part}" for part in parts),
        "",
        "## How well",
        "",
    ]
    for one in scored:
        lines += [f"{one.title}:", "", "```", one.text, "```", ""]
    lines += (
        [] if scored else ["It was not evaluated: `velm eval checkpoint=THIS_FOLDER split=test dataset.store=...`", ""]
    )
    if about["dtype"] != "fp32" and scored:
        lines += [f"These scores are of the float32 weights, before they were made {about['dtype']}.", ""]
    lines += ["## How it was made", ""]
    command = _last_command(home)
    lines += (["```", command, "```", ""] if command else []) + [
        "Versions: " + ", ".join(f"{name} {version}" for name, version in about["versions"].items()) + ".",
        *_trained_with(home),
        "",
        "## Limits",
        "",
        "- It knows what its data showed it: other kinds of images and other languages are guessed at.",
        "- It states things that are not in the image, and repeats the stereotypes of its data: judge nobody by "
        "what it says, and decide nothing safety-critical.",
        *(f"- {limit}" for limit in limits),
        "",
        "velm is under the MIT licence; for the weights see LICENSE.md.",
    ]
    return "\n".join(lines) + "\n"


def _tiles(vision: Any) -> str:
    return f", the whole and {vision.tiles} x {vision.tiles} tiles" if vision.tiles > 1 else ""


def _release(data: Any) -> str:
    said = [f"{key} {getattr(data, key)}" for key in ("release", "num_train") if getattr(data, key, None)]
    split = getattr(data, "split", None)
    said += [f"split {split.value}"] if split is not None else []
    return f" ({', '.join(said)})" if said else ""


def _last_command(home: Path) -> str:
    try:
        lines = (home / "command.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return command_without_places(lines[-1]) if lines else ""


def _trained_with(home: Path) -> list[str]:
    try:
        packages = json.loads((home / "environment.json").read_text(encoding="utf-8"))["packages"]
        return ["Trained with " + ", ".join(f"{name} {version}" for name, version in packages.items()) + "."]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
