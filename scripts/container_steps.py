"""Carry out scripts/Containerfile in a folder that holds a Debian root, where there is no container engine.

    debootstrap --variant=minbase bookworm ROOT
    python scripts/container_steps.py ROOT [--arg NAME=VALUE] [--env NAME] [--skip-build] [-- velm's arguments]

RUN, COPY, ENV, ARG, USER and WORKDIR do what they do in an image; FROM is the root that is given. Then the entry point
runs with the arguments behind `--`, or those of CMD. Needs root and Linux: each step has mounts of its own.
`--env` passes a variable of this machine on, such as PIP_CERT.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent
FILE = SOURCE / "scripts" / "Containerfile"
# What a container engine gives its steps: names of the network, and this machine's own certificates.
OF_THE_MACHINE = ("etc/resolv.conf", "etc/hosts", "usr/local/share/ca-certificates")


def steps(text: str) -> list[tuple[str, str]]:
    """Instructions and what follows them, with continued lines joined and comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", "").splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.strip().partition(" ") for line in joined if line.strip())]


@dataclass
class Image:
    """The root of an image, and what its steps have set."""

    root: Path
    arguments: dict[str, str] = field(default_factory=dict)
    passed: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    user: str = "root"
    folder: str = "/"
    entry: list[str] = field(default_factory=list)
    default: list[str] = field(default_factory=list)

    def step(self, name: str, rest: str, *, build: bool) -> None:
        """Do one instruction; without `build` only remember what it sets. ValueError for one that is not known."""
        match name:
            case "FROM":
                pass
            case "ARG":
                key, _, value = rest.partition("=")
                self.arguments.setdefault(key, value)
            case "ENV":
                key, _, value = rest.partition("=")
                self.environment[key] = value
            case "USER":
                self.user = rest
            case "WORKDIR":
                self.folder = rest
            case "ENTRYPOINT":
                self.entry = json.loads(rest)
            case "CMD":
                self.default = json.loads(rest)
            case "COPY":
                if build:
                    self.copy(rest.split())
            case "RUN":
                if build:
                    self.run(["/bin/sh", "-c", rest])
            case _:
                raise ValueError(f"{name}: no such instruction here")

    def copy(self, words: list[str]) -> None:
        *sources, target = words
        for source in sources:
            to = self.root / target.lstrip("/")
            if (SOURCE / source).is_dir():
                shutil.copytree(SOURCE / source, to, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                to.mkdir(parents=True, exist_ok=True)
                shutil.copy(SOURCE / source, to)

    def run(self, command: list[str]) -> None:
        """CalledProcessError where it fails."""
        settings = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **self.passed, **self.arguments, **self.environment}
        settings["HOME"] = "/root" if self.user == "root" else f"/home/{self.user}"
        there = shlex.join(["/usr/bin/env", "-i", *(f"{key}={value}" for key, value in settings.items()), *command])
        inside = shlex.join(["/bin/sh", "-c", f"cd {shlex.quote(self.folder)} && exec {there}"])
        root = shlex.quote(str(self.root))
        mounts = f"mount -t proc proc {root}/proc && mount --rbind /dev {root}/dev"
        alone = f"{mounts} && exec chroot --userspec={self.user}:{self.user} {root} {inside}"
        subprocess.run(["unshare", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-c", alone], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--env", action="append", default=[], metavar="NAME")
    parser.add_argument("--skip-build", action="store_true", help="run the entry point of a root that is built")
    words = sys.argv[1:]
    at = words.index("--") if "--" in words else len(words)
    given, words = parser.parse_args(words[:at]), words[at + 1 :]
    image = Image(
        given.root.resolve(),
        arguments=dict(word.split("=", 1) for word in given.arg),
        passed={name: os.environ[name] for name in given.env if name in os.environ},
    )
    if not given.skip_build:
        for name in OF_THE_MACHINE:
            if (source := Path("/") / name).is_dir():
                shutil.copytree(source, image.root / name, dirs_exist_ok=True)
            elif source.exists():
                shutil.copy(source, image.root / name)
    for name, rest in steps(FILE.read_text(encoding="utf-8")):
        began = time.monotonic()
        try:
            image.step(name, rest, build=not given.skip_build)
        except subprocess.CalledProcessError as error:
            print(f"{name} {rest}: exit {error.returncode}", file=sys.stderr)
            return 1
        if not given.skip_build:
            print(f"{time.monotonic() - began:6.1f} s  {name} {rest[:90]}", flush=True)
    image.arguments = {}  # they are of the build
    try:
        image.run([*image.entry, *(words or image.default)])
    except subprocess.CalledProcessError as error:
        return error.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
