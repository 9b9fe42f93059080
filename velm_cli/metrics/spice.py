"""SPICE (Anderson et al., 2016) through pycocoevalcap's jar, on the Java versions of today.

The jar was built for Java 8 and meant to be run alone. Newer versions miss two things (see `command`);
parallel runs on one parse cache freeze, so every run gets a private copy of it in its own temporary
folder and hands it back whole; and images go through in groups, which bounds memory, shows progress and
keeps the parses of finished groups when time runs out. SPICE is AGPL and CoreNLP GPL: both run as
separate programs, and velm ships nothing of theirs.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from velm_cli.data.processes import available_cores
from velm_cli.metrics import cache
from velm_cli.metrics.authority import SPICE_JAR, pycocoevalcap
from velm_cli.metrics.java import JavaError, JavaTimeout, Launcher, memory_limit
from velm_cli.metrics.spice_engine import ENGINE_JAR
from velm_cli.metrics.tokenize import Id, one_line
from velm_cli.metrics.workspace import work_folder

CORENLP_VERSION = "3.6.0"
CORENLP_FOLDER = f"corenlp-{CORENLP_VERSION}"  # in the cache
CORENLP_JARS = (f"stanford-corenlp-{CORENLP_VERSION}.jar", f"stanford-corenlp-{CORENLP_VERSION}-models.jar")
# The jar's names for the kinds of tuples that a score is split into; All is the score itself.
CATEGORIES = ("All", "Object", "Attribute", "Relation", "Color", "Cardinality", "Size")
# Images of one group, by the heap: all its parses are in memory together, but each group loads the models anew.
IMAGES_PER_GIB = 250
MAX_GROUP = 2000
MAX_WORDS = 100  # of a caption: the parser's time and memory grow with the cube; COCO's longest has 50
SNAPSHOT_LIMIT = 512 << 20  # bytes (about a million captions); a larger parse cache starts empty again
RESULT_LIMIT = 256 << 20  # bytes of a group's result, which is about 10 MB
ADD_OPENS = (
    "lang",
    "math",
    "util",
    "util.concurrent",
    "net",
    "text",
)  # what the cache's serializer looks into

FScores = dict[str, float | None]  # by category


@dataclass(frozen=True, slots=True)
class SpiceSetup:
    """How to run SPICE: folder of CoreNLP's jars, Java heap (`4G`), threads, shared parse cache or None."""

    corenlp: Path
    memory: str
    threads: int
    snapshot: Path | None

    @classmethod
    def find(cls, cache_dir: Path, memory: str = "auto", threads: int = 0) -> SpiceSetup:
        """The setup of this machine. Raises JavaError when CoreNLP is missing, or others may have put it there."""
        corenlp = find_corenlp(cache_dir)
        in_cache = corenlp == cache_dir / CORENLP_FOLDER and os.environ.get("VELM_CORENLP") != str(corenlp)
        if corenlp is not None and in_cache and cache.can_be_changed_by_others(corenlp):
            raise JavaError(
                f"{corenlp} holds programs that others can change: chmod -R go-w {corenlp}, and delete what is not "
                "yours, or set VELM_CORENLP to it if you trust them"
            )
        if corenlp is None:
            raise JavaError(f"CoreNLP {CORENLP_VERSION} not found: run `velm doctor fix=spice`")
        has_native_library = platform.machine().lower() in (
            "x86_64",
            "amd64",
        )  # the jar's LMDB is built for x86
        snapshot = cache_dir / f"spice-parses-{CORENLP_VERSION}.mdb" if has_native_library else None
        return cls(corenlp, _heap() if memory == "auto" else memory, threads or available_cores(), snapshot)


def find_corenlp(cache_dir: Path) -> Path | None:
    """The folder with both of CoreNLP's jars: $VELM_CORENLP, velm's cache or pycocoevalcap's own; or None."""
    folders = [cache_dir / CORENLP_FOLDER, (pycocoevalcap() / SPICE_JAR).parent / "lib"]
    if os.environ.get("VELM_CORENLP"):
        folders.insert(0, Path(os.environ["VELM_CORENLP"]).expanduser())
    return next((path for path in folders if all((path / jar).is_file() for jar in CORENLP_JARS)), None)


