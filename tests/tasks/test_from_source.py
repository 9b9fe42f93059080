"""Translation and summaries of drawn scenes through every stage; with images, on texts alone, and blind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness import check_task
from tiny_models import language_model
from velm import TINY, TINY_MODEL, call

import velm_cli
from velm_cli.data.opening import open_store
from velm_cli.data.store import first_image

KINDS = {
    "translate": ("translations", "BLEU", "en", "toy"),
    "summarise": ("summaries", "ROUGE-Lsum", "article", "highlights"),
}


def files_to_score(folder: str, source: str, target: str) -> list[str]:
    """References and sources of the test part in the form of other people's files."""
    rows = list(map(json.loads, Path("data/shapes", folder, "test.jsonl").read_text().splitlines()))
    for name, key in (("references", target), ("sources", source)):
        lines = [json.dumps({"id": id_of(number, row, folder), "text": row[key]}) for number, row in enumerate(rows, 1)]
        Path(f"{folder}-{name}.jsonl").write_text("\n".join(lines))
    return [f"references={folder}-references.jsonl", f"sources={folder}-sources.jsonl"]


def id_of(number: int, row: dict, folder: str) -> str:
    return row["file_name"] if folder == "translations" else f"test-{number}"


@pytest.mark.parametrize("task", KINDS)
def test_every_stage(tmp_path, monkeypatch, capsys, task):
    monkeypatch.chdir(tmp_path)
    folder, primary, source, target = KINDS[task]
    data = ["dataset=shapes", f"dataset.examples={folder}", *TINY]
    assert call("preprocess", *data) == 0
    score = [f"task={task}", *files_to_score(folder, source, target)]
    checked = check_task(
        task,
        [f"task={task}"],
        data,
        primary=primary,
        score=score,
        blind=("image", "shuffled", "source"),
        predictions="predictions.jsonl",
        capsys=capsys,
    )
    told = json.loads((checked.full / "scores.json").read_text())
    assert told["task"] == task and told["floors"]
    page = (checked.full / "report.html").read_text()
    store = open_store(Path("stores") / f"shapes-{folder}")
    assert json.dumps(store.source(int(store.split("test")[0])))[1:-1] in page, "the page shows the sources"


@pytest.mark.parametrize("task", KINDS)
def test_text_alone_is_validated_and_evaluated(tmp_path, monkeypatch, capsys, task):
    """Without images a translation is still one: vision=none on a store that has none, or that has some."""
    monkeypatch.chdir(tmp_path)
    folder, primary, *_ = KINDS[task]
    data = ["dataset=shapes", f"dataset.examples={folder}", "dataset.images=false", *TINY]
    small = [
        f"task={task}",
        "vision=none",
        "text.width=16",
        "text.mlp_width=24",
        "fusion.layers=1",
        "fusion.mlp_width=8",
    ]
    small += ["run.max_steps=4", "run.validate_every=2", "optim.schedule=inverse_sqrt", "loss.label_smoothing=0.1"]
    assert call("preprocess", *data) == 0
    assert call("train", *data, *small, "name=text") == 0
    lines = map(json.loads, Path("runs/train/text/metrics.jsonl").read_text().splitlines())
    logged = [line for line in lines if line["kind"] == "validation"]
    assert len(logged) == 2 and all(primary.lower() in line for line in logged)
    assert (Path("runs/train/text/samples/step-00000004.txt")).read_text().count("\n") > 3
    assert json.loads(Path("runs/train/text/scores.json").read_text())["primary"] == primary
    capsys.readouterr()
    assert call("eval", "checkpoint=runs/train/text", "name=text", "decode.beams=2") == 0
    assert primary in capsys.readouterr().out
    assert call("eval", "checkpoint=runs/train/text", "eval.blind=image") == 2
    assert "sees no image" in capsys.readouterr().err


