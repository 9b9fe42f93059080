"""What a task reads of a store: its texts as tokens, its label spaces, and from them the columns of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from velm_cli.data.batch import CONCEPTS, Columns, Texts, concept_labels
from velm_cli.data.chat_template import ChatFormat, chosen_template
from velm_cli.data.concepts import HasConcepts
from velm_cli.data.conversations import is_conversation
from velm_cli.data.masked_words import MaskedTexts, words_to_mask
from velm_cli.data.prompts import Prompted
from velm_cli.data.store import Store
from velm_cli.data.talk_tokens import TalkTokens, talk_tokens
from velm_cli.data.together import RenamedConcepts
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.data.tokens import Tokens
from velm_cli.errors import UserError
from velm_cli.schema import ChatTaskConfig, TooLong, TrainRoot
from velm_cli.tasks import Task, task_of
from velm_cli.tasks.chat import ChatTask
from velm_cli.tasks.spaces import Spaces

# Data whose examples have the source that a task reads.
SOURCES = {
    "vqa": "dataset=vqa, dataset=shapes dataset.questions=true",
    "translate": "dataset=multi30k, dataset=shapes dataset.examples=translations",
    "summarise": "dataset=documents, dataset.summarise=true with captions",
}
EVERY = 1 << 20  # targets of an example, where it needs all of them


@dataclass(frozen=True, slots=True)
class TaskData:
    """A store as one task sees it."""

    task: Task[Any]
    store: Store
    spaces: Spaces
    tokenizer: Tokenizer
    targets: Tokens | None  # None where they are not needed to predict
    sources: Texts | None  # None where the task takes no source
    talks: TalkTokens | None = None  # of a task whose examples are conversations

    @classmethod
    def of(cls, config: TrainRoot, store: Store, tokenizer: Tokenizer | None, spaces: Spaces | None = None) -> TaskData:
        """For training. `tokenizer`: one that exists already; None: its vocabulary is learned from the store.

        `spaces`: those that the store shares with others; None: its own."""
        task, options = task_of(config.task), config.tokenizer
        targets = store.tokens(options) if tokenizer is None else store.encode(tokenizer, options.max_tokens)
        tokenizer = targets.tokenizer
        sources = _sources(task, store, tokenizer, config)
        spaces = task.spaces(config, store) if spaces is None else spaces
        if not isinstance(config.task, ChatTaskConfig):
            return cls(task, store, spaces, tokenizer, targets, sources)
        tokenizer = tokenizer.with_template(chosen_template(config.task.template, tokenizer))
        talks = _talks(task, store, tokenizer)
        return cls(task, store, spaces, tokenizer, targets, sources, talks)

    @classmethod
    def to_predict(
        cls, config: TrainRoot, task: Task[Any], store: Store, tokenizer: Tokenizer, spaces: Spaces
    ) -> TaskData:
        """For a trained model with this tokenizer and these label spaces."""
        targets = store.encode(tokenizer, config.tokenizer.max_tokens) if task.needs.targets_given else None
        talks = _talks(task, store, tokenizer) if task.needs.talks else None
        return cls(task, store, spaces, tokenizer, targets, _sources(task, store, tokenizer, config), talks)

    @property
    def texts(self) -> Tokens:
        """The targets, which there are where a run is trained."""
        assert self.targets is not None
        return self.targets

    def to_learn(self, per_example: int, concepts: int) -> Columns:
        """Of batches that losses are computed of: up to `per_example` targets an example, none of a judge."""
        labels = concept_labels(self._concepts, concepts) | self.task.labels(self.store, self.spaces)
        if self.talks is not None:
            return Columns(labels=labels, talks=self.talks)
        return Columns(None if self.task.options.judges else self.targets, per_example, self.sources, labels)

    @property
    def _concepts(self) -> HasConcepts:
        """The store's, as labels by the list of words that it shares with other stores, if it does."""
        names, own = self.spaces.get(CONCEPTS), self.store.concept_names
        if not names or list(names) == own:
            return self.store
        return RenamedConcepts(self.store, own, names)

    def given(self) -> Columns:
        """Of batches that predictions are made of: no target, but where it is part of what is given."""
        if self.task.needs.targets_given:
            return Columns(self.targets, EVERY, self.sources)
        return Columns(source=self.sources, talks=self.talks, prompts=True)


def made_of(store: str, parts: Sequence[TaskData]) -> dict[str, str]:
    """What a run that goes on has to find again: digests of its store, its tokenizer and, if it has one, template."""
    found = {"store": store, "tokenizer": parts[0].tokenizer.digest}
    talking = [part.talks for part in parts if part.talks is not None]
    return found | ({"template": talking[0].form.template_digest} if talking else {})


def refuse_other_examples(task: Task[Any], store: Store) -> None:
    """UserError where the examples of the store are not what the task is about."""
    asks = len(store.all_sources) > 0
    talks = asks and is_conversation(store.all_sources[0])
    if task.needs.talks is not talks:
        has, cure = ("", "say task=chat") if talks else ("no ", "name data that have them (dataset=chat)")
        raise UserError(f"task={task.kind}: the examples of {store.path} are {has}conversations: {cure}")
    if task.needs.talks:
        return
    if task.needs.source and not asks:
        raise UserError(
            f"task={task.kind} reads {task.unit}s, and {store.path} has none: name data that have them "
            f"({SOURCES.get(task.kind, SOURCES['vqa'])}), or say task=caption"
        )
    if asks and not task.options.reads_text:
        raise UserError(
            f"task={task.kind} reads no text, and the examples of {store.path} are questions with answers: name data "
            "of images with labels"
        )
    if task.needs.targets_given and asks:  # an image would be a candidate once for each of its questions
        raise UserError(
            f"task={task.kind} compares images with captions, and the examples of {store.path} are questions with "
            "answers: name data with captions"
        )


def _talks(task: Task[Any], store: Store, tokenizer: Tokenizer) -> TalkTokens:
    assert isinstance(task, ChatTask)
    form, options = ChatFormat(tokenizer), task.options
    task.template = form.named
    return talk_tokens(store, form, limit=options.max_tokens, drops=options.too_long is TooLong.drop)


def _sources(task: Task[Any], store: Store, tokenizer: Tokenizer, config: TrainRoot) -> Texts | None:
    refuse_other_examples(task, store)
    if not task.needs.source:
        return None
    words = words_to_mask(config.data.mask_source)
    if task.options.source_is_prompt:
        limit = config.tokenizer.max_source_tokens
        return Prompted(task.options.prompt, store.all_sources, tokenizer, limit, words)
    if words:
        return MaskedTexts(store.all_sources, tokenizer, config.tokenizer.max_source_tokens, words)
    return store.encode(tokenizer, config.tokenizer.max_source_tokens, "sources")
