"""Where the model looked, word by word, also in captions without any."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from velm_cli.data.pixels import Pixels
from velm_cli.stages import showing

WORDS = {5: " ", 6: "a", 7: " dog", 8: "\n"}


class Tokenizer:
    bos_id, pad_id = 1, 0

    def encode_batch(self, captions):
        return [[token for token, word in WORDS.items() if word in caption] for caption in captions]

    def decode(self, ids):
        return "".join(WORDS[token] for token in ids)


class Task(torch.nn.Linear):
    pixels = Pixels(8)
    model = SimpleNamespace(encode_image=lambda image, feature: image)


def test_a_caption_of_blanks_has_no_words_to_look_for(monkeypatch):
    captions = {1: " ", 2: "a dog", 3: "", 4: "\n \n"}
    batch = SimpleNamespace(
        ids=list(captions), examples=[0, 1, 2, 3], image_XCHW=torch.zeros(1), feature_XSD=None, image_of_BI=None
    )
    batch.to = lambda device: batch
    monkeypatch.setattr(showing, "eval_batches", lambda *_, **__: [batch])
    monkeypatch.setattr(showing, "looks", lambda model, rows, image: torch.ones(*rows.shape, 2, 2))
    monkeypatch.setattr(showing, "kept_box", lambda *_: (0.0, 0.0, 1.0, 1.0))
    store = SimpleNamespace(image_bytes=lambda image: b"", images_of=lambda examples: (examples, None))
    found = dict(showing._attention(Task(1, 1), store, Tokenizer(), range(4), captions, None))
    assert list(found) == [2]
    assert found[2].words == ["a", "dog"] and found[2].maps_THW.shape == (2, 2, 2)
