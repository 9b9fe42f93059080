"""What `velm preprocess` says and writes, from a folder of photos to a store."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from velm_cli.schema import FolderConfig, ManifestConfig, PreprocessConfig, PreprocessRoot, TokenizerConfig
from velm_cli.stages import preprocess


@pytest.fixture
def config(tmp_path) -> PreprocessRoot:
    root = tmp_path / "photos"
    root.mkdir()
    for i in range(12):
        Image.fromarray(np.full((32, 48, 3), 20 * i, np.uint8)).save(root / f"{i:02d}.png")
        (root / f"{i:02d}.txt").write_text(f"a grey picture\nnumber {i}\n")
    (root / "05.png").write_bytes(b"")
    return PreprocessRoot(
        dataset=FolderConfig(root=str(root), store=str(tmp_path / "store"), val_fraction=0.2, test_fraction=0.2),
        tokenizer=TokenizerConfig(min_count=1),
        preprocess=PreprocessConfig(workers=1),
    )


def lines(text: str) -> dict[str, str]:
    """Printed lines as label -> text."""
    return {line[:10].strip(): line[12:] for line in text.splitlines()}


def test_dry_run_counts_and_writes_nothing(config, tmp_path, capsys):
    config.dry_run = True
    assert preprocess.run(config) == 12
    said = lines(capsys.readouterr().out)
    assert sum(int(said[split].split()[0]) for split in ("train", "val", "test")) == 12
    assert sum(int(said[split].split()[2]) for split in ("train", "val", "test")) == 24
    assert said["dry run"].startswith("nothing written")
    assert [entry.name for entry in tmp_path.iterdir()] == ["photos"]


def test_report_and_second_run(config, tmp_path, capsys):
    assert preprocess.run(config) == 11
    first = lines(capsys.readouterr().out)
    assert sum(int(first[split].split()[0]) for split in ("train", "val", "test")) == 11
    assert first["refused"] == f"1: empty 1 (see {tmp_path / 'store' / 'rejects.jsonl'})"
    assert first["store"] == str(tmp_path / "store")
    assert len(first["hash"]) == 64

    assert preprocess.run(config) == 11
    second = lines(capsys.readouterr().out)
    assert second.pop("store") == f"{first.pop('store')} is complete"
    del first["time"], second["time"]
    assert second == first


def test_preview_is_a_picture_of_sixteen_samples_as_training_sees_them(config, capsys):
    config.preview = True
    config.data.crop_scale = 0.3
    preprocess.run(config)
    path = lines(capsys.readouterr().out)["preview"]
    first = np.asarray(Image.open(path))
    assert path.endswith("store/preview.png") and first.shape[2] == 3
    config.data.colour_jitter = 0.5
    preprocess.run(config)
    assert not np.array_equal(first, np.asarray(Image.open(path))), "it follows the options"


def test_questions_are_counted_as_what_they_are(tmp_path, capsys):
    for i in range(3):
        Image.fromarray(np.full((32, 48, 3), 20 * i, np.uint8)).save(tmp_path / f"{i}.png")
    rows = [
        {"id": n, "image": f"{n % 3}.png", "question": f"what is {n}", "answers": ["a", "b"], "split": "train"}
        for n in range(7)
    ]
    (tmp_path / "2.png").write_bytes(b"")
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = PreprocessRoot(
        dataset=ManifestConfig(file=str(tmp_path / "q.jsonl"), store=str(tmp_path / "store")),
        tokenizer=TokenizerConfig(min_count=1, max_source_tokens=2),
        preprocess=PreprocessConfig(workers=1),
    )
    assert preprocess.run(config) == 5
    out = capsys.readouterr().out
    said = lines(out)
    assert said["train"] == " 2 images   5 questions  10 answers"
    assert said["tokens"] == "10, at most 1 per answer"
    assert "0 of 10 answers cut at tokenizer.max_tokens=40" in out
    assert "5 of 5 questions cut at tokenizer.max_source_tokens=2" in out
    assert said["refused"].startswith("1: empty 1")
    config.dry_run = True
    assert preprocess.run(config) == 7
    assert lines(capsys.readouterr().out)["train"] == " 3 images   7 questions  14 answers"
