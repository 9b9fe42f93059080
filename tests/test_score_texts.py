"""`velm score task=translate` and `task=summarise`: plain text, JSON lines, two systems, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sacrebleu
from velm import call

from velm_cli.files import read_sealed

GERMAN = [f"Ein Hund, Nummer {n}, läuft über das Gras." for n in range(6)]
ENGLISH = [f"A dog, number {n}, runs on grass." for n in range(6)]
SYSTEM = [text.replace("läuft", "rennt") if n % 2 else text for n, text in enumerate(GERMAN)]


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, texts in (("ref.de", GERMAN), ("src.en", ENGLISH), ("sys.txt", SYSTEM), ("short.txt", SYSTEM[:-1])):
        Path(name).write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    for name, texts, key in (
        ("ref.jsonl", GERMAN, "text"),
        ("sys.jsonl", SYSTEM, "text"),
        ("src.jsonl", ENGLISH, "text"),
    ):
        lines = [json.dumps({"id": f"s{n}", key: text}) for n, text in enumerate(texts)]
        Path(name).write_text("\n".join(lines))


def test_plain_text_and_json_lines_give_the_library_s_scores(files, capsys):
    plain = ["score", "task=translate", "predictions=sys.txt", "references=ref.de", "sources=src.en", "language=de"]
    assert call(*plain, "out=plain") == 0
    saved = read_sealed(Path("plain/scores.json"))
    assert 100 * saved["BLEU"] == pytest.approx(sacrebleu.corpus_bleu(SYSTEM, [GERMAN]).score)
    assert 100 * saved["chrF"] == pytest.approx(sacrebleu.corpus_chrf(SYSTEM, [GERMAN]).score)
    assert {"BLEU", "BLEU_lc", "chrF", "floors", "signature", "intervals"} <= saved.keys()
    assert saved["floors"]["copy the source"]["BLEU"] < 0.2
    assert "copy the source" in capsys.readouterr().out and Path("plain/report.html").exists()
    named = ["score", "task=translate", "predictions=sys.jsonl", "references=ref.jsonl", "sources=src.jsonl"]
    assert call(*named, "language=de", "out=named", "vs=ref.jsonl") == 0
    again = read_sealed(Path("named/scores.json"))
    assert [again[key] for key in ("BLEU", "BLEU_lc", "chrF", "floors")] == [
        saved[key] for key in ("BLEU", "BLEU_lc", "chrF", "floors")
    ]
    assert again["comparison"]


def test_summaries(files, capsys):
    assert call("score", "task=summarise", "predictions=src.en", "references=src.en", "out=sums") == 0
    saved = read_sealed(Path("sums/scores.json"))
    assert saved["ROUGE-1"] == saved["ROUGE-2"] == saved["ROUGE-Lsum"] == 1 and saved["floors"] == {}
    assert "sources=FILE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["predictions=short.txt", "references=ref.de"], "has 5 captions and the references 6"),
        (["predictions=sys.jsonl", "references=ref.de"], "give both with ids, or both in order"),
        (["predictions=sys.txt", "references=ref.de", "sources=src.jsonl"], "sources do not go with the references"),
        (["predictions=sys.txt", "references=ref.de", "fold=3"], "fold=3 has no effect with task=translate"),
        (["predictions=none.txt", "references=ref.de"], "does not exist"),
    ],
)
def test_mistakes(files, capsys, words, said):
    assert call("score", "task=translate", *words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert said in lines[-1] and len(lines) == 1


@pytest.mark.parametrize(
    ("task", "noun"), [("translate", "sentence"), ("summarise", "document"), ("chat", "conversation")]
)
def test_what_is_missing_is_called_what_it_is(files, capsys, task, noun):
    Path("few.jsonl").write_text(json.dumps({"id": "s0", "text": SYSTEM[0]}))
    assert call("score", f"task={task}", "predictions=few.jsonl", "references=ref.jsonl", "out=few") == 2
    said = capsys.readouterr().err
    assert f"no prediction for 5 {noun}s (s1, s2, s3, s4, s5)" in said and "image" not in said
