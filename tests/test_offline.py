"""Without the network, every choice that names pretrained weights says in one line how to give a folder or file."""

import re
from pathlib import Path

import pytest
from velm import TINY, call

from velm_cli.compose import conf_dir


def needs_weights(file: Path) -> bool:
    text = file.read_text()
    return bool(re.search(r"/_kind/(vision/(torchvision|transformers|regions)|text/(causal_lm|bert))@", text))


CHOICES = [file for group in ("vision", "text") for file in sorted((conf_dir() / group).glob("*.yaml"))]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A store, empty caches, and a network where nobody answers."""
    folder = tmp_path_factory.mktemp("offline")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("TORCH_HOME", "HF_HOME", "HF_HUB_CACHE"):
            patch.setenv(name, str(folder / "caches"))
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            patch.setenv(name, "http://127.0.0.1:9")
        patch.setenv("HF_HUB_OFFLINE", "1")
        assert call("preprocess", "dataset=shapes", *TINY) == 0
        yield folder


@pytest.mark.parametrize("file", [*filter(needs_weights, CHOICES)], ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_pretrained_name_fails_with_one_line(file, place, capsys):
    group, choice = file.parent.name, file.stem
    assert call("train", "dataset=shapes", *TINY, f"{group}={choice}", "name=offline") == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line and line.startswith("velm: "), line
    assert re.search(rf"{group}\.(weights=PATH|name=FOLDER)", line), line


def test_the_choices_are_all_there():
    assert sum(map(needs_weights, CHOICES)) == 16 + 3
