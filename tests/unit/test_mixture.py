"""Mixtures: parts are checked, have their turns, share what they learn by and keep what is theirs."""

from __future__ import annotations

from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from velm import call

from velm_cli import mixture, schema
from velm_cli.compose import loss_named
from velm_cli.data.batch import Batch, Columns
from velm_cli.data.concepts import ConceptLabels
from velm_cli.data.loader import TrainLoader
from velm_cli.data.mixed import MixedLoader
from velm_cli.data.opening import open_store
from velm_cli.data.order import Share
from velm_cli.data.pixels import Pixels
from velm_cli.data.together import RenamedConcepts, Together
from velm_cli.errors import UserError
from velm_cli.tasks import task_of

CAPTIONS, QUESTIONS, PAIRS = (
    {"store": "seen", "task": "caption"},
    {"store": "asked", "task": "vqa"},
    {"store": "seen", "task": "retrieve", "weight": 0.5},
)


def config_of(*parts: dict, task: schema.TaskConfig | None = None, **options) -> schema.TrainRoot:
    config = schema.TrainRoot(
        dataset=schema.MixConfig(parts=[schema.MixPart(**part) for part in parts]),
        task=task or schema.MixTaskConfig(),
        vision=schema.ViTConfig(image_size=16, patch_size=8, width=16, layers=1, heads=2),
        text=schema.TransformerConfig(width=16, layers=1, heads=2),
        fusion=schema.CrossModalConfig(layers=1, heads=2),
        **options,
    )
    mixture.settle(config, loss_named)
    return config


# ------------------------------------------------------------------------------------- the config


def test_a_part_gets_a_name_and_all_options_of_its_task_and_loss():
    config = config_of(CAPTIONS, QUESTIONS | {"options": {"answer": "generate"}, "loss": {"label_smoothing": 0.1}})
    caption, vqa = mixture.parts_of(config)
    assert (caption.name, vqa.name) == ("caption", "vqa")
    assert caption.config.loss == loss_named("caption")
    assert vqa.config.task == schema.VqaTaskConfig(answer=schema.Answer.generate)
    # What is written is learned by L_text, as a run with task.answer=generate alone has it.
    assert (vqa.config.loss.alpha, vqa.config.loss.gamma, vqa.config.loss.label_smoothing) == ("1", "0", 0.1)
    again = config_of(*({**vars(part)} for part in config.dataset.parts))
    assert again == config


@pytest.mark.parametrize(
    ("parts", "task", "said"),
    [
        ([], None, "dataset=mix needs its parts"),
        ([CAPTIONS], None, "a mixture has two or more"),
        ([CAPTIONS, {"task": "vqa"}], None, "number 2: store is not set"),
        ([CAPTIONS, {"store": "a"}], None, "number 2: task=None: with task=mix each part has one of"),
        ([CAPTIONS, QUESTIONS | {"task": "vqaa"}], None, "did you mean 'vqa'"),
        ([CAPTIONS, QUESTIONS | {"task": "mix"}], None, "each part has one of"),
        ([CAPTIONS, QUESTIONS | {"weight": 0}], None, "weight=0: must be above 0"),
        ([CAPTIONS, QUESTIONS | {"weight": float("nan")}], None, "weight=nan: must be above 0"),
        ([CAPTIONS, QUESTIONS | {"batch_size": -1}], None, "batch_size=-1"),
        ([CAPTIONS, QUESTIONS | {"name": "../x"}], None, "name=../x"),
        ([CAPTIONS, QUESTIONS | {"options": {"anser": 1}}], None, "did you mean 'answer'"),
        ([CAPTIONS, QUESTIONS | {"options": {"kind": "caption"}}], None, "options has no 'kind'"),
        ([CAPTIONS, QUESTIONS | {"options": {"answer": "shout"}}], None, "answer"),
        ([CAPTIONS, QUESTIONS | {"loss": {"_target_": "os.system"}}], None, "loss has no '_target_'"),
        ([CAPTIONS, CAPTIONS], None, "both called caption"),
        ([CAPTIONS, CAPTIONS | {"name": "b", "loss": {"alpha": "2"}}], None, "with other options"),
        ([CAPTIONS, CAPTIONS], schema.CaptionTaskConfig(), "are for task=mix"),
    ],
)
def test_mistakes_get_a_line(parts, task, said):
    with pytest.raises(UserError) as error:
        config_of(*parts, task=task)
    assert said in str(error.value)


def problems(config: schema.TrainRoot) -> str:
    from velm_cli.validate import model_problems

    return "\n".join(model_problems(config))


