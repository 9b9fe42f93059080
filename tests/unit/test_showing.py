"""Where the model looked, word by word or answer by answer, also of texts without any."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from test_attribution import Pieces, of_images, writer

from velm_cli.data.batch import Columns
from velm_cli.schema.tasks import Looking
from velm_cli.stages import showing


def shown(monkeypatch, texts, learner, looking=Looking.auto):
    """What is yielded of examples whose predictions are `texts`."""
    batch = of_images("convnet", len(texts))
    store = SimpleNamespace(
        most_images=1,
        image_bytes=lambda image: b"",
        images_of=lambda examples: (examples, np.zeros((1, 1), int)),
        example_id=lambda index: f"e{index}",
    )

    def batches(_store, _columns, numbers, **_):
        for number in numbers:
            one = of_images("convnet", 1)
            one.image_XCHW[:] = batch.image_XCHW[number]
            yield SimpleNamespace(
                ids=[f"e{number}"], examples=[number], image_of_BI=None, to=lambda device, one=one: one
            )

    monkeypatch.setattr(showing, "eval_batches", batches)
    monkeypatch.setattr(showing, "kept_box", lambda *_: (0.0, 0.0, 1.0, 1.0))
    predicted = {f"e{number}": text for number, text in enumerate(texts)}
    numbers = np.arange(len(texts))
    return dict(showing._looked(learner, store, Pieces(), numbers, predicted, Columns(), (), looking))


def test_a_caption_of_blanks_has_no_words_to_look_for(monkeypatch):
    found = shown(monkeypatch, [" ", "a dog ", "", "\n \n"], writer("convnet", "gru", "add"))
    assert list(found) == ["e1"]
    assert found["e1"].words == ["a", "dog"] and found["e1"].maps_THW.shape == (2, 8, 8)
    assert found["e1"].method == "occlusion"


def test_the_method_is_as_asked_and_what_cannot_be_gets_a_note(monkeypatch, capsys):
    learner = writer("convnet", "gru", "add")
    (found,) = shown(monkeypatch, ["a dog "], learner, Looking.gradient).values()
    assert found.method == "gradient" and torch.tensor(found.maps_THW).sum((1, 2)).le(1 + 1e-5).all()
    assert not shown(monkeypatch, ["a dog "], learner, Looking.attention)
    assert "report.looking=attention" in capsys.readouterr().out