def _heap() -> str:
    """Half of the memory there is, from 1 to 8 GiB."""
    return f"{min(8192, max(1024, memory_limit() // 2 >> 20))}m"


def _gib(heap: str) -> float:
    """What Java makes of `4G`, `1500m` or a number of bytes; 1 where Java itself will have to refuse it."""
    match = re.fullmatch(r"(\d+)([kmgt]?)", heap.strip().lower())
    return int(match[1]) * 1024.0 ** ("kmgt".find(match[2]) - 2 if match[2] else -3) if match else 1.0


def command(setup: SpiceSetup, work: Path, java_major: int, *, cached: bool) -> list[str]:
    """Java's arguments to score `work/in.json` into `work/out.json`.

    By class and not by `-jar`, which ignores `-cp`: the class path carries CoreNLP from outside
    site-packages and, for Java 15 and later, a JavaScript engine. `velm.Watched` ends the program with velm, however
    velm ends: unlike METEOR it never reads what it is given. Only the cache's serializer needs
    Java's own packages opened (9 and later) and says so in warnings (24 and later).
    """
    flags = [f"-Xmx{setup.memory}", f"-Djava.io.tmpdir={work}"]
    if cached and java_major >= 9:
        flags += [f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in ADD_OPENS]
    if cached and java_major >= 24:
        flags += ["--enable-native-access=ALL-UNNAMED"]
    class_path = os.pathsep.join(map(str, [pycocoevalcap() / SPICE_JAR, setup.corenlp / "*", ENGINE_JAR]))
    options = ["-out", str(work / "out.json"), "-subset", "-silent", "-threads", str(setup.threads)]
    if cached:
        options += ["-cache", str(work / "parses")]
    return [*flags, "-cp", class_path, "velm.Watched", "edu.anu.spice.SpiceScorer", str(work / "in.json"), *options]


def score_spice(
    launcher: Launcher,
    setup: SpiceSetup,
    references: Mapping[Id, Sequence[str]],
    hypotheses: Mapping[Id, str],
    *,
    timeout: float,
    on_images: Callable[[int], object] = lambda count: None,
    on_stage: Callable[[str], object] = lambda stage: None,
) -> tuple[dict[Id, FScores], list[str]]:
    """SPICE's f-scores of each image by category (None where SPICE defines none), from tokenised captions; warnings.

    Equal to pycocoevalcap's. `on_images` gets the number of images of every finished group, `on_stage`
    what SPICE is doing. Raises JavaError when it fails or takes more than `timeout` seconds in all.
    """
    deadline = time.monotonic() + timeout
    images = list(references)
    scores: dict[Id, FScores] = {}
    warnings: list[str] = []
    group_size = min(MAX_GROUP, max(1, int(_gib(setup.memory) * IMAGES_PER_GIB)))
    with work_folder("spice") as work:
        snapshot = setup.snapshot
        cached = snapshot is not None
        problem = _borrow(snapshot, work) if snapshot is not None else None
        if problem is not None:
            warnings.append(f"SPICE parsed everything anew, its parse cache is not used: {problem}")
        try:
            for start in range(0, len(images), group_size):
                group = images[start : start + group_size]
                # Our own numbers as ids, and ASCII: no id and no encoding can trip its reader.
                items = [
                    {
                        "image_id": i,
                        "test": one_line(hypotheses[k]),
                        "refs": [one_line(r) for r in references[k]],
                    }
                    for i, k in enumerate(group)
                ]
                (work / "in.json").write_text(json.dumps(items), encoding="ascii")
                try:
                    found = _run(launcher, setup, work, deadline, on_stage, cached=cached)
                except JavaTimeout:
                    raise JavaError(
                        f"SPICE was stopped after {timeout:g} s with {start} of {len(images)} images scored: "
                        f"raise metrics.java_timeout{' (finished parses are kept)' if cached else ''}"
                    ) from None
                except JavaError as error:
                    if not cached:
                        raise
                    # The native library or the cache is at fault, or SPICE is: running without tells.
                    found = _run(launcher, setup, work, deadline, on_stage, cached=False)
                    warnings.append(f"SPICE ran without its parse cache, which failed: {error}")
                    assert setup.snapshot is not None
                    with contextlib.suppress(OSError):
                        setup.snapshot.unlink()
                    cached = False
                if set(found) != set(range(len(group))):
                    raise JavaError(f"SPICE gave scores of {len(found)} images for {len(group)}")
                scores |= {image: found[i] for i, image in enumerate(group)}
                on_images(len(group))
                if cached and snapshot is not None:  # parses are hours of work: a kill costs those of one group
                    _publish(work, snapshot, if_larger=problem is None)
        finally:
            if cached and snapshot is not None:
                _publish(work, snapshot, if_larger=problem is None)
    return scores, warnings