def test_what_holds_of_a_run_holds_of_its_parts():
    assert not problems(config_of(CAPTIONS, QUESTIONS, PAIRS))
    assert "part caption: loss.alpha=learned" in problems(
        config_of(CAPTIONS | {"loss": {"alpha": "learned"}}, QUESTIONS)
    )
    assert "no such part" in problems(config_of(CAPTIONS, QUESTIONS, task=schema.MixTaskConfig(primary="vqaa")))
    assert "part retrieve: task=retrieve finds by L_joint" in problems(
        config_of(CAPTIONS, PAIRS | {"loss": {"gamma": 0}})
    )
    masked = CAPTIONS | {"loss": {"text": "masked"}}
    assert "one model does one of them" in problems(config_of(masked, PAIRS))
    written = QUESTIONS | {"options": {"answer": "generate", "source_layers": 0}}
    assert not problems(config_of(CAPTIONS, written))
    assert "loss.alpha=2 has no effect" in problems(config_of(CAPTIONS, PAIRS, loss=schema.LossConfig(alpha="2")))
    alone = schema.TrainRoot(**(vars(config_of(CAPTIONS, PAIRS)) | {"dataset": schema.ShapesConfig()}))
    assert "say dataset=mix" in problems(alone)


# --------------------------------------------------------------------------------------- the order


def loader_of(shares: dict[str, float]) -> MixedLoader:
    return MixedLoader(dict.fromkeys(shares), shares)  # type: ignore[arg-type]


