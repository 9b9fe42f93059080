"""Libraries' chatter is off the console; what matters of it is a line of velm's own."""

import os
import subprocess
import sys

import pytest
from tiny_models import language_model
from transformers import BertConfig, BertForMaskedLM

from velm_cli.models.hub import load_pretrained
from velm_cli.quiet import LOUD

WORDS = ["a red circle above two blue stars"]


@pytest.fixture
def bert(tmp_path):
    """BERT with the head that it was pretrained with, which velm does not use."""
    BertForMaskedLM(
        BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    ).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.mark.parametrize("loud", [False, True])
def test_loading_says_nothing_unless_developers_ask(bert, loud):
    code = (
        "import warnings; from velm_cli.quiet import quiet\n"
        f"{'' if loud else 'quiet()'}\n"
        "from velm_cli.models.hub import load_pretrained\n"
        f"load_pretrained('text', {str(bert)!r}, 'pretrained', 'AutoModel', add_pooling_layer=False)\n"
        "warnings.warn('it will be removed in version 9', FutureWarning)\n"
    )
    env = {name: value for name, value in os.environ.items() if name not in LOUD}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if loud:
        assert "LOAD REPORT" in done.stderr and "will be removed" in done.stderr
    else:
        assert (done.stdout, done.stderr) == ("", "")


def test_weights_that_the_file_lacks_are_told(bert, capsys):
    load_pretrained("text", str(bert), "pretrained", "AutoModel", add_pooling_layer=True)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:")]
    assert "2 weights are not in its files and are drawn anew (pooler.dense.bias, pooler.dense.weight)" in line
    load_pretrained("text", str(bert), "pretrained", "AutoModel", add_pooling_layer=False)
    assert "note:" not in capsys.readouterr().out


def test_a_whole_model_is_loaded_without_a_word(tmp_path, capsys):
    language_model(tmp_path / "lm", WORDS)
    capsys.readouterr()
    load_pretrained("text", str(tmp_path / "lm"), "pretrained", "AutoModelForCausalLM")
    assert "note:" not in capsys.readouterr().out
