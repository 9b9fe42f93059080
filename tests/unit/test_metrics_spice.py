"""SPICE runs on today's Java and scores as the jar alone does; its cache is shared whole or not at all."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pytest
from java_support import fake_java, needs_java, needs_spice, random_captions

from velm_cli.metrics import cache, ptb, spice
from velm_cli.metrics.authority import SPICE_JAR, pycocoevalcap
from velm_cli.metrics.captions import score_captions
from velm_cli.metrics.java import Java, JavaError, Launcher, cache_home, find_java
from velm_cli.metrics.spice import CORENLP_JARS, SpiceSetup, command, find_corenlp, score_spice
from velm_cli.metrics.spice_engine import ENGINE_JAR
from velm_cli.metrics.spice_engine.build import build
from velm_cli.schema import MetricsConfig

# ------------------------------------------------------------------------------------ the engine

ASK_THE_ENGINE = """
import javax.script.*;
public class Ask {
    public static void main(String[] args) throws Exception {
        ScriptEngine engine = new ScriptEngineManager().getEngineByName("JavaScript");
        engine.put("jsonString", args[0]);
        engine.eval("result = JSON.stringify(JSON.parse(jsonString), null, 2)");
        System.out.println(engine.getFactory().getEngineName() + " " + engine.get("result"));
    }
}
"""


@pytest.mark.java
def test_the_engine_jar_is_what_its_source_gives(tmp_path):
    needs_java()
    if shutil.which("javac") is None:
        pytest.skip("javac is not on PATH")
    rebuilt = tmp_path / "engine.jar"
    build(rebuilt)
    (tmp_path / "Ask.java").write_text(ASK_THE_ENGINE)
    subprocess.run(["javac", "-d", tmp_path, tmp_path / "Ask.java"], check=True)
    answers = []
    for jar in (ENGINE_JAR, rebuilt):
        ask = [find_java().program, "-cp", f"{tmp_path}{os.pathsep}{jar}", "Ask", '[{"f": 0.5}]']
        answers.append(subprocess.run(ask, check=True, capture_output=True, text=True, timeout=60).stdout)
    assert answers[0] == answers[1]
    assert answers[0].endswith('[{"f": 0.5}]\n')
    if find_java().major >= 15:  # older ones have an engine of their own, which may come first
        assert answers[0].startswith("velm echo ")
    with zipfile.ZipFile(ENGINE_JAR) as shipped, zipfile.ZipFile(rebuilt) as made:
        assert shipped.namelist() == made.namelist()
        for name in shipped.namelist():
            if name.endswith(".class"):  # class-file version 52: loads on Java 8 and all later
                assert shipped.read(name)[:8] == made.read(name)[:8] == bytes.fromhex("CAFEBABE00000034")
    if find_java().major == 17:  # what the shipped jar was compiled with
        assert rebuilt.read_bytes() == ENGINE_JAR.read_bytes()


# ------------------------------------------------------------------------------------ the launch


def test_flags_by_java_version(tmp_path):
    setup = SpiceSetup(tmp_path, "3g", 5, tmp_path / "data.mdb")
    old, new, newest = (command(setup, tmp_path, major, cached=True) for major in (8, 17, 25))
    assert not any(flag.startswith("--") for flag in old)
    assert sum(flag.startswith("--add-opens") for flag in new) == 6
    assert "--enable-native-access=ALL-UNNAMED" in newest
    assert "--enable-native-access=ALL-UNNAMED" not in new
    assert "-Xmx3g" in old
    assert old[old.index("-threads") + 1] == "5"
    plain = command(setup, tmp_path, 25, cached=False)
    assert "-cache" not in plain
    assert not any(flag.startswith("--") for flag in plain)


def test_corenlp_is_found_only_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(spice, "pycocoevalcap", lambda: tmp_path)
    monkeypatch.delenv("VELM_CORENLP", raising=False)
    folders = [tmp_path / "spice" / "lib", tmp_path / "cache" / "corenlp-3.6.0", tmp_path / "mine"]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / CORENLP_JARS[0]).touch()  # what an interrupted download of pycocoevalcap leaves
    monkeypatch.setenv("VELM_CORENLP", str(folders[2]))
    assert find_corenlp(tmp_path / "cache") is None
    with pytest.raises(JavaError, match=r"CoreNLP 3\.6\.0 not found: run `velm doctor fix=spice`"):
        SpiceSetup.find(tmp_path / "cache")
    for folder in folders:
        (folder / CORENLP_JARS[1]).touch()
        assert find_corenlp(tmp_path / "cache") == folder


@pytest.mark.parametrize("name", [".", CORENLP_JARS[0], "more.jar"])
def test_programs_that_others_can_change_are_not_run(tmp_path, monkeypatch, name):
    """A shared cache: Java would run whatever lies in it."""
    monkeypatch.delenv("VELM_CORENLP", raising=False)
    folder = tmp_path / "corenlp-3.6.0"
    folder.mkdir()
    for jar in (*CORENLP_JARS, "more.jar"):
        (folder / jar).touch()
    assert SpiceSetup.find(tmp_path).corenlp == folder
    (folder / name).chmod(0o777)
    with pytest.raises(JavaError, match=r"holds programs that others can change: chmod -R go-w .*corenlp-3\.6\.0"):
        SpiceSetup.find(tmp_path)
    monkeypatch.setenv("VELM_CORENLP", str(folder))  # named on purpose
    assert SpiceSetup.find(tmp_path).corenlp == folder


# ---------------------------------------------------------------------- without the real program

SPICE_IN_PYTHON = """
import json, os, pathlib, signal, sys, time
arguments = dict(zip(sys.argv, sys.argv[1:]))
if "-cache" in arguments:
    data = pathlib.Path(arguments["-cache"], "data.mdb")
    data.write_bytes((data.read_bytes() if data.exists() else b"") + b"parse ")
{trouble}
given = json.load(open(arguments["edu.anu.spice.SpiceScorer"]))
f = lambda item: None if item["test"] == "nan" else (len(item["test"]) + len(item["refs"]) / 10) / 100
names = "All Object Attribute Relation Color Cardinality Size".split()
results = [dict(image_id=item["image_id"], scores={{name: dict(f=f(item)) for name in names}}) for item in given]
json.dump(results, open(arguments["-out"], "w"))
"""


def pretend(folder: Path, trouble: str = "") -> Launcher:
    folder.mkdir(exist_ok=True)
    script = folder / "spice.py"
    script.write_text(SPICE_IN_PYTHON.format(trouble=textwrap.dedent(trouble)))
    return Launcher(Java(str(fake_java(folder, f'exec "{sys.executable}" "{script}" "$@"')), "17", 17))


def setup_in(folder: Path) -> SpiceSetup:
    return SpiceSetup(folder / "corenlp", "1g", 1, folder / "cache" / "data.mdb")


REFERENCES = {i: ["r"] * (i % 3 + 1) for i in range(7)}
HYPOTHESES = {i: "h" * i for i in range(7)}
EXPECTED = {i: dict.fromkeys(spice.CATEGORIES, (i + (i % 3 + 1) / 10) / 100) for i in range(7)}


def kept(snapshot: Path) -> bytes:
    return b"".join(cache.read_pieces(snapshot))


def test_groups_are_put_together_and_the_cache_grows(tmp_path, monkeypatch):
    monkeypatch.setattr(spice, "IMAGES_PER_GIB", 3)
    done: list[int] = []
    with pretend(tmp_path) as launcher:
        setup = setup_in(tmp_path)
        found, warnings = score_spice(launcher, setup, REFERENCES, HYPOTHESES, timeout=60, on_images=done.append)
        assert (found, warnings, done) == (EXPECTED, [], [3, 3, 1])
        assert kept(setup.snapshot) == b"parse " * 3
        score_spice(launcher, setup, REFERENCES, HYPOTHESES, timeout=60)
        assert kept(setup.snapshot) == b"parse " * 6
    assert [path.name for path in setup.snapshot.parent.iterdir()] == ["data.mdb"]


def test_parses_of_a_group_are_kept_before_the_next_one_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(spice, "IMAGES_PER_GIB", 3)
    seen, kept = tmp_path / "seen", setup_in(tmp_path).snapshot
    look = f"""
