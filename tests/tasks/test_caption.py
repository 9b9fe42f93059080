"""Captions of drawn scenes through every stage, and without their images."""

from __future__ import annotations

import json

from harness import check_task, evaluated
from omegaconf import OmegaConf
from velm import TINY, call

from velm_cli.configs import read_config


def test_every_stage(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    done = check_task(
        "caption",
        ["metrics=fast"],
        ["dataset=shapes", *TINY],
        primary="CIDEr",
        score=["references=data/shapes/annotations/captions_val2014.json", "mismatch=ignore", "metrics=fast"],
        blind=("image", "shuffled"),
        evaluation=["metrics=fast", "decode=greedy"],
        capsys=capsys,
    )
    grey = json.loads((done.blind["image"] / "predictions.json").read_text())
    assert len(grey) == 8 and len({each["caption"] for each in grey}) == 1, "all images are the same"
    assert call("eval", f"checkpoint={done.run}", "eval.blind=source") == 2
    assert "eval.blind=source: task=caption has no source that could be left out" in capsys.readouterr().err

    # An older velm's evaluation says neither of which task it is nor that nothing was kept from the model.
    evaluate = ["eval", f"checkpoint={done.run}", "run.precision=fp32", "metrics=fast", "decode=greedy"]
    saved = OmegaConf.create(read_config(done.full / "config.yaml"))
    del saved["task"], saved["eval"]["blind"]
    (done.full / "config.yaml").write_text(OmegaConf.to_yaml(saved))
    assert call(*evaluate, f"name={done.full.name}") == 0
    assert f"{done.full} is complete" in capsys.readouterr().out
    again = evaluated(*evaluate, f"name={done.full.name}", "eval.blind=image", "report.page=false")
    assert again.name == f"{done.full.name}.2"
    page = (done.full / "report.html").read_text()
    assert "eval.blind" not in page and '"decoding"' in page