def test_turns_are_in_proportion_over_every_stretch_and_depend_on_nothing_but_the_number():
    assert loader_of({"a": 1, "b": 1, "c": 1}).turns(7).tolist() == [0, 1, 2, 0, 1, 2, 0]
    weights = {"a": 5.0, "b": 2.5, "c": 0.1, "d": 1.7}
    turns, total = loader_of(weights).turns(20_000), sum(weights.values())
    for end in (1, 10, 333, 20_000):
        found = np.bincount(turns[:end], minlength=4)
        assert np.abs(found - end * np.array(list(weights.values())) / total).max() <= 2
    for few in (1, 17, 4_097):
        assert np.array_equal(loader_of(weights).turns(few), turns[:few])


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Drawn scenes with captions, and with questions."""
    folder = tmp_path_factory.mktemp("mixture")
    few = ["dataset.num_train=24", "dataset.num_val=6", "dataset.num_test=0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("preprocess", "dataset=shapes", *few, "dataset.store=seen") == 0
        assert call("preprocess", "dataset=shapes", *few, "dataset.questions=true", "dataset.store=asked") == 0
        yield SimpleNamespace(folder=folder, seen=open_store(folder / "seen"), asked=open_store(folder / "asked"))


def test_a_part_has_the_batches_that_it_would_have_alone_wherever_one_begins(stores):
    options = schema.TokenizerConfig(min_count=1)

    def loader(store, rank=0, world=1):
        columns = Columns(store.tokens(options), 2)
        return TrainLoader(
            store, columns, schema.DataConfig(), batch_size=6, pixels=Pixels(8), seed=3, share=Share(rank, world)
        )

    def mixed(rank=0, world=1):
        each = {"seen": loader(stores.seen, rank, world), "asked": loader(stores.asked, rank, world)}
        return MixedLoader(each, {"seen": 1.0, "asked": 2.0})

    def told(batch):
        return batch.part, batch.ids, batch.tokens_BKT.tolist(), batch.image_XCHW.tolist()

    first = [told(batch) for batch in islice(mixed().batches(), 12)]
    for name, store in (("seen", stores.seen), ("asked", stores.asked)):
        own = [batch for batch in first if batch[0] == name]
        alone = [(name, *told(batch)[1:]) for batch in islice(loader(store).batches(), len(own))]
        assert own == alone
    for start in (1, 5, 8):
        assert [told(batch) for batch in islice(mixed().batches(start), 12 - start)] == first[start:]
    ranks = [[batch.part for batch in islice(mixed(rank, 2).batches(), 12)] for rank in range(2)]
    assert ranks[0] == ranks[1] == [batch[0] for batch in first]
    assert mixed().batches_per_epoch == len(stores.seen.split("train")) // 6 + len(stores.asked.split("train")) // 6


# -------------------------------------------------------------------------------------- the learner


def learner_of(config: schema.TrainRoot, vocab: int = 20):
    tokenizer = SimpleNamespace(vocab_size=vocab, mask_id=0, never_written=())
    spaces = {"vqa/answers": ["no", "yes", "two"], "vqa/concepts": [], "caption/concepts": ["star", "ring"]}
    torch.manual_seed(0)
    return task_of(config.task).learner(config, spaces, tokenizer, {})


def test_the_model_is_registered_once_and_each_task_has_its_head():
    learner = learner_of(config_of(CAPTIONS | {"loss": {"beta": 0.1}}, QUESTIONS, PAIRS))
    keys = set(learner.state_dict())
    assert {key.split(".")[0] for key in keys} == {"model", "heads"}
    assert {".".join(key.split(".")[1:3]) for key in keys if key.startswith("heads")} == {
        "caption.image_loss", "vqa.label_head", "retrieve.joint_loss",
    }  # fmt: skip
    names = [name for name, _ in learner.named_parameters(remove_duplicate=False)]
    assert len(names) == len({id(parameter) for parameter in learner.parameters()})
    assert learner.model.text.causal, "one that writes captions reads forwards only"
    assert not learner_of(config_of(QUESTIONS, QUESTIONS | {"name": "b"})).model.text.causal


def test_nothing_is_frozen_that_one_of_the_tasks_reaches():
    config = config_of(QUESTIONS, PAIRS)
    learner = learner_of(config)
    assert all(parameter.requires_grad for parameter in learner.model.fusion.parameters()), "retrieval has no fusion"
    assert not learner.model.output_bias.requires_grad, "neither predicts words"
    assert learner_of(config_of(CAPTIONS, PAIRS)).model.output_bias.requires_grad


def test_training_and_evaluation_mode_reach_the_learners():
    learner = learner_of(config_of(CAPTIONS, QUESTIONS))
    assert learner.of("vqa").training
    assert not learner.eval().of("vqa").training
    assert learner.train().of("caption").training


def batch_of(part: str, vocab: int = 20, examples: int = 3) -> Batch:
    draw = torch.Generator().manual_seed(len(part))
    tokens_BKT = torch.randint(4, vocab, (examples, 1, 5), generator=draw)
    more = {}
    if part == "vqa":
        more["source_BL"] = torch.randint(4, vocab, (examples, 6), generator=draw)
        more["source_lengths_B"] = torch.full((examples,), 6)
        more["labels"] = {"answers": torch.eye(3)[:examples]}
    batch = Batch.of(
        tokens_BKT, torch.full((examples, 1), 5), image_XCHW=torch.randn(examples, 3, 16, 16, generator=draw), **more
    )
    batch.part = part
    return batch


def test_terms_are_of_the_part_and_a_step_of_several_micro_batches_is_their_mean():
    from velm_cli.learners.interface import Moment

    learner = learner_of(config_of(CAPTIONS, QUESTIONS, PAIRS)).eval()
    batches = [batch_of("caption"), batch_of("vqa"), batch_of("caption"), batch_of("retrieve")]
    counts = [learner.counts(batch) for batch in batches]
    assert all(set(count) == set(learner.weights) for count in counts)
    assert counts[1]["vqa/joint"] == 3 and counts[1]["caption/text"] == 0
    share = learner.shares(batches)
    assert (share["caption/text"], share["vqa/joint"], share["retrieve/joint"]) == (0.5, 0.25, 0.25)
    terms = [learner(batch, Moment(learner.active)) for batch in batches]
    assert [set(term) for term in terms] == [{"caption/text"}, {"vqa/joint"}, {"caption/text"}, {"retrieve/joint"}]
    total = {name: sum(count[name] for count in counts) for name in learner.active}
    together = sum(
        share[name] * float(term.sum.detach()) / total[name] for each in terms for name, term in each.items()
    )
    alone = [float(term.sum.detach()) / term.count for each in terms for term in each.values()]
    assert together == pytest.approx(sum(alone) / 4, rel=1e-5)


def test_a_model_with_an_encoder_of_sources_writes_captions_too():
    from velm_cli.learners.interface import Moment

    written = QUESTIONS | {"options": {"answer": "generate", "source_layers": 1}}
    learner = learner_of(config_of(CAPTIONS, written)).eval()
    assert learner.model.source is not None
    for part in ("caption", "vqa"):
        (term,) = learner(batch_of(part), Moment(learner.active)).values()
        assert torch.isfinite(term.sum)


# ---------------------------------------------------------------------------------------- the labels


def test_concepts_of_several_stores_are_labels_by_their_words(stores):
    together = Together({"a": stores.seen, "b": stores.asked})
    names = together.concept_names
    assert len(names) == len(set(names)) and set(names) == {*stores.seen.concept_names, *stores.asked.concept_names}
    store = stores.asked
    labels = ConceptLabels(RenamedConcepts(store, store.concept_names, names), len(names))
    for example in range(0, len(store), 7):
        named, weights = labels.row(example)
        assert {names[label] for label in named} == {store.concept_names[label] for label in store.concepts(example)}
        assert np.all(weights == 1) and np.all(np.diff(named.astype(int)) > 0)


def test_training_examples_of_all_stores_are_numbered_through(stores):
    together = Together({"a": stores.seen, "b": stores.asked, "c": stores.seen})
    seen, asked = (store.split("train") for store in (stores.seen, stores.asked))
    assert len(together.split("train")) == len(seen) + len(asked), "a store of two parts counts once"
    assert together.targets(len(seen)) == stores.asked.targets(int(asked[0]))
    assert together.targets(len(seen) - 1) == stores.seen.targets(int(seen[-1]))
    texts = list(together.training_texts())
    assert texts == [*stores.seen.training_texts(), *stores.asked.training_texts()]
    assert together.hash != Together({"a": stores.asked, "b": stores.seen}).hash
