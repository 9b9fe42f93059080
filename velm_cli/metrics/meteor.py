"""METEOR 1.5 (Denkowski and Lavie, 2014) through pycocoevalcap's jar, in a process that cannot hang velm.

The jar aligns the words: it answers `SCORE ||| reference ||| ... ||| hypothesis` with the statistics of one image.
What follows is arithmetic, done here: the score of all is that of the summed statistics, not a mean. The jar's
paraphrase table takes longer to load than thousands of images to align, so it gets only the part that the captions
can need (`paraphrases.py`), and then several processes can share the images.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from velm_cli.metrics.authority import pycocoevalcap
from velm_cli.metrics.java import JavaError, Launcher
from velm_cli.metrics.significance import Summands
from velm_cli.metrics.tokenize import Id, one_line

# The quick compiler and one thread: the thorough one costs as much time as it saves, on cores that the others need.
FLAGS = ("-Xmx2G", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
MAX_WORDS = 500  # of a caption: its aligner runs out of memory on a caption of thousands
REPLY_TIMEOUT = 300.0  # seconds for one answer, the first of which includes loading the tables
# Of its English task: recall's share in the mean, the fragmentation penalty's exponent and size, the weight of
# content words, and of matches by identity, stem, synonym and paraphrase.
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
MATCH_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
# Of an image's 23 statistics, as the jar orders them; 4 to 19 are 4 kinds of matches x the content words of
# hypothesis and reference, the function words of both.
WORDS, REFERENCE_WORDS, FUNCTION_WORDS, REFERENCE_FUNCTION_WORDS = range(4)
CHUNKS, MATCHED, REFERENCE_MATCHED = 20, 21, 22
_PLAIN = re.compile("[a-z0-9 \n]*")


def jar() -> Path:
    """METEOR's own. Raises JavaError where pycocoevalcap is not installed."""
    return pycocoevalcap() / "meteor" / "meteor-1.5.jar"


def paraphrases() -> Path:
    """Its table, where the jar itself looks for it."""
    return jar().parent / "data" / "paraphrase-en.gz"


class Meteor:
    """Running METEORs that share the images, closed by the `with` block."""

    def __init__(
        self,
        launcher: Launcher,
        *,
        timeout: float,
        reply_timeout: float = REPLY_TIMEOUT,
        processes: int = 1,
        paraphrases: Path | None = None,
    ) -> None:
        """`timeout` is the limit of one `score`, in seconds; `paraphrases` replaces METEOR's own table."""
        self._timeout = timeout
        arguments = [*FLAGS, "-jar", str(jar()), "-", "-", "-stdio", "-l", "en", "-norm"]
        if paraphrases is not None:
            arguments += ["-a", str(paraphrases)]
        self._workers = [_Worker(launcher, arguments, reply_timeout) for _ in range(processes)]

    def __enter__(self) -> Meteor:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.close()

    def score(
        self,
        references: Mapping[Id, Sequence[str]],
        hypotheses: Mapping[Id, str],
        *,
        on_image: Callable[[], object] = lambda: None,
    ) -> tuple[float, dict[Id, float], Summands]:
        """METEOR of all images, of each, and what the former is made of, from tokenised captions.

        The scores equal pycocoevalcap's.

        A process that hangs or dies is replaced once and goes on where it stopped. Raises JavaError, which
        names the image, when the second one fails too or the time is over.
        """
        deadline = time.monotonic() + self._timeout
        images = list(references)
        requests = [_request(references[image], hypotheses[image]) for image in images]

        def statistics_of(number: int, worker: _Worker) -> list[str]:
            mine = slice(number, None, len(self._workers))
            return worker.answers(requests[mine], deadline, lambda n: _named(images[mine], n, hypotheses), on_image)

        with ThreadPoolExecutor(len(self._workers)) as pool:
            parts = list(pool.map(statistics_of, range(len(self._workers)), self._workers))
        statistics = [""] * len(images)
        for number, part in enumerate(parts):
            statistics[number :: len(parts)] = part
        sums = summands(statistics)
        return sums.total(), dict(zip(images, sums.score(sums.rows_IS).tolist(), strict=True)), sums


