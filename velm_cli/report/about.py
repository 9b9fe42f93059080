"""What a page says of an evaluation beside its scores: what was evaluated, and what its figures mean."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from velm_cli import configs
from velm_cli.errors import UserError
from velm_cli.schema import LATER_DECODING, DecodeConfig

# Label in the page -> its meaning, shown where one points at it.
MEANINGS = {
    "BLEU-1": "share of the caption's words that a reference has (Papineni et al. 2002)",
    "BLEU-2": "the same of words and pairs of words",
    "BLEU-3": "the same of up to three words in a row",
    "BLEU-4": "the same of up to four words in a row",
    "METEOR": "words aligned with those of a reference, stems, synonyms and paraphrases too (Denkowski and Lavie 2014)",
    "ROUGE-L": "longest common sequence of words with a reference (Lin 2004)",
    "CIDEr": "n-grams shared with the references, rare ones count more; may exceed 100 (Vedantam et al. 2015)",
    "SPICE": "objects, attributes and relations shared with the references (Anderson et al. 2016)",
    "CLIPScore": "how well caption and image fit for a CLIP-like model (Hessel et al. 2021)",
    "RefCLIPScore": "the same, and how near the caption is to a reference",
    "words": "mean words per caption",
    "words p5": "5 % of the captions have at most this many words",
    "words p95": "95 % of the captions have at most this many words",
    "reference words": "mean words per reference",
    "vocabulary": "different words in all captions",
    "distinct 1": "different words per word of all captions",
    "distinct 2": "different pairs of words per pair",
    "different": "different captions per caption: 1 if no two are equal",
    "novel": "share of captions that are none of the training captions",
    "bad endings": "share of captions that break off after an article, a preposition or an auxiliary",
    "empty": "share of captions without a word",
    "sets": "images with several captions",
    "div 1": "different words per word of an image's captions",
    "div 2": "different pairs of words per word of an image's captions",
    "mbleu 4": "BLEU-4 of an image's captions against each other: lower is more diverse",
    "tokenizer": "how captions are cut into words",
    "cider df": "where CIDEr's document frequencies come from",
    "cider_df": "where CIDEr's document frequencies come from",
} | {
    f"{kind} {score}": f"facts about {what} in the drawn scenes: {meaning}"
    for kind, what in (
        ("object", "shapes"), ("colour", "colours"), ("count", "numbers"), ("size", "sizes"), ("relation", "places"),
    )
    for score, meaning in (
        ("precision", "share of those in the captions that are true"),
        ("recall", "share of the true ones that the captions name"),
    )
}  # fmt: skip


def about_folder(folder: Path) -> dict[str, str]:
    """Model, data and decoding of a run folder of train, finetune or evaluate; empty where it has no config."""
    try:
        config = _config(folder)
        home = config
        found = {}
        if config.get("stage") == "evaluate":
            found["checkpoint"] = str(config.get("checkpoint"))
            try:
                home = _config(configs.run_folder_of(config["checkpoint"]))
            except UserError:  # it is gone, and the scores are here
                home = {}
        task = _of(config, "task") or _of(home, "task")
        told = str(task.get("kind", "caption"))
        kinds = {group: _kind(home, group) for group in ("vision", "text", "fusion")}
        if any(kinds.values()):
            found["model"] = " ".join(f"{group}={kind}" for group, kind in kinds.items() if kind)
        named = {key: _of(config, "dataset").get(key) for key in ("root", "file", "store")}
        places = [f"{key} {Path(value).name}" for key, value in named.items() if isinstance(value, str)]
        found["data"] = ", ".join([_kind(config, "dataset"), *places])
        found["split"] = str(config.get("split", "val"))
        if config.get("limit"):
            found["split"] += f", the first {config['limit']} {'images' if told == 'caption' else 'examples'}"
        chooses = task.get("answer") in ("classify", "rank") or told == "classify"  # from a list; nothing is decoded
        found["task"] = "" if told == "caption" else f"{told}, {answer}" if (answer := task.get("answer")) else told
        found["decoding"] = "" if chooses else decoding_words(_of(config, "decode"))
        blind = _of(config, "eval").get("blind", "none")
        found["control"] = "" if blind == "none" else f"eval.blind={blind}"
    except (UserError, KeyError, TypeError, ValueError):
        return {}
    return {key: value for key, value in found.items() if value}


def _config(folder: Path) -> dict[str, Any]:
    config = OmegaConf.to_container(configs.read_config(folder / "config.yaml"))
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def _of(config: Mapping[str, Any], group: str) -> Mapping[str, Any]:
    node = config.get(group)
    return node if isinstance(node, dict) else {}


def _kind(config: Mapping[str, Any], group: str) -> str:
    node = _of(config, group)
    name = node.get("name")
    named = f" ({Path(name).name})" if isinstance(name, str) and name else ""
    return f"{node.get('kind', '')}{named}"


def decoding_words(decode: Mapping[str, Any]) -> str:
    """How texts are found by the options of `decode`; those that an older velm did not know are as by default."""
    if not decode:
        return ""
    usual = DecodeConfig()
    changed = [
        f"{name.replace('_', ' ')} {decode[name]}"
        for name in LATER_DECODING
        if decode.get(name, getattr(usual, name)) != getattr(usual, name)
    ]
    longest = ", ".join([f"at most {decode.get('max_length')} tokens", *changed])
    if decode.get("method") == "nucleus":
        return f"nucleus sampling, top_p {decode.get('top_p')}, temperature {decode.get('temperature')}, {longest}"
    if decode.get("beams") == 1:
        return f"greedy, {longest}"
    return f"{decode.get('beams')} beams, length penalty {decode.get('length_penalty')}, {longest}"
