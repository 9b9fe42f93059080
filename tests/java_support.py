"""What the Java tests share: when they may skip, captions to score, and programs that pretend to be Java."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from velm_cli.metrics.java import cache_home, java_problem
from velm_cli.metrics.spice import find_corenlp

_TEXT = """a man woman dog cat two red small large horse bus table sitting standing riding holding on in
with near the umbrella pizza street under and white black children playing it's don't t-shirt next to of
U.S. 3 10,000"""
WORDS = _TEXT.split()


def needs_java() -> None:
    """Skips the test without Java, or fails it when VELM_REQUIRE_JAVA=1 says that Java must be there."""
    _skip_or_fail(java_problem(), "VELM_REQUIRE_JAVA")


def needs_spice() -> None:
    """Skips the test without Java and CoreNLP, or fails it when VELM_REQUIRE_SPICE=1."""
    missing = None if find_corenlp(cache_home()) else "CoreNLP not found: run `velm doctor fix=spice`"
    _skip_or_fail(java_problem() or missing, "VELM_REQUIRE_SPICE")


def _skip_or_fail(problem: str | None, variable: str) -> None:
    if problem and os.environ.get(variable) == "1":
        pytest.fail(f"{variable}=1, but: {problem}")
    if problem:
        pytest.skip(problem)


def random_captions(rng: random.Random, images: int) -> tuple[dict[int, list[str]], dict[int, str]]:
    """References and a hypothesis for each of `images` images, which share words with their references."""

    def caption() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(4, 12))).capitalize() + rng.choice([".", "", " !", ", ok"])

    references = {rng.randrange(10**9): [caption() for _ in range(rng.randint(1, 5))] for _ in range(images)}
    hypotheses = {}
    for image, captions in references.items():
        words = rng.choice(captions).split()
        words[rng.randrange(len(words))] = rng.choice(WORDS)
        hypotheses[image] = " ".join(words)
    return references, hypotheses


def fake_java(folder: Path, script: str, version: str = "17.0.1") -> Path:
    """A `java` in `folder` that says its version and runs the shell `script` for everything else."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "java"
    answer = f'if [ "$1" = -version ]; then echo \'openjdk version "{version}"\' >&2; exit 0; fi'
    program.write_text(f"#!/bin/sh\n{answer}\n{script}\n")
    program.chmod(0o755)
    return program
