"""`velm preprocess`: read a data set, check and shrink its images, pack them, tokenise its captions."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from velm_cli.data.coverage import coverage_lines
from velm_cli.data.image_table import ImageTable
from velm_cli.data.making import build_part, build_store
from velm_cli.data.parts import parse_part
from velm_cli.data.readers import read
from velm_cli.data.sources import list_shards
from velm_cli.data.store import Store, read_manifest, store_path
from velm_cli.data.store_arrays import Content
from velm_cli.data.stream_building import build_stream
from velm_cli.data.stream_store import StreamStore
from velm_cli.data.tokens import Tokens
from velm_cli.schema import (
    ChatConfig,
    DatasetConfig,
    DocumentsConfig,
    Drawn,
    Multi30kConfig,
    PreprocessRoot,
    ShapesConfig,
    WebDatasetConfig,
)

PREVIEWED, PREVIEW_SIDE = 16, 224  # images; pixels
ONLY_EVAL = "there are no training examples, so this store is for velm eval only"


def run(config: PreprocessRoot) -> float:
    """Build (or continue, or find complete) the store and its tokens; the number of examples in it."""
    start = time.perf_counter()
    path = store_path(config.dataset)
    was_complete = not config.fresh and read_manifest(path) is not None
    if isinstance(config.dataset, WebDatasetConfig):
        if config.dry_run:
            _say("dry run", f"{len(list_shards(config.dataset)):,} shards; nothing read; the store would be {path}")
            return 0.0
        store: Store = build_stream(config.dataset, config.preprocess, path, fresh=config.fresh)
    else:
        corpus = read(config.dataset)
        for note in corpus.notes:
            _say("note", note)
        if config.dry_run:
            table = ImageTable(corpus.examples) if config.dataset.images else None
            _say_counts(Content(corpus.examples, corpus.splits, table).counts(), config.dataset)
            _say_refused(Counter(reason.split(":")[0] for _, reason in corpus.refused), None)
            if not any(split == "train" for split in corpus.examples.splits()):
                _say("note", ONLY_EVAL)
            _say("dry run", f"nothing written; the store would be {path}")
            return float(len(corpus.examples))
        if (part := parse_part(config.preprocess.part)) is not None:
            made, total = build_part(corpus, config.dataset, config.preprocess, path, part, fresh=config.fresh)
            _say(f"part {part}", f"{made} of its {total} shards made now, all are there" if total else "nothing to do")
            _say("store", f"{path}: when all parts are done, run the same with preprocess.part=merge")
            _say("time", f"{time.perf_counter() - start:.1f} s")
            return float(made)
        say = partial(_say, "note")
        store = build_store(corpus, config.dataset, config.preprocess, path, fresh=config.fresh, say=say)
    _say_counts(store.manifest["counts"]["splits"], config.dataset)
    rejects = path / "rejects.jsonl"
    _say_refused(_tally(rejects), rejects)
    if store.counts["train"]:
        tokens = store.tokens(config.tokenizer)
        longest = int((tokens.offsets[1:] - tokens.offsets[:-1]).max(initial=0))
        _say("vocabulary", f"{tokens.tokenizer.vocab_size:,} ({config.tokenizer.kind.name})")
        noun = _nouns(config.dataset)[2] if len(store.all_sources) else "caption"
        if not _talks(config.dataset):  # of which a run takes more: task.max_tokens, by its template
            _say("tokens", f"{len(tokens.ids):,}, at most {longest} per {noun}")
        for line in _coverage(store, config):
            print(line)
        _say("concepts", f"{len(store.concept_names):,}")
        if config.preview:
            _say("preview", str(_preview(store, tokens, config)))
    else:
        _say("note", ONLY_EVAL)
    if isinstance(store, StreamStore):
        _say("shards", f"{len(store.shards):,}, which stay where they are")
    _say("store", f"{path} is complete" if was_complete else str(path))
    _say("hash", store.hash)
    _say("time", f"{time.perf_counter() - start:.1f} s")
    return float(sum(store.counts.values()))


def _coverage(store: Store, asked: PreprocessRoot) -> Iterator[str]:
    """What tokenisation loses, a column of texts at a time."""
    if _talks(asked.dataset):  # a run says itself how many it cuts: its template and limit are its own
        return
    config, has_sources = asked.tokenizer, len(store.all_sources) > 0
    examples, targets, _ = _nouns(asked.dataset)
    noun = targets if has_sources else "captions"
    yield from coverage_lines(store.tokens(config), store.all_targets, config, own=True, noun=noun)
    if has_sources:
        tokens = store.tokens(config, "sources")
        yield from coverage_lines(tokens, store.all_sources, config, own=True, noun=examples, column="sources")


def _talks(dataset: DatasetConfig) -> bool:
    """Whether its examples are conversations."""
    return isinstance(dataset, ChatConfig) or (isinstance(dataset, ShapesConfig) and dataset.drawn is Drawn.chat)


def _nouns(dataset: DatasetConfig) -> tuple[str, str, str]:
    """What examples with a source, their targets and one of these are called."""
    drawn = dataset.drawn if isinstance(dataset, ShapesConfig) else None
    if _talks(dataset):
        return "conversations", "replies", "reply"
    if isinstance(dataset, Multi30kConfig) or drawn is Drawn.translations:
        return "sentences", "translations", "translation"
    if isinstance(dataset, DocumentsConfig) or drawn is Drawn.summaries or dataset.summarise:
        return "documents", "summaries", "summary"
    return "questions", "answers", "answer"


def _preview(store: Store, tokens: Tokens, config: PreprocessRoot) -> Path:
    """A picture of training samples as a run with the same `data` options sees them."""
    from PIL import Image

    from velm_cli.data.batch import Columns
    from velm_cli.data.pixels import Pixels
    from velm_cli.data.streaming import training_loader
    from velm_cli.report.samples import contact_sheet

    loader = training_loader(
        store,
        Columns(tokens, config.data.captions_per_image),
        config.data,
        max_tokens=config.tokenizer.max_tokens,
        batch_size=PREVIEWED,
        pixels=Pixels(min(PREVIEW_SIDE, config.dataset.image_size)),
        seed=0,
    )
    with closing(loader.batches()) as batches:
        batch = next(batches)
    assert batch.image_XCHW is not None
    pixels_XHWC = (batch.image_XCHW * 255).round().byte().permute(0, 2, 3, 1).numpy()
    texts = [tokens.tokenizer.decode(row) for row in batch.tokens_BKT[:, 0].tolist()]
    if batch.source_BL is not None:
        questions = [tokens.tokenizer.decode(row) for row in batch.source_BL.tolist()]
        texts = [f"{question}: {answer}" for question, answer in zip(questions, texts, strict=True)]
    images = range(len(texts)) if batch.image_of_BI is None else batch.image_of_BI[:, 0].tolist()
    path = store.path / "preview.png"
    contact_sheet([(Image.fromarray(pixels_XHWC[x]), t) for x, t in zip(images, texts, strict=True) if x >= 0], path)
    return path


def _say(what: str, text: str) -> None:
    print(f"{what:<10}  {text}")


def _say_counts(splits: dict[str, dict[str, int]], dataset: DatasetConfig) -> None:
    """A line a split, in the words of its task."""
    asks = any(counts.get("sources") for counts in splits.values())
    nouns = {"records": "images" if dataset.images else "examples", "captions": "captions"}
    if any("images" in counts for counts in splits.values()):  # two tables
        examples, targets = _nouns(dataset)[:2] if asks else ("examples", "captions")
        nouns = {"images": "images", "records": examples, "captions": targets}
    width = max(len(f"{count:,}") for counts in splits.values() for count in counts.values())
    for split, counts in splits.items():
        _say(split, "  ".join(f"{counts[key]:>{width},} {noun}" for key, noun in nouns.items()))


def _say_refused(tally: Counter[str], rejects: Path | None) -> None:
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in tally.most_common())
    where = f" (see {rejects})" if tally and rejects else ""
    _say("refused", f"{tally.total():,}{': ' if tally else ''}{reasons}{where}")


def _tally(rejects: Path) -> Counter[str]:
    lines = rejects.read_text(encoding="utf-8").splitlines()
    return Counter(json.loads(line)["reason"].split(":")[0] for line in lines)