def _run(
    launcher: Launcher,
    setup: SpiceSetup,
    work: Path,
    deadline: float,
    on_stage: Callable[[str], object],
    *,
    cached: bool,
) -> dict[int, FScores]:
    """One run of the jar: the f-scores of every number in `in.json`."""

    def on_log(line: str) -> None:
        if line.startswith(("Parsing", "Initiating")):
            on_stage(line.lower())

    process = launcher.start(command(setup, work, launcher.java.major, cached=cached), on_log=on_log)
    try:
        code = process.wait(deadline - time.monotonic())
    finally:
        process.kill()
    if process.flooded:
        raise JavaError(f"SPICE failed: {process.complaint()}")
    if code != 0:
        raise JavaError(f"SPICE failed with exit code {code}{_advice(code, process.complaint())}")
    try:
        if (size := (work / "out.json").stat().st_size) > RESULT_LIMIT:
            raise ValueError(f"{size >> 20} MB")
        results = json.loads((work / "out.json").read_text(encoding="utf-8"))
        (work / "out.json").unlink()
        found = {
            item["image_id"]: {name: _f_score(item["scores"].get(name, {}).get("f")) for name in CATEGORIES}
            for item in results
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise JavaError(f"SPICE gave no readable result ({error}): {process.complaint()}") from None
    if len(found) != len(results):
        raise JavaError("SPICE gave several scores of one image")
    return found


def _f_score(value: object) -> float | None:
    """A score as the jar may write it (NaN or nothing: it is not defined); ValueError for anything else."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (0 <= value <= 1 or value != value):
        raise ValueError(f"a score of {str(value)[:40]}")
    return value


def _advice(code: int, complaint: str) -> str:
    if code in (-9, 137):
        return ": the system ended it, for lack of memory? Try a smaller metrics.spice_memory"
    # The parser gives up a long sentence without memory, and SPICE then trips over the missing parse.
    if "OutOfMemoryError" in complaint or "SemanticGraph" in complaint:
        return f": too little memory for its longest caption, raise metrics.spice_memory ({complaint})"
    return f": {complaint}"


def _borrow(snapshot: Path, work: Path) -> str | None:
    """Copies the shared parse cache into the private folder; why not, where there is one that cannot be used.

    The shared file is never opened by LMDB and never changed, only replaced: any number of runs may copy.
    """
    (work / "parses").mkdir()
    private = work / "parses" / "data.mdb"
    try:
        with private.open("wb") as file:
            file.writelines(cache.read_pieces(snapshot))
        return None
    except (FileNotFoundError, NotADirectoryError):
        problem = None
    except (OSError, ValueError) as error:
        problem = str(error)
    private.unlink(missing_ok=True)  # a torn copy is worse than none
    return problem


def _publish(work: Path, snapshot: Path, *, if_larger: bool) -> None:
    """Puts the private parse cache in the place of the shared one, `if_larger` only if it knows more than that one."""
    private = work / "parses" / "data.mdb"
    # A full or read-only disk costs the next run time, it must not cost this one its scores.
    with contextlib.suppress(OSError):
        size = private.stat().st_size if private.is_file() else 0
        there = snapshot.stat().st_size - cache.SEAL_LENGTH if if_larger and snapshot.is_file() else 0
        if size > SNAPSHOT_LIMIT:
            snapshot.unlink(missing_ok=True)
        elif size > there:
            with private.open("rb") as source:
                cache.keep(snapshot, iter(lambda: source.read(cache.PIECE), b""))
