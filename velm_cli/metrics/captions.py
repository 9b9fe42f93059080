"""The field's caption scores: BLEU, METEOR, ROUGE-L, CIDEr and SPICE, equal to pycocoevalcap's.

Beside each score stand its 95 % interval and a signature of all that it depends on. One caption, one missing
program or one hung process cannot spoil the rest: a score that could not be computed is None with a reason,
never a zero.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from velm_cli import __version__
from velm_cli.data.processes import available_cores
from velm_cli.errors import UserError, did_you_mean
from velm_cli.metrics import authority, language, meteor, spice
from velm_cli.metrics.clip_score import ClipJudge, ReadImage
from velm_cli.metrics.document_frequency import DocumentFrequency
from velm_cli.metrics.frequencies import COCO_DIGEST, document_frequencies
from velm_cli.metrics.java import JavaError, Launcher, cache_home
from velm_cli.metrics.matching import listing
from velm_cli.metrics.overlap import Corpus, bleu_of_order, bleu_scores, bleu_summands, cider, rouge_l
from velm_cli.metrics.paraphrases import ParaphraseTable
from velm_cli.metrics.scores import NOT_REQUESTED, ImageId, Scores
from velm_cli.metrics.significance import Summands, bootstrap_all, mean_of
from velm_cli.metrics.tokenize import PtbTokenizer, flatten, unflatten
from velm_cli.metrics.workspace import work_folder
from velm_cli.progress import progress_bar
from velm_cli.schema import MetricsConfig
from velm_cli.schema.metric_names import COLUMNS, NAMES

__all__ = ["fast_cider", "score_captions"]

TOKENIZE_TIMEOUT = 300.0  # seconds; 25,000 captions take the jar two
IMAGES_PER_METEOR, MOST_METEORS = 500, 4  # a process takes half a second to start, and 0.3 GB
IMAGES_PER_TABLE = 1000  # reading METEOR's table takes 20 s once a machine, and saves ten in every run
MIN_DF_IMAGES = 100  # below this CIDEr's document frequencies say little


@dataclass(frozen=True, slots=True)
class Result:
    """One column of the scores."""

    name: str
    corpus: float
    images: Sequence[float | None]
    summands: Summands


def average(name: str, images: Sequence[float | None]) -> Result:
    """A score of the corpus that is the mean of its images' scores."""
    summands = mean_of(images)
    return Result(name, summands.total(), images, summands)


def score_captions(
    references: Mapping[ImageId, list[str]],
    hypotheses: Mapping[ImageId, str],
    config: MetricsConfig,
    *,
    sets: Mapping[ImageId, Sequence[str]] | None = None,
    training: Sequence[str] | None = None,
    read_image: ReadImage | None = None,
    cache_dir: Path | None = None,
    progress: bool = True,
) -> Scores:
    """Scores one hypothesis an image against its references, raw captions both.

    `sets` are several captions of an image each, whose diversity is then measured; `training` the captions that
    the model learned from, to count those that are new; `read_image` gives metrics.clip the images. METEOR and
    SPICE run beside the others, so it takes as long as the slowest. `cache_dir` replaces velm's cache folder.
    Raises UserError when the images differ or one has no references, and for unknown metric names; a failing
    Java program becomes a reason.
    """
    _check(references, hypotheses, config)
    references = {image: list(captions) for image, captions in references.items()}
    hypotheses = {image: hypotheses[image] for image in references}
    run = _Run(references, hypotheses, config, cache_dir or cache_home(), progress, sets or {}, training, read_image)
    with contextlib.ExitStack() as stack:
        # The order matters: an error or Ctrl-C first ends the Java processes, which frees the pool's threads.
        pool = stack.enter_context(ThreadPoolExecutor(max_workers=2))
        run.score(stack.enter_context(Launcher()), pool)
    return run.scores()


