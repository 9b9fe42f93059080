"""Java is found or named as missing in one line, and its processes neither hang velm nor outlive it."""

from __future__ import annotations

import os
import sys
import time

import pytest
from java_support import fake_java

from velm_cli.metrics import java
from velm_cli.metrics.java import (
    Java,
    JavaError,
    JavaTimeout,
    Launcher,
    Process,
    cache_home,
    find_java,
    java_problem,
    memory_limit,
    parse_version,
)


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ('openjdk version "17.0.15" 2025-04-15', ("17.0.15", 17)),
        ('java version "1.8.0_392"', ("1.8.0_392", 8)),
        ('Picked up JAVA_TOOL_OPTIONS: -Xmx1g\nopenjdk version "21" 2023-09-19', ("21", 21)),
        ('openjdk version "26-ea" 2026-03-17', ("26-ea", 26)),
        ("command not found", None),
    ],
)
def test_version_of_every_vendor(said, version):
    assert parse_version(said) == version


def test_no_java_is_one_line_that_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert java_problem() == "Java not found: install a Java runtime (8 or newer) or set JAVA_HOME"


def test_java_home_goes_before_path_and_a_wrong_one_does_no_harm(monkeypatch, tmp_path):
    fake_java(tmp_path / "home" / "bin", "", version="21.0.2")
    fake_java(tmp_path / "path", "", version="11.0.1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    assert find_java().major == 21
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "gone"))
    assert find_java().major == 11


def test_java_that_is_old_broken_or_hung_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    old, broken, hung, mad = (tmp_path / name for name in ("old", "broken", "hung", "mad"))
    fake_java(old, "", version="1.7.0_80")
    fake_java(broken, "").write_text("#!/bin/sh\necho libjvm.so is missing >&2; exit 1\n")
    fake_java(hung, "").write_text("#!/bin/sh\nexec sleep 60\n")
    fake_java(mad, "").write_text("#!/bin/sh\nprintf '\\033[2J' >&2; exec yes\n")
    path = os.environ["PATH"]
    monkeypatch.setattr(java, "VERSION_TIMEOUT", 1)
    monkeypatch.setattr(java, "MOST_UNREAD", 1 << 20)
    for folder, part in (
        (old, "1.7.0_80 is too old"),
        (broken, "libjvm.so is missing"),
        (hung, "no answer in"),
        (mad, r"did not give a version: \x1b[2J"),
    ):
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{path}")
        problem = java_problem()
        assert problem is not None
        assert part in problem
        assert "\n" not in problem


def test_memory_limit_is_no_more_than_the_machine_has():
    assert 0 < memory_limit() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_cache_home(monkeypatch, tmp_path):
    monkeypatch.setenv("VELM_CACHE", str(tmp_path / "mine"))
    assert cache_home() == tmp_path / "mine"
    monkeypatch.delenv("VELM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_home() == tmp_path / "xdg" / "velm"


def python(code: str) -> Process:
    return Process([sys.executable, "-c", code])


def test_full_pipes_block_nobody():
    """Both sides write megabytes before they read a byte."""
    process = python("import sys; sys.stderr.write('noise\\n' * 500_000); print(len(sys.stdin.read()))")
    process.send("x" * 3_000_000)
    process.close_input()
    assert process.read_line(60) == "3000000"
    assert process.read_line(60) is None
    assert process.read_line(60) is None
    assert process.wait(60) == 0


def test_a_silent_process_times_out_and_is_killed():
    process = python("import time; time.sleep(60)")
    process.send("x" * 3_000_000)  # more than a pipe holds, and nobody reads
    with pytest.raises(JavaTimeout):
        process.read_line(0.1)
    with pytest.raises(JavaTimeout):
        process.wait(0.1)
    process.kill()
    assert process.wait(10) != 0
    process.kill()


def test_the_complaint_is_the_telling_line():
    process = python("raise SystemExit('first\\njava.lang.OutOfMemoryError: heap\\n\\tat Some.method(Some.java)')")
    assert process.read_line(60) is None
    process.wait(60)
    time.sleep(0.2)
    assert process.complaint() == "java.lang.OutOfMemoryError: heap"


def test_leaving_the_launcher_ends_processes_with_their_children(tmp_path):
    program = fake_java(tmp_path, "sleep 60 &\necho $!\nwait")
    with Launcher(Java(str(program), "17", 17)) as launcher:
        child = int(launcher.start([]).read_line(10) or 0)
        assert _alive(child)
    deadline = time.monotonic() + 10
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(child)
    with pytest.raises(JavaError, match="stopped"):
        launcher.start([])


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