kept = pathlib.Path({str(kept)!r})
with open({str(seen)!r}, "a") as file:
    print(kept.stat().st_size if kept.exists() else "-", file=file)
"""
    with pretend(tmp_path, look) as launcher:
        score_spice(launcher, setup_in(tmp_path), REFERENCES, HYPOTHESES, timeout=60)
    assert seen.read_text().split() == ["-", *(str(n * len("parse ") + cache.SEAL_LENGTH) for n in (1, 2))]


def test_heaps_are_read_as_java_reads_them():
    heaps = {"4G": 4, "1500m": 1500 / 1024, "1048576k": 1, "2147483648": 2, "1t": 1024, "4GB": 1}
    assert {heap: spice._gib(heap) for heap in heaps} == heaps


def test_the_cache_is_bounded_and_a_read_only_one_does_no_harm(tmp_path, monkeypatch):
    setup = setup_in(tmp_path)
    cache.keep(setup.snapshot, [b"x" * 100])
    monkeypatch.setattr(spice, "SNAPSHOT_LIMIT", 50)
    with pretend(tmp_path) as launcher:
        score_spice(launcher, setup, REFERENCES, HYPOTHESES, timeout=60)
        assert not setup.snapshot.exists()
        setup.snapshot.parent.rmdir()
        setup.snapshot.parent.write_text("a file where the folder should be")
        assert score_spice(launcher, setup, REFERENCES, HYPOTHESES, timeout=60) == (EXPECTED, [])


def test_a_broken_cache_is_left_out_and_thrown_away(tmp_path):
    setup = setup_in(tmp_path)
    cache.keep(setup.snapshot, [b"what LMDB does not like"])
    trouble = "if '-cache' in arguments: sys.exit('java.lang.UnsatisfiedLinkError: lmdbjni')"
    with pretend(tmp_path, trouble) as launcher:
        found, warnings = score_spice(launcher, setup, REFERENCES, HYPOTHESES, timeout=60)
    assert found == EXPECTED
    assert len(warnings) == 1
    assert "UnsatisfiedLinkError: lmdbjni" in warnings[0]
    assert not setup.snapshot.exists()


def damaged(snapshot: Path) -> None:
    data = bytearray(snapshot.read_bytes())
    data[3] ^= 1
    snapshot.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (damaged, "has changed since it was written"),
        (lambda snapshot: os.truncate(snapshot, 9), "has changed since it was written"),
        (lambda snapshot: snapshot.write_bytes(b"parses of an older velm " * 9), "has changed since it was written"),
        (lambda snapshot: snapshot.chmod(0o666), "can be changed by others"),
    ],
)
def test_parses_that_have_changed_are_made_again(tmp_path, spoil, reason):
    setup = setup_in(tmp_path)
    cache.keep(setup.snapshot, [b"parse " * 3])
    spoil(setup.snapshot)
    with pretend(tmp_path) as launcher:
        found, warnings = score_spice(launcher, setup, REFERENCES, HYPOTHESES, timeout=60)
    assert found == EXPECTED
    assert len(warnings) == 1 and reason in warnings[0]
    assert kept(setup.snapshot) == b"parse "  # smaller than what was there, but whole


def test_a_folder_under_the_name_of_the_cache_costs_time_only(tmp_path):
    setup = setup_in(tmp_path)
    (setup.snapshot / "mine").mkdir(parents=True)
    for trouble in ("", "if '-cache' in arguments: sys.exit('java.lang.UnsatisfiedLinkError: lmdbjni')"):
        with pretend(tmp_path, trouble) as launcher:
            found, warnings = score_spice(launcher, setup, REFERENCES, HYPOTHESES, timeout=60)
        assert found == EXPECTED
        assert "its parse cache is not used" in warnings[0] and "Is a directory" in warnings[0]
        assert (setup.snapshot / "mine").is_dir()


def test_links_in_a_shared_cache_lead_nowhere(tmp_path):
    """The name under which the cache is kept is a link, as another user of the folder may plant it."""
    setup, victim = setup_in(tmp_path), tmp_path / "thesis.tex"
    cache.keep(victim, [b"parse "])
    before = victim.read_bytes()
    setup.snapshot.parent.mkdir()
    setup.snapshot.symlink_to(victim)
    with pretend(tmp_path) as launcher:
        assert score_spice(launcher, setup, REFERENCES, HYPOTHESES, timeout=60)[0] == EXPECTED
    assert victim.read_bytes() == before
    assert not setup.snapshot.is_symlink() and kept(setup.snapshot) == b"parse "


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("sys.exit('java.lang.OutOfMemoryError: Java heap space')", "raise metrics.spice_memory"),
        ("sys.exit('Invalid maximum heap size: -Xmx4GB')", "Invalid maximum heap size: -Xmx4GB"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "smaller metrics.spice_memory"),
        ("sys.exit(0)", "no readable result"),
        ("json.load = lambda file, load=json.load: load(file)[1:]", "scores of 6 images for 7"),
        ("json.load = lambda file, load=json.load: load(file) + load(open(file.name))", "several scores of one image"),
    ],
)
def test_a_failure_is_one_line_with_what_to_do(tmp_path, trouble, message):
    with pretend(tmp_path, trouble) as launcher, pytest.raises(JavaError) as failure:
        score_spice(launcher, setup_in(tmp_path), REFERENCES, HYPOTHESES, timeout=60)
    assert message in str(failure.value)
    assert "\n" not in str(failure.value)


def test_the_time_limit_keeps_finished_parses(tmp_path):
    setup = setup_in(tmp_path)
    with pretend(tmp_path, "time.sleep(60)") as launcher, pytest.raises(JavaError) as failure:
        score_spice(launcher, setup, REFERENCES, HYPOTHESES, timeout=2)
    assert "stopped after 2 s with 0 of 7 images scored: raise metrics.java_timeout" in str(failure.value)
    assert kept(setup.snapshot) == b"parse "


def test_an_undefined_score_stays_out_of_the_mean(tmp_path, monkeypatch):
    program = pretend(tmp_path).java.program
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", f"{Path(program).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("VELM_CORENLP", str(tmp_path))
    for jar in CORENLP_JARS:
        (tmp_path / jar).touch()
    config = MetricsConfig(names=["spice"])
    scores = score_captions({1: ["r"], 2: ["r"]}, {1: "nan", 2: "hh"}, config, cache_dir=tmp_path / "cache")
    assert scores.corpus["SPICE"] == pytest.approx(0.021)
    assert scores.per_image[1]["SPICE"] is None
    assert any("SPICE is not defined on 1 of 2 images" in warning for warning in scores.warnings)


# ------------------------------------------------------------------------------ the real program


def official_spice(folder: Path, references: dict, hypotheses: dict) -> dict:
    """What pycocoevalcap's Spice does, by hand: on a new Java it cannot be called itself."""
    folder.mkdir()
    items = [{"image_id": i, "test": hypotheses[i], "refs": references[i]} for i in references]
    (folder / "in.json").write_text(json.dumps(items, indent=2))
    (folder / "cache").mkdir()
    opened = ("lang", "math", "util", "util.concurrent", "net", "text")
    flags = [f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in opened] if find_java().major > 8 else []
    jars = [pycocoevalcap() / SPICE_JAR, find_corenlp(cache_home()) / "*", ENGINE_JAR]
    options = ["-cache", folder / "cache", "-out", folder / "out.json", "-subset", "-silent"]
    java = [find_java().program, "-Xmx3g", *flags, "-cp", os.pathsep.join(map(str, jars))]
    scorer = ["edu.anu.spice.SpiceScorer", folder / "in.json", *options]
    subprocess.run([*java, *scorer], check=True, capture_output=True)
    results = json.loads((folder / "out.json").read_text())
    return {item["image_id"]: {name: score["f"] for name, score in item["scores"].items()} for item in results}