class _Run:
    """One call of `score_captions` while it collects results; `scores` gives them out."""

    def __init__(
        self,
        references: dict[ImageId, list[str]],
        hypotheses: dict[ImageId, str],
        config: MetricsConfig,
        cache_dir: Path,
        progress: bool,
        sets: Mapping[ImageId, Sequence[str]],
        training: Sequence[str] | None,
        read_image: ReadImage | None,
    ) -> None:
        self.references, self.hypotheses, self.config = references, hypotheses, config
        self.cache_dir, self.progress = cache_dir, progress
        self.sets, self.training, self.read_image = sets, training, read_image
        self.frequencies: DocumentFrequency | None = None  # None: those of the references
        self.results: list[Result] = []
        self.language: dict[str, float | None] = {}
        self.spice_categories: dict[str, float | None] = {}
        wanted = [*config.names, *(["clip"] if config.clip else [])]
        self.reasons = {n: NOT_REQUESTED for k, names in COLUMNS.items() if k not in wanted for n in names}
        self.warnings: list[str] = []
        self.signature = _signature(references)
        self.tokens: tuple[dict[ImageId, list[str]], dict[ImageId, str]] = {}, {}  # once tokenised

    def score(self, launcher: Launcher, pool: ThreadPoolExecutor) -> None:
        self._tokenize(PtbTokenizer(launcher, timeout=min(self.config.java_timeout, TOKENIZE_TIMEOUT)))
        programs = {"meteor": self._meteor, "spice": self._spice}
        futures = {
            COLUMNS[name][0]: pool.submit(work, launcher)
            for name, work in programs.items()
            if name in self.config.names
        }
        self._score_in_python()
        for name, future in futures.items():
            result = self._attempt(name, future.result)
            if result is not None:
                self.results.append(result)
        if launcher.used:
            self.signature["java"] = launcher.java.version

    def _tokenize(self, tokenize: PtbTokenizer) -> None:
        """The captions' tokens, as two lists like pycocoevalcap's: a caption's can depend on its neighbour's."""
        if "cider" in self.config.names:
            self.frequencies = document_frequencies(self.config.df, self.cache_dir, tokenize)
        references = unflatten(tokenize(flatten(self.references)), self.references)
        self.sets = unflatten(tokenize(flatten(self.sets)), self.sets)
        self.training = None if self.training is None else tokenize(self.training)
        self.warnings += language.unspaced_warnings(self.hypotheses, self.references)
        self.warnings += language.leftover_warnings(self.hypotheses, self.references)
        answers = tokenize(list(self.hypotheses.values()))
        self.tokens = references, dict(zip(self.hypotheses, answers, strict=True))
        if tokenize.unsure:
            self.signature["tokenizer"] += f", but {tokenize.unsure} captions are read by velm alone"
            self.warnings.append(
                f"{tokenize.unsure} captions hold characters that velm's tokenizer leaves to Stanford's, so scores may "
                f"differ slightly from published ones: {tokenize.problem}"
            )

    def _attempt(self, name: str, do: Callable[[], Any]) -> Any:
        """`do()`, or None and a reason for `name` when that fails."""
        try:
            return do()
        except (JavaError, OSError, ValueError) as error:  # OSError: no room for its temporary files
            self.reasons[name] = str(error)
            return None

    def _score_in_python(self) -> None:
        references, hypotheses = self.tokens
        corpus = Corpus(references, hypotheses)
        if "bleu" in self.config.names:
            rows_IS = bleu_summands(corpus)
            each_I4 = bleu_scores(rows_IS)
            for order, name in enumerate(COLUMNS["bleu"]):
                summands = Summands(rows_IS, partial(bleu_of_order, order=order))
                self.results.append(Result(name, summands.total(), each_I4[:, order].tolist(), summands))
        if "rouge_l" in self.config.names:
            self.results.append(average("ROUGE_L", rouge_l(corpus)[1].tolist()))
        if "cider" in self.config.names:
            self._cider(corpus)
        training = None if self.training is None else frozenset(self.training)
        self.language = language.describe(list(hypotheses.values()), flatten(references), training=training)
        if self.sets:
            self.language |= language.diversity_of_sets(self.sets, _bleu_4)
        if self.config.clip:
            self._clip(self.config.clip)

    def _clip(self, folder: str) -> None:
        if self.read_image is None:
            self.reasons |= dict.fromkeys(COLUMNS["clip"], "it looks at the images: say where they are (images=FOLDER)")
            return
        judge = ClipJudge(folder)
        with self._bar("CLIPScore") as bar:
            columns = judge.score(self.references, self.hypotheses, self.read_image, on_images=bar.update)
        unseen = listing([f"{image}: {reason}" for image, reason in judge.problems.items()]) if judge.problems else ""
        if len(judge.problems) == len(columns[0]):
            self.reasons |= dict.fromkeys(COLUMNS["clip"], f"none of the images can be seen: {unseen}")
            return
        if unseen:
            self.warnings.append(f"CLIPScore leaves out, of {len(columns[0])}, {unseen}")
        self.signature["clip"] = judge.signature
        self.results += [average(name, values) for name, values in zip(COLUMNS["clip"], columns, strict=True)]

    def _cider(self, corpus: Corpus) -> None:
        if not any(caption for group in self.tokens[0].values() for caption in group):
            self.reasons["CIDEr"] = "no reference holds a word"
            return
        images = len(corpus.references_I)
        if self.frequencies is not None:
            self.signature["cider_df"] = f"{self.frequencies.source}, {self.frequencies.documents} images"
            self.signature["cider_df_sha256"] = self.frequencies.digest
            if self.config.df == "coco" and self.frequencies.digest != COCO_DIGEST:
                self.warnings.append(
                    "CIDEr's document frequencies of COCO are not those that velm knows, so scores may differ: without "
                    "Java some of its captions are read otherwise, else pycocoevalcap has other captions"
                )
        elif images < MIN_DF_IMAGES:
            self.warnings.append(
                f"CIDEr's document frequencies come from these {images} images only; under {MIN_DF_IMAGES} it says "
                "little and cannot be compared with published numbers (metrics.df=coco takes those of COCO)"
            )
        self.results.append(average("CIDEr", cider(corpus, self.frequencies)[1].tolist()))

    def _meteor(self, launcher: Launcher) -> Result:
        _ = launcher.java  # without Java nothing has to be prepared
        tokens = self._shortened("METEOR", meteor.MAX_WORDS)
        processes = max(1, min(available_cores(), MOST_METEORS, len(self.references) // IMAGES_PER_METEOR))
        with work_folder("meteor") as folder:
            table = self._paraphrases(folder, *tokens)
            aligner = meteor.Meteor(
                launcher, timeout=self.config.java_timeout, processes=processes if table else 1, paraphrases=table
            )
            with aligner, self._bar("METEOR") as bar:
                total, images, summands = aligner.score(*tokens, on_image=bar.update)
        return Result("METEOR", total, list(images.values()), summands)

    def _paraphrases(
        self, folder: Path, references: Mapping[ImageId, Sequence[str]], hypotheses: Mapping[ImageId, str]
    ) -> Path | None:
        """The part of METEOR's table that these captions can need; None, so all of it, where velm cannot cut it."""
        try:
            worth_it = len(references) >= IMAGES_PER_TABLE
            table = ParaphraseTable.cached(meteor.paraphrases(), self.cache_dir, make=worth_it)
            if table is None:
                return None
            path = folder / "paraphrases.gz"
            path.write_bytes(table.of([*flatten(references), *hypotheses.values()]))
        except (OSError, ValueError):  # no room, no permission, a jar that was changed: slower, and as right
            return None
        return path

    def _spice(self, launcher: Launcher) -> Result:
        _ = launcher.java
        setup = spice.SpiceSetup.find(self.cache_dir, self.config.spice_memory, self.config.spice_threads)
        tokens = self._shortened("SPICE", spice.MAX_WORDS)
        with self._bar("SPICE") as bar:
            images, warnings = spice.score_spice(
                launcher,
                setup,
                *tokens,
                timeout=self.config.java_timeout,
                on_images=bar.update,
                on_stage=bar.set_postfix_str,
            )
        self.signature["spice"] = f"spice-1.0 with CoreNLP {spice.CORENLP_VERSION}"
        self.warnings += warnings
        by_category = {name: [_number(images[image][name]) for image in images] for name in spice.CATEGORIES}
        values = by_category.pop("All")
        undefined = values.count(None)
        if undefined:
            self.warnings.append(
                f"SPICE is not defined on {undefined} of {len(values)} images; its mean leaves them out"
            )
        if undefined == len(values):
            raise JavaError("SPICE is defined on none of the images")
        self.spice_categories = {name: _number(mean_of(numbers).total()) for name, numbers in by_category.items()}
        return average("SPICE", values)

    def _bar(self, name: str) -> tqdm[Any]:
        return progress_bar(what=name, shown=self.progress, total=len(self.references), unit="image", leave=False)

    def _shortened(self, name: str, limit: int) -> tuple[dict[ImageId, list[str]], dict[ImageId, str]]:
        """The tokens with every caption cut to `limit` words, and a warning that names the images."""
        references, hypotheses = self.tokens
        longest = {i: max(len(c.split()) for c in (*references[i], hypotheses[i])) for i in references}
        images = [image for image, words in longest.items() if words > limit]
        if not images:
            return references, hypotheses

        def cut(text: str) -> str:
            return " ".join(text.split(" ")[:limit])

        self.warnings.append(f"{name} saw only the first {limit} words of captions of {listing(images)}")
        shorter = {image: [cut(caption) for caption in group] for image, group in references.items()}
        return shorter, {image: cut(caption) for image, caption in hypotheses.items()}

    def scores(self) -> Scores:
        corpus: dict[str, float | None] = dict.fromkeys(NAMES)
        intervals: dict[str, tuple[float, float] | None] = dict.fromkeys(NAMES)
        per_image: dict[ImageId, dict[str, float | None]] = {i: dict.fromkeys(NAMES) for i in self.references}
        for result in self.results:
            corpus[result.name] = _number(result.corpus)
            for image, value in zip(per_image, result.images, strict=True):
                per_image[image][result.name] = _number(value)
        defined = {result.name: result.summands for result in self.results if corpus[result.name] is not None}
        if self.config.resamples:
            intervals |= bootstrap_all(defined, resamples=self.config.resamples)
        return Scores(
            corpus=corpus,
            intervals=intervals,
            reasons={name: self.reasons.get(name, "no number came out") for name in NAMES if corpus[name] is None},
            per_image=per_image,
            signature=self.signature,
            warnings=self.warnings,
            references=self.references,
            hypotheses=self.hypotheses,
            reference_tokens=self.tokens[0],
            summands={result.name: result.summands for result in self.results},
            language=self.language,
            spice_categories=self.spice_categories,
        )


def _bleu_4(references: Mapping[int, Sequence[str]], hypotheses: Mapping[int, str]) -> Sequence[float]:
    return bleu_scores(bleu_summands(Corpus(references, hypotheses)))[:, 3].tolist()


def fast_cider(references: Mapping[ImageId, Sequence[str]], hypotheses: Mapping[ImageId, str]) -> float:
    """CIDEr-D for validation while training: no Java, no bootstrap, a second for 5,000 images.

    Its document frequencies come from `references`.
    """
    tokenize = PtbTokenizer(None)
    tokenized = unflatten(tokenize(flatten(references)), references)
    answers = tokenize([hypotheses[image] for image in tokenized])
    return cider(Corpus(tokenized, dict(zip(tokenized, answers, strict=True))))[0]


def _check(references: Mapping[ImageId, list[str]], hypotheses: Mapping[ImageId, str], config: MetricsConfig) -> None:
    for name in [*config.names, *config.required]:
        if name not in COLUMNS:
            hint = did_you_mean(name, COLUMNS) or f"; there are {', '.join(COLUMNS)}"
            raise UserError(f"metrics.names: there is no metric {name!r}{hint}")
    if not references and not hypotheses:
        raise UserError("there are no captions to score")
    unanswered = [image for image in references if image not in hypotheses]
    unknown = [image for image in hypotheses if image not in references]
    hint = ""
    if unanswered and unknown and set(map(str, unanswered)) & set(map(str, unknown)):
        hint = " (ids are numbers on one side and text on the other)"
    if unanswered:
        raise UserError(f"no caption for {listing(unanswered)}{hint}: predict them or leave their references out")
    if unknown:
        raise UserError(f"no references for {listing(unknown)}{hint}: are the captions of another split?")
    empty = [image for image, captions in references.items() if not captions]
    if empty:
        raise UserError(f"an empty list of references for {listing(empty)}: leave them out")


def _number(value: Any) -> float | None:
    """A Python float; None for what is no number (None, NaN, infinity), so that it enters no mean and no JSON."""
    return None if value is None or not math.isfinite(value) else float(value)


def _signature(references: Mapping[ImageId, Sequence[str]]) -> dict[str, Any]:
    counts = [len(captions) for captions in references.values()]
    return {
        "velm": __version__,
        "pycocoevalcap": authority.version(),
        "tokenizer": "PTB, as stanford-corenlp-3.4.1",
        "java": None,
        "images": len(counts),
        "references": sum(counts),
        "references_min": min(counts),
        "references_max": max(counts),
        "cider": "CIDEr-D (n=4, sigma=6, no stemming)",
        "cider_df": f"corpus, {len(counts)} images",
    }
