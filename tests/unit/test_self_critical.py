"""Self-critical training: samples follow the model, rewards are CIDEr-D, and what scores well becomes likelier."""

from __future__ import annotations

import json

import pytest
import torch
from velm import TINY, TINY_MODEL, call

from velm_cli.metrics.overlap import Corpus, cider
from velm_cli.models.decoding import sample
from velm_cli.models.velm import VelmModel
from velm_cli.objectives.self_critical import SelfCritical
from velm_cli.schema import AddConfig, CrossModalConfig, TransformerConfig, ViTConfig

BOS, EOS, PAD = 1, 2, 0
WORDS = ["<pad>", "<bos>", "<eos>", *"abcdefgh"]
REFERENCES = {
    7: ["a b c", "a b c d", "a b"],
    3: ["e f g", "e f", "h f g e"],
    5: ["a h", "h a"],
    9: ["c c d", "d c"],
}


class Fixed:
    """Says EOS with probability 1/4 and the words 3 and 4 with 1/2 and 1/4, after whatever."""

    def step(self, tokens_NT, memory, state=None):
        logits_NV = torch.tensor([0.0, 0.0, 0.25, 0.5, 0.25]).log().expand(len(tokens_NT), -1)
        return logits_NV, ()


def test_samples_are_drawn_from_the_model():
    torch.manual_seed(torch.seed() % 2**31)
    tokens_NT, lengths_N = sample(
        Fixed(), (torch.zeros(2, 1),), images=2, samples=4000, max_length=5, bos_id=BOS, eos_id=EOS, banned=[PAD]
    )
    assert len(tokens_NT) == len(lengths_N) == 8000
    first_N = tokens_NT[:, 0]
    for token, probability in ((EOS, 0.25), (3, 0.5), (4, 0.25)):
        assert abs((first_N == token).float().mean() - probability) < 0.03  # six standard deviations
    assert abs((lengths_N == 2).float().mean() - 0.75 * 0.25) < 0.03
    assert lengths_N.max() == 5
    for row, length in zip(tokens_NT[:200].tolist(), lengths_N[:200].tolist(), strict=True):
        assert EOS not in row[: length - 1]
        assert set(row[length:]) <= {EOS}
        assert length == 5 or row[length - 1] == EOS


def model_and_critic(fusion, samples: int = 6) -> tuple[VelmModel, SelfCritical]:
    torch.manual_seed(torch.seed() % 2**31)
    model = VelmModel(
        vision=ViTConfig(image_size=16, patch_size=8, width=16, layers=1, heads=2),
        text=TransformerConfig(width=16, layers=1, heads=2, dropout=0.1),
        fusion=fusion,
        vocab_size=len(WORDS),
    )
    critic = SelfCritical(
        REFERENCES,
        WORDS,
        bos_id=BOS,
        eos_id=EOS,
        banned=[PAD, BOS],
        samples=samples,
        max_length=6,
        device=torch.device("cpu"),
    )
    return model, critic


@pytest.mark.parametrize("fusion", [AddConfig(), CrossModalConfig(layers=1, heads=2)], ids=lambda f: f.kind)
def test_the_loss_is_its_formula(fusion, monkeypatch):
    model, critic = model_and_critic(fusion)
    model.eval()
    records = [5, 7]
    memory = model.memory(model.encode_image(torch.randn(2, 3, 16, 16)))
    drawn = critic._draw(model, memory, 2)
    monkeypatch.setattr(critic, "_draw", lambda *_: drawn)
    loss, mean_reward = critic(model, memory, records)

    tokens, lengths = drawn[0].tolist(), drawn[1].tolist()
    captions = [" ".join(WORDS[token] for token in row[:length]) for row, length in zip(tokens, lengths, strict=True)]
    ended = {record: [f"{caption} <eos>" for caption in group] for record, group in REFERENCES.items()}
    rewards = torch.zeros(12)
    for number, caption in enumerate(captions):
        answers = {record: group[0] for record, group in ended.items()} | {records[number // 6]: caption}
        each = dict(zip(ended, cider(Corpus(ended, answers))[1], strict=True))
        rewards[number] = each[records[number // 6]]
    assert mean_reward.item() == pytest.approx(rewards.mean().item(), abs=1e-5)
    wanted = 0.0
    for image in range(2):
        group = rewards[6 * image : 6 * image + 6]
        for k in range(6):
            baseline = (group.sum() - group[k]) / 5
            row, length = tokens[6 * image + k], lengths[6 * image + k]
            inputs = torch.tensor([[BOS, *row[: length - 1]]])
            alone = tuple(_row(part, image) for part in memory)
            fused_NTD, _ = model.fusion.read(model.text, inputs, alone)
            logits_TV = model.logits(fused_NTD)[0]
            possible = logits_TV[:, [token for token in range(len(WORDS)) if token not in (PAD, BOS)]]
            log_p = logits_TV[range(length), row[:length]].sum() - possible.logsumexp(-1).sum()
            wanted = wanted - (group[k] - baseline) * log_p
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-4)


def _row(part, image: int):
    if part is None or isinstance(part, torch.Tensor):
        return part if part is None else part[image : image + 1]
    return tuple(_row(p, image) for p in part)


def test_rewards_rise():
    model, critic = model_and_critic(CrossModalConfig(layers=1, heads=2), samples=8)
    model.train()
    images = torch.randn(4, 3, 16, 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rewards = []
    for _ in range(160):
        loss, reward = critic(model, model.memory(model.encode_image(images)), list(REFERENCES))
        assert model.training
        optimizer.zero_grad()
        (loss / 32).backward()
        optimizer.step()
        rewards.append(reward.item())
    assert sum(rewards[-10:]) > 2 * sum(rewards[:10])


def test_a_trained_model_goes_on_by_reward(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call("preprocess", "dataset=shapes", *TINY) == 0
    assert call("train", "dataset=shapes", *TINY, *TINY_MODEL, "run.max_steps=4", "metrics=fast", "name=words") == 0
    command = ["finetune", "checkpoint=runs/train/words", "loss.text=self_critical", "loss.samples=3", "metrics=fast"]
    command += ["run.batch_size=4", "run.log_every=1", "run.checkpoint_every=2", "name=reward"]
    assert call(*command, "run.max_steps=2") == 0
    assert call(*command, "run.max_steps=4") == 0, "and goes on where it stopped"
    assert "resumed at step 2" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "runs/finetune/reward/metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in trained] == [1, 2, 3, 4]
    assert all(0 <= line["reward"] <= 10 for line in trained)
    validated = [line for line in lines if line["kind"] == "validation"]
    assert validated and all(0 < line["loss"] < 20 for line in validated), "validation is of the captions, as ever"
    assert call("eval", "checkpoint=runs/finetune/reward", "metrics=fast") == 0


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["tokenizer=bpe"], "loss.text=self_critical counts words: it needs tokenizer=word"),
        (["loss.samples=1"], "loss.samples=1: must be at least 2"),
        (["vision=none", "fusion=none"], "it needs a vision encoder"),
        (["loss.scheduled_sampling=0.5"], "of no use with loss.text=self_critical"),
    ],
)
def test_what_cannot_be_rewarded_is_refused(options, line, capsys):
    assert call("train", "dataset=shapes", "loss.text=self_critical", *options, "dry_run=true") == 2
    assert line in capsys.readouterr().err
