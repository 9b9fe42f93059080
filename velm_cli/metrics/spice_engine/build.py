"""Compiles the Java files beside this one: `python -m velm_cli.metrics.spice_engine.build`."""

from __future__ import annotations

import os
import subprocess
import tempfile
import zipfile
from pathlib import Path

from velm_cli.metrics.spice_engine import ENGINE_JAR

SERVICE = "META-INF/services/javax.script.ScriptEngineFactory"


def build(target: Path, javac: str = "javac") -> None:
    """Compiles the two classes for Java 8 into the jar `target`: the same classes give the same bytes.

    Raises subprocess.CalledProcessError when `javac` fails.
    """
    sources = sorted((ENGINE_JAR.parent / "velm").glob("*.java"))
    with tempfile.TemporaryDirectory(prefix="velm-engine-") as folder:
        command = [javac, "--release", "8", "-Xlint:-options", "-g:none", "-encoding", "UTF-8", "-d", folder]
        subprocess.run([*command, *map(str, sources)], check=True, capture_output=True)
        entries = {SERVICE: b"velm.EchoEngineFactory\n"}
        entries |= {f"velm/{path.name}": path.read_bytes() for path in sorted(Path(folder, "velm").iterdir())}
    partial = target.with_name(target.name + ".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as jar:  # stored: no zlib version in the bytes
        for name, data in entries.items():
            jar.writestr(zipfile.ZipInfo(name), data)  # ZipInfo's own date is fixed, 1980
    os.replace(partial, target)


if __name__ == "__main__":
    build(ENGINE_JAR)