def test_text_alone_as_a_prompt_of_a_language_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    language_model(Path("model"), ["the red circle is above a small blue square", "two circles Summary:"])
    data = ["dataset=shapes", "dataset.examples=summaries", *TINY]
    model = ["vision=none", "fusion=none", "text=causal_lm", "text.name=model", "task=summarise", "task.source=prompt"]
    assert call("preprocess", *data) == 0
    assert call("train", *data, *model, "run.max_steps=2", "run.batch_size=4", "name=told") == 0
    assert "takes their answers" not in capsys.readouterr().out
    assert call("eval", "checkpoint=runs/train/told", "decode.beams=2", "name=whole") == 0
    assert call("eval", "checkpoint=runs/train/told", "decode.beams=2", "eval.blind=source", "name=blind") == 0
    texts = [Path("runs/evaluate", name, "predictions.jsonl").read_text() for name in ("whole", "blind")]
    assert texts[0] != texts[1] and len(set(texts[1].splitlines())) > 1
    said = velm_cli.load("runs/train/told").summarise(None, "a red circle. a blue square.")
    assert isinstance(said, str)


def test_masked_words_are_in_the_signature_and_nowhere_else(tmp_path, monkeypatch, capsys):
    """Colours hidden in training are hidden in every evaluation; a task without a source refuses the option."""
    monkeypatch.chdir(tmp_path)
    data = ["dataset=shapes", "dataset.examples=translations", "dataset.images=false", *TINY]
    small = ["task=translate", "vision=none", "text.width=16", "fusion.layers=1", "run.max_steps=2"]
    assert call("preprocess", *data) == 0
    assert call("train", *data, *small, "data.mask_source=colours", "name=hidden") == 0
    assert "masked" in capsys.readouterr().out
    for folder in ("runs/train/hidden", "runs/evaluate/hidden"):
        if folder.startswith("runs/evaluate"):
            assert call("eval", "checkpoint=runs/train/hidden", "name=hidden") == 0
        signature = json.loads(Path(folder, "scores.json").read_text())["signature"]
        assert signature["mask_source"].startswith("colours: ")
    capsys.readouterr()
    assert call("train", "dataset=shapes", *TINY, "data.mask_source=colours") == 2
    assert "task=caption has none" in capsys.readouterr().err


def test_from_python(tmp_path, monkeypatch):
    """`translate` writes what `velm eval` writes; a model of texts alone takes no image, one with images needs one."""
    import velm_cli

    monkeypatch.chdir(tmp_path)
    data = ["dataset=shapes", "dataset.examples=translations", *TINY]
    assert call("preprocess", *data) == 0
    store = open_store(Path("stores/shapes-translations"))
    numbers = list(map(int, store.split("test")))
    for name, vision in (("seeing", []), ("blind", ["vision=none"])):
        small = ["task=translate", *TINY_MODEL, *vision, "run.max_steps=3", "run.precision=fp32", f"name={name}"]
        small = [option for option in small if not (vision and option.startswith("vision."))]
        assert call("train", *data, *small) == 0
        assert (
            call("eval", f"checkpoint=runs/train/{name}", f"name={name}", "run.precision=fp32", "decode.beams=2") == 0
        )
        lines = map(json.loads, Path(f"runs/evaluate/{name}/predictions.jsonl").read_text().splitlines())
        expected = {line["id"]: line["text"] for line in lines}
        model = velm_cli.load(f"runs/train/{name}", precision="fp32")
        assert model.can == ("translate",)
        sources = [store.source(number) for number in numbers]
        images = None if vision else [store.image_bytes(first_image(store, number)) for number in numbers]
        found = model.translate(images, sources, beams=2, max_length=30)
        assert found == [expected[store.example_id(number)] for number in numbers]
        assert isinstance(model.translate(images and images[0], sources[0]), str)
        with pytest.raises(velm_cli.errors.UserError, match=r"give None|one for each text"):
            model.translate(None if images else Path("a.jpg"), sources)
        with pytest.raises(velm_cli.errors.UserError, match="has not learned task=summarise"):
            model.summarise(images, sources)