@pytest.mark.spice
def test_equals_the_official_jar_and_survives_odd_captions(tmp_path, monkeypatch):
    needs_spice()
    references, hypotheses = random_captions(random.Random(), 8)
    references = {image: ptb.tokenize(group) for image, group in references.items()}
    hypotheses = dict(zip(hypotheses, ptb.tokenize(list(hypotheses.values())), strict=True))
    hypotheses |= {1: "", 2: "a ||| b", 3: "😀 niño", 4: "two red dogs"}
    references |= {1: ["a cat"], 2: ["a dog", ""], 3: ["a niño"], 4: ["two dogs", "red dogs on a street"]}
    wanted = official_spice(tmp_path / "official", references, hypotheses)
    monkeypatch.setattr(spice, "IMAGES_PER_GIB", 3)  # groups of nine
    setup = SpiceSetup(find_corenlp(cache_home()), "3g", 1, SpiceSetup.find(cache_home()).snapshot)
    shared = setup.snapshot and tmp_path / "shared" / "data.mdb"
    setup = SpiceSetup(setup.corenlp, setup.memory, setup.threads, shared)
    with Launcher(find_java()) as launcher:
        first, warnings = score_spice(launcher, setup, references, hypotheses, timeout=900)
        stages: list[str] = []
        second, _ = score_spice(launcher, setup, references, hypotheses, timeout=900, on_stage=stages.append)
    assert warnings == []
    assert str(first) == str(second)  # as text, since a category without tuples is NaN
    assert first.keys() == wanted.keys()
    for image, scores in first.items():
        assert scores.keys() == wanted[image].keys()
        for name, score in scores.items():
            assert score == pytest.approx(wanted[image][name], abs=1e-6, nan_ok=True), (image, name)
    assert np.mean([scores["All"] for scores in first.values()]) > 0
    if shared:  # nothing is parsed twice on a machine
        assert not any("pipeline" in stage for stage in stages)


WAITS = """
public class Waits {
    public static void main(String[] args) throws Exception {
        System.out.println("started");
        Thread.sleep(60000);
    }
}
"""


@pytest.mark.java
def test_the_program_ends_with_the_velm_that_started_it(tmp_path):
    """As after a SIGKILL: nobody holds the other end of its standard input any more."""
    needs_java()
    if shutil.which("javac") is None:
        pytest.skip("javac is not on PATH")
    (tmp_path / "Waits.java").write_text(WAITS)
    subprocess.run(["javac", "-d", tmp_path, tmp_path / "Waits.java"], check=True)
    command = [find_java().program, "-cp", f"{tmp_path}{os.pathsep}{ENGINE_JAR}", "velm.Watched", "Waits"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    assert process.stdout.readline() == b"started\n"
    process.stdin.close()
    assert process.wait(20) == 137