class _Worker:
    """One METEOR process, replaced once for every list of requests."""

    def __init__(self, launcher: Launcher, arguments: Sequence[str], reply_timeout: float) -> None:
        self._launcher, self._arguments, self._reply_timeout = launcher, arguments, reply_timeout
        self._process = launcher.start(arguments)

    def close(self) -> None:
        self._process.kill()

    def answers(
        self,
        requests: Sequence[str],
        deadline: float,
        where: Callable[[int], str] = lambda answered: "",
        on_answer: Callable[[], object] = lambda: None,
    ) -> list[str]:
        """The line it answers to each request. `where` names, for the error, the one after so many answers."""
        answers: list[str] = []
        for attempt in ("first", "last"):
            try:
                # All at once: the process never waits for us, and the pipe's threads keep it from blocking.
                self._process.send("".join(requests[len(answers) :]))
                while len(answers) < len(requests):
                    answers.append(self._reply(deadline, requests[len(answers)]))
                    on_answer()
                return answers
            except JavaError as error:
                self._process.kill()
                if attempt == "last" or time.monotonic() >= deadline:
                    raise JavaError(f"METEOR failed{where(len(answers))}: {error}") from None
                self._process = self._launcher.start(self._arguments)
        raise AssertionError("unreachable")

    def _reply(self, deadline: float, request: str) -> str:
        line = self._process.read_line(min(self._reply_timeout, deadline - time.monotonic()))
        if line is None:
            raise JavaError(f"its process ended: {self._process.complaint()}")
        if not _plausible(line, request):
            raise JavaError(f"it answered {line[:100]!r}" if line else "it answered an empty line")
        return line


def _plausible(line: str, request: str) -> bool:
    """Whether a line can be the 23 statistics of a request: counts that fit together and to the hypothesis."""
    try:
        numbers = [float(number) for number in line.split()]
    except ValueError:
        return False
    if len(numbers) != 23 or not all(number >= 0 and number.is_integer() for number in numbers):  # nor NaN, infinity
        return False
    hypothesis = request.rpartition("|||")[2]
    words = len(hypothesis.split()) if _PLAIN.fullmatch(hypothesis) else None  # others METEOR rewrites
    hypothesis_matched = sum(numbers[4:20:4]) + sum(numbers[6:20:4])
    reference_matched = sum(numbers[5:20:4]) + sum(numbers[7:20:4])
    return (
        hypothesis_matched == numbers[MATCHED] <= numbers[WORDS]
        and reference_matched == numbers[REFERENCE_MATCHED] <= numbers[REFERENCE_WORDS]
        and numbers[FUNCTION_WORDS] <= numbers[WORDS]
        and numbers[REFERENCE_FUNCTION_WORDS] <= numbers[REFERENCE_WORDS]
        and numbers[CHUNKS] <= min(numbers[MATCHED], numbers[REFERENCE_MATCHED])
        and words in (None, numbers[WORDS])
    )


def summands(statistics: Sequence[str]) -> Summands:
    """The images' statistics, of which METEOR counts the chunks of a perfect match as none in a sum."""
    rows_IS = np.array([line.split() for line in statistics], dtype=float).reshape(-1, 23)
    whole_I = (rows_IS[:, MATCHED] == rows_IS[:, WORDS]) & (
        rows_IS[:, REFERENCE_MATCHED] == rows_IS[:, REFERENCE_WORDS]
    )
    rows_IS[whole_I & (rows_IS[:, CHUNKS] == 1), CHUNKS] = 0
    return Summands(rows_IS, score_of_sums)


def score_of_sums(sums_RS: np.ndarray) -> np.ndarray:
    """METEOR (R) of summed statistics (R, 23), equations 1 to 5 of the paper."""

    def weighted(length: int, function_length: int, content_matches: int) -> np.ndarray:
        matches_R4 = DELTA * sums_RS[:, content_matches:20:4] + (1 - DELTA) * sums_RS[:, content_matches + 2 : 20 : 4]
        function_R = sums_RS[:, function_length]
        return matches_R4 @ MATCH_WEIGHTS / (DELTA * (sums_RS[:, length] - function_R) + (1 - DELTA) * function_R)

    with np.errstate(invalid="ignore", divide="ignore"):
        precision_R = weighted(WORDS, FUNCTION_WORDS, 4)
        recall_R = weighted(REFERENCE_WORDS, REFERENCE_FUNCTION_WORDS, 5)
        mean_R = precision_R * recall_R / (ALPHA * precision_R + (1 - ALPHA) * recall_R)
        fragmentation_R = 2 * sums_RS[:, CHUNKS] / (sums_RS[:, MATCHED] + sums_RS[:, REFERENCE_MATCHED])
        return np.nan_to_num((1 - GAMMA * fragmentation_R**BETA) * mean_R)  # nothing matched: 0, as the jar says


def _request(references: Sequence[str], hypothesis: str) -> str:
    fields = ["SCORE", *map(_field, references), _field(hypothesis)]
    return " ||| ".join(fields) + "\n"


def _field(text: str) -> str:
    """One caption that cannot be taken for the end of a line or of a field, as pycocoevalcap writes it."""
    return one_line(text).replace("|||", "").replace("  ", " ")


def _named(images: Sequence[Id], answered: int, hypotheses: Mapping[Id, str]) -> str:
    """Names the image whose answer is missing; empty when all are there."""
    if answered >= len(images):
        return ""
    image = images[answered]
    return f" on image {image} ({hypotheses[image][:60]!r})"
