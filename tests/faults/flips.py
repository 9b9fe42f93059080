"""Flips bytes and cuts off ends in every kind of file that velm reads back, and looks what its own readers make of it.

    python tests/faults/flips.py --flips 1000 --cuts 100

Three outcomes: *detected* (UserError: one line; or, for a checkpoint, the one before it and a note), *harmless* (what the
reader returns is the same, to the last bit) and *SILENT*, which must not be. A flip in an image shard that no reader of
velm sees (the tar's headers and JSON, which are for other programs) must be found by `velm doctor store=`.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

SIZES = ["dataset.num_train=24", "dataset.num_val=8", "dataset.num_test=8", "tokenizer.min_count=1"]
TRAIN = [
    "train", *SIZES, "vision=vit", "vision.width=16", "vision.layers=1", "vision.heads=2", "text.width=16",
    "text.layers=1", "text.heads=2", "fusion.layers=1", "fusion.heads=2", "run.log_every=1", "run.max_steps=6",
    "run.checkpoint_every=3", "run.validate_every=3", "run.batch_size=4", "run.ema_decay=0.9", "vision.freeze=all",
    "data.cache=bf16", "metrics.names=[bleu,cider]", "name=flipped",
]  # fmt: skip
STORE, RUN, EVALUATION = Path("stores/shapes"), Path("runs/train/flipped"), Path("runs/evaluate/flipped")
CACHE, SCORED = Path("cache"), Path("scored")
PHRASES = [("0.5", "a dog", "dogs"), ("0.25", "dogs", "a dog"), ("1.0", "man", "red haired man")]
QUESTIONS = Path("stores/shapes-questions")  # of format 2
STREAM, SHARDS = Path("stores/stream"), Path("stores/shapes/images")  # a stream of the store's own shards


@dataclass
class Kind:
    """Files of one kind, and what reads them: returns all that velm takes from them; `notes` says it noticed."""

    name: str
    files: list[Path]
    read: Callable[[], Any]
    found_by_doctor: bool = False  # what the reader does not see, the store's whole check does
    outcomes: Counter[str] = field(default_factory=Counter)
    cuts: Counter[str] = field(default_factory=Counter)


class Noticed(Exception):
    """Damage was noticed and work goes on without the damaged file."""


def digest(value: Any) -> str:
    import numpy as np
    import torch

    out = hashlib.sha256()

    def put(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            put(part.detach().contiguous().view(-1).view(torch.uint8).numpy())
            out.update(f"{part.dtype}{tuple(part.shape)}".encode())
        elif isinstance(part, np.ndarray):
            out.update(f"{part.dtype}{part.shape}".encode() + part.tobytes())
        elif isinstance(part, dict):
            for key in part:
                out.update(repr(key).encode())
                put(part[key])
        elif isinstance(part, (list, tuple)):
            out.update(f"{len(part)}".encode())
            for one in part:
                put(one)
        else:
            out.update(repr(part).encode())

    put(value)
    return out.hexdigest()


def prepare() -> None:
    """A store, its tokens and features, a trained run and its evaluation, in the working folder."""
    from velm import call

    from velm_cli.metrics import cache
    from velm_cli.metrics.paraphrases import ParaphraseTable

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert call("preprocess", "dataset=shapes", "preprocess.shard_images=16", *SIZES) == 0
        assert call("preprocess", "dataset=shapes", "dataset.questions=true", *SIZES) == 0
        assert call(*TRAIN) == 0
        build_stream_of_shards()
        assert (
            call("evaluate", f"checkpoint={RUN}", "metrics.names=[bleu,cider]", "name=flipped", "report.page=false")
            == 0
        )
        captions = f"predictions={EVALUATION}/predictions.json", f"references={EVALUATION}/per_image.jsonl"
        assert call("score", *captions, "metrics.names=[rouge_l]", f"out={SCORED}", "save_df=df.npz") == 0
    cache.keep(CACHE / "parses.mdb", [random.Random(0).randbytes(5000)])
    Path("phrases.gz").write_bytes(gzip.compress("".join(f"{line}\n" for row in PHRASES for line in row).encode()))
    ParaphraseTable.cached(Path("phrases.gz"), CACHE / "meteor")


def build_stream_of_shards() -> Any:
    from velm_cli.data.stream_building import build_stream
    from velm_cli.schema import PreprocessConfig, WebDatasetConfig

    dataset = WebDatasetConfig(urls=str(SHARDS), image_size=32)
    return build_stream(dataset, PreprocessConfig(workers=1), STREAM, progress=False)


def kinds() -> list[Kind]:
    import numpy as np
    import torch

    from velm_cli import configs
    from velm_cli.data.features import FeatureCache
    from velm_cli.data.making import build_store
    from velm_cli.data.opening import open_store
    from velm_cli.data.readers import read
    from velm_cli.data.store_arrays import ARRAYS, MORE_ARRAYS, MORE_FILES
    from velm_cli.data.tokenizer import Tokenizer
    from velm_cli.engine.checkpoint import Checkpoints
    from velm_cli.engine.optim import Ema, build_optimizer
    from velm_cli.engine.ranks import Ranks
    from velm_cli.files import read_sealed
    from velm_cli.lineage import refuse_other_sources, refuse_other_store
    from velm_cli.metrics import cache
    from velm_cli.metrics.document_frequency import DocumentFrequency
    from velm_cli.metrics.paraphrases import ParaphraseTable
    from velm_cli.metrics.result_files import read_predictions
    from velm_cli.models.weights import load_state, read_state
    from velm_cli.place import Place
    from velm_cli.report.evaluations import read_evaluation
    from velm_cli.report.runs import read_run
    from velm_cli.schema import FeatureCaching, PreprocessConfig
    from velm_cli.stages.evaluations import _read
    from velm_cli.stages.outputs import score_folder
    from velm_cli.stages.preprocess import _tally
    from velm_cli.stages.starting import new_learner

    config = configs.load_run_config(RUN)
    written = read_sealed(SCORED / "inputs.json")
    made, asked = written["inputs"], written["options"]
    store = open_store(STORE)
    corpus = read(config.dataset)
    task = new_learner(config, {"concepts": store.concept_names}, Tokenizer.load(RUN / "tokenizer"))
    optimizer, ema = build_optimizer(task, config.optim), Ema(task, 0.9)
    checkpoints = Checkpoints(RUN / "checkpoints", Ranks(Place(), torch.device("cpu")), keep=2)
    (about_file,) = STORE.glob("features/*/about.json")
    about = read_sealed(about_file)
    shape = tuple(about.pop("shape"))
    kind = FeatureCaching(about.pop("dtype"))
    about.pop("part")
    about.pop("rows_named")

    def whole_store() -> Any:
        s = open_store(STORE)
        records = range(len(s))
        return [
            s.manifest, list(s.ids), s.concept_names, [s.targets(i) for i in records], [s.concepts(i) for i in records],
            [s.split(name) for name in ("train", "val", "test")], _tally(STORE / "rejects.jsonl"),
        ]  # fmt: skip

    def questions() -> Any:
        s = open_store(QUESTIONS)
        examples = range(len(s))
        return [
            s.manifest, list(s.ids), [s.source(i) for i in examples], [s.targets(i) for i in examples],
            [s.about(i) for i in examples], list(s.images_of(np.arange(len(s)))),
            [s.image_name(x) for x in range(s.num_images)], [s.image_bytes(x) for x in range(s.num_images)],
        ]  # fmt: skip

    def source_tokens() -> Any:
        found = open_store(QUESTIONS).tokens(config.tokenizer, "sources")
        return [found.ids, found.offsets, found.tokenizer.digest]

    def images() -> Any:
        s = open_store(STORE)
        return [s.image_bytes(i) for i in range(len(s))]

    def opened_by_preprocess() -> Any:
        return build_store(corpus, config.dataset, PreprocessConfig(shard_images=16), STORE, progress=False).manifest

    def continued() -> Any:
        """As after a kill just before the manifest."""
        manifest = STORE / "manifest.json"
        kept = manifest.read_bytes()
        manifest.unlink()
        try:
            return opened_by_preprocess()
        finally:
            manifest.write_bytes(kept)

    def tokens() -> Any:
        found = open_store(STORE).tokens(config.tokenizer)
        return [found.ids, found.offsets, found.tokenizer.digest]

    def features() -> Any:
        cache = FeatureCache(STORE, len(store), kind, about)
        rows = [torch.empty(shape, dtype=cache.dtype) for _ in range(len(store))]
        for record, row in enumerate(rows):
            cache.read_into(record, row)
        return [cache.shape, rows]

    def checkpoint() -> Any:
        progress, notes = checkpoints.load_newest(task, optimizer, ema)
        for aside in newest.parent.glob("damaged-*"):
            aside.rename(newest)
        if notes:
            assert progress is not None and "is damaged" in notes[0] and "one before" in notes[0], notes
            raise Noticed(notes[0])
        state = {str(number): value for number, value in enumerate(optimizer.state.values())}
        return [progress, task.state_dict(), state, ema.average, torch.get_rng_state()]

    def checkpoint_from_the_start() -> Any:
        checkpoints.find()
        return checkpoint()

    def stream() -> Any:
        s = open_store(STREAM)
        return [s.manifest, s.shards, [s.scanned(shard) for shard in s.shards], _tally(STREAM / "rejects.jsonl")]

    def stream_continued() -> Any:
        """As after a kill just before the manifest: what was scanned is not read from the shards again."""
        manifest = STREAM / "manifest.json"
        kept = manifest.read_bytes()
        manifest.unlink()
        try:
            return build_stream_of_shards().manifest
        finally:
            manifest.write_bytes(kept)

    def sources() -> Any:
        refuse_other_sources(RUN, config)
        refuse_other_store(RUN, store.path, store.hash)

    def scores() -> Any:
        return [read_run(EVALUATION), read_evaluation(EVALUATION)]

    def parses() -> Any:
        try:
            return b"".join(cache.read_pieces(CACHE / "parses.mdb"))
        except ValueError as error:  # SPICE begins a new one: test_metrics_spice.py
            raise Noticed(str(error)) from None

    def inputs() -> Any:
        with score_folder("out", str(SCORED), made, asked):
            return made

    def phrases() -> Any:
        table = ParaphraseTable.cached(Path("phrases.gz"), CACHE / "meteor", make=False)
        if table is None:  # METEOR reads its own, or velm makes it again
            raise Noticed("the table of paraphrases is not used")
        return [table.vocabulary, table.words_W, table.lengths_P, table.weights_E]

    def log() -> Any:
        return [read_run(RUN), read_evaluation(RUN).curves]

    shards = sorted(STORE.glob("images/shard-*.tar"))
    (tokens_folder,) = [path for path in STORE.glob("tokens/*") if path.is_dir()]
    (sources_folder,) = QUESTIONS.glob("tokens/*-sources")
    (parts_folder,) = STORE.glob("features/*")
    newest = sorted((RUN / "checkpoints").glob("step-*"))[-1]
    return [
        Kind("image shards (.tar)", shards, images, found_by_doctor=True),
        Kind("shard indexes (.idx.npy)", [path.with_suffix(".idx.npy") for path in shards], images),
        Kind("shard summaries (.json), build continued", [path.with_suffix(".json") for path in shards], continued),
        Kind("caption, split, location arrays", [STORE / f"{name}.npy" for name in ARRAYS[:5]], whole_store),
        Kind("concept arrays, concepts.json", [STORE / f"{n}.npy" for n in ARRAYS[5:]] + [STORE / "concepts.json"], whole_store),
        Kind("ids.json, rejects.jsonl", [STORE / "ids.json"], whole_store),
        Kind("manifest.json", [STORE / "manifest.json"], whole_store),
        Kind("questions, image table, about", [QUESTIONS / name for name in [f"{n}.npy" for n in MORE_ARRAYS] + list(MORE_FILES)], questions),
        Kind("token arrays of questions", [sources_folder / name for name in ("ids.npy", "offsets.npy", "crc32.json")], source_tokens),
        Kind("plan.json", [STORE / "plan.json"], opened_by_preprocess),
        Kind("manifest.json of a stream", [STREAM / "manifest.json"], stream),
        Kind("plan.json of a stream", [STREAM / "plan.json"], lambda: build_stream_of_shards().manifest),
        Kind("scans, read for training", sorted(STREAM.glob("scan/*.npy")), stream),
        Kind("scans, build continued", sorted(STREAM.glob("scan/*")), stream_continued),
        Kind("token arrays", [tokens_folder / "ids.npy", tokens_folder / "offsets.npy", tokens_folder / "crc32.json"], tokens),
        Kind("tokenizer of the tokens", [*tokens_folder.glob("*tokenizer.json"), *STORE.glob("tokens/*.json")], tokens),
        Kind("feature parts, checksums, about", sorted(parts_folder.glob("*.*")), features),
        Kind("checkpoint tensors", sorted(newest.glob("*.safetensors")), checkpoint),
        Kind("checkpoint state.json", [newest / "state.json"], checkpoint),
        Kind("weights (best, model)", [RUN / "best.safetensors"], lambda: load_state(RUN / "best.safetensors")),
        Kind("frozen weights", [RUN / "frozen.safetensors"], lambda: read_state(RUN / "best.safetensors")),
        Kind("frozen weights, resumed from", [RUN / "frozen.safetensors"], checkpoint_from_the_start),
        Kind("sources.json of the run", [RUN / "sources.json"], sources),
        Kind("config.yaml of the run", [RUN / "config.yaml"], lambda: repr(configs.load_run_config(RUN))),
        Kind("tokenizer of the run", sorted((RUN / "tokenizer").iterdir()), lambda: _spoken(Tokenizer.load(RUN / "tokenizer"))),
        Kind("metrics.jsonl", [RUN / "metrics.jsonl"], log),
        Kind("predictions.json", [EVALUATION / "predictions.json"], lambda: read_predictions(EVALUATION / "predictions.json")),
        Kind("scores.json, per_image.jsonl", [EVALUATION / "scores.json", EVALUATION / "per_image.jsonl"], scores),
        Kind("config.yaml of the evaluation", [EVALUATION / "config.yaml"], scores),
        Kind("weights.json of the evaluation", [EVALUATION / "weights.json"],
             lambda: _read(EVALUATION, lambda: read_sealed(EVALUATION / "weights.json"))["sha256"]),
        Kind("SPICE's parses", [CACHE / "parses.mdb"], parses),
        Kind("METEOR's paraphrases", [*(CACHE / "meteor").iterdir()], phrases),
        Kind("document frequencies", [Path("df.npz")], lambda: DocumentFrequency.load(Path("df.npz")).digest),
        Kind("inputs.json of scores", [SCORED / "inputs.json"], inputs),
    ]  # fmt: skip


def _spoken(tokenizer: Any) -> Any:
    return [tokenizer.digest, [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)], tokenizer.bos_id]


def outcome(kind: Kind, expected: str) -> str:
    """What reading the files as they now are comes to: detected, harmless, SILENT or CRASH."""
    from velm_cli.errors import UserError

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            same = digest(kind.read()) == expected
    except (UserError, Noticed) as error:
        return "detected" if len(str(error).strip().splitlines()) == 1 else "NOT ONE LINE"
    except Exception as error:
        traceback.print_exc()
        return f"CRASH {type(error).__name__}"
    if same and kind.found_by_doctor:
        from velm_cli.data.opening import open_store

        return "harmless" if any(open_store(STORE).damage()) else "SILENT"
    return "harmless" if same else "SILENT"


def damage(kind: Kind, rng: random.Random, expected: str, *, cut: bool) -> tuple[str, str]:
    """(outcome, what was done) of one flip or cut, which is undone afterwards."""
    file = rng.choice([path for path in kind.files if path.stat().st_size])
    whole = file.read_bytes()
    place = rng.randrange(len(whole))
    changed = bytearray(whole)
    if cut:
        del changed[place:]
    else:
        changed[place] ^= rng.randrange(1, 256)
    try:
        file.write_bytes(changed)
        return outcome(kind, expected), f"{file} {'cut at' if cut else 'byte'} {place} of {len(whole)}"
    finally:
        file.write_bytes(whole)


def campaign(flips: int, cuts: int, seed: int) -> tuple[list[Kind], list[str]]:
    """All kinds with their outcomes, and a line for each that must not be."""
    rng = random.Random(seed)
    all_kinds = kinds()
    bad = []
    for kind in all_kinds:
        expected = digest(kind.read())
        assert digest(kind.read()) == expected, f"{kind.name}: reading twice gives two results"
        for cut, count in ((False, flips), (True, cuts)):
            for _ in range(-(-count // len(all_kinds))):
                result, where = damage(kind, rng, expected, cut=cut)
                (kind.cuts if cut else kind.outcomes)[result] += 1
                if result not in ("detected", "harmless"):
                    bad.append(f"{result}: {kind.name}: {where}")
    return all_kinds, bad


def table(all_kinds: list[Kind]) -> str:
    head = f"{'file':<42}{'flips':>7}{'detected':>10}{'harmless':>10}{'silent':>8}{'cuts':>7}{'detected':>10}{'harmless':>10}{'silent':>8}"
    lines = [head]
    total: list[int] = [0] * 8
    for kind in all_kinds:
        cells = []
        for counts in (kind.outcomes, kind.cuts):
            fine = [counts["detected"], counts["harmless"]]
            cells += [counts.total(), *fine, counts.total() - sum(fine)]
        total = [a + b for a, b in zip(total, cells, strict=True)]
        lines.append(_row(kind.name, cells))
    return "\n".join([*lines, _row("all", total)])


def _row(name: str, cells: list[int]) -> str:
    return f"{name:<42}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, (7, 10, 10, 8) * 2, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="also write the table there")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="velm-flips-") as folder:
        os.chdir(folder)
        prepare()
        found, bad = campaign(options.flips, options.cuts, options.seed)
        os.chdir("/")
    print(table(found))
    print(*bad, sep="\n")
    print(f"{time.monotonic() - began:.0f} s")
    if options.json:
        rows = [{"file": kind.name, "flips": kind.outcomes, "cuts": kind.cuts} for kind in found]
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
