"""`velm preprocess`: read a data set, check and shrink its images, pack them, tokenise its captions."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

from velm_cli.data.building import count_splits
from velm_cli.data.readers import read
from velm_cli.data.store import build_store, read_manifest, store_path
from velm_cli.schema import PreprocessRoot


def run(config: PreprocessRoot) -> float:
    """Build (or continue, or find complete) the store and its tokens; the number of examples in it."""
    start = time.perf_counter()
    corpus = read(config.dataset)
    for note in corpus.notes:
        _say("note", note)
    if config.dry_run:
        _say_counts(count_splits(corpus.records, corpus.splits), config.dataset.images)
        _say_refused(Counter(reason.split(":")[0] for _, reason in corpus.refused), None)
        _say("dry run", f"nothing written; the store would be {store_path(config.dataset)}")
        return float(len(corpus.records))

    path = store_path(config.dataset)
    was_complete = not config.fresh and read_manifest(path) is not None
    store = build_store(corpus, config.dataset, config.preprocess, path, fresh=config.fresh)
    tokens = store.tokens(config.tokenizer)
    _say_counts(store.manifest["counts"]["splits"], config.dataset.images)
    rejects = path / "rejects.jsonl"
    _say_refused(_tally(rejects), rejects)
    longest = int((tokens.offsets[1:] - tokens.offsets[:-1]).max(initial=0))
    _say("vocabulary", f"{tokens.tokenizer.vocab_size:,} ({config.tokenizer.kind.name})")
    _say("tokens", f"{len(tokens.ids):,}, at most {longest} a caption")
    _say("concepts", f"{len(store.concept_names):,}")
    _say("store", f"{path} is complete" if was_complete else str(path))
    _say("hash", store.hash)
    _say("time", f"{time.perf_counter() - start:.1f} s")
    return float(len(store))


def _say(what: str, text: str) -> None:
    print(f"{what:<10}  {text}")


def _say_counts(splits: dict[str, dict[str, int]], images: bool) -> None:
    noun = "images" if images else "examples"
    width = max(len(f"{count:,}") for counts in splits.values() for count in counts.values())
    for split, counts in splits.items():
        _say(split, f"{counts['records']:>{width},} {noun}  {counts['captions']:>{width},} captions")


def _say_refused(tally: Counter[str], rejects: Path | None) -> None:
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in tally.most_common())
    where = f" (see {rejects})" if tally and rejects else ""
    _say("refused", f"{tally.total():,}{': ' if tally else ''}{reasons}{where}")


def _tally(rejects: Path) -> Counter[str]:
    lines = rejects.read_text(encoding="utf-8").splitlines()
    return Counter(json.loads(line)["reason"].split(":")[0] for line in lines)
