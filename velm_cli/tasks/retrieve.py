"""Retrieval: images find their captions and captions their image, by cosines in the space of L_joint.

Any run whose L_joint compares images with captions can be evaluated so, a captioner too. With `rerank` the matching
head judges each query's best candidates again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from velm_cli.errors import UserError
from velm_cli.objectives.weights import parse_weight
from velm_cli.schema import DecodeConfig, JointLoss, MetricsConfig, RetrieveTaskConfig, TrainRoot
from velm_cli.tasks.interface import ExampleId, Needs, Predicted, Session, Shape, Task
from velm_cli.tasks.writers import writes, writing_learner

if TYPE_CHECKING:
    from velm_cli.data.batch import Batch
    from velm_cli.data.store import Store
    from velm_cli.data.tokenizer import Tokenizer
    from velm_cli.learners.interface import Learner
    from velm_cli.learners.matching import Embedded
    from velm_cli.metrics.embeddings import Embeddings
    from velm_cli.metrics.retrieval import Best, Ranks
    from velm_cli.metrics.scores import Scores
    from velm_cli.models.velm import VelmModel
    from velm_cli.objectives.weights import Weight
    from velm_cli.tasks.spaces import Spaces


class Found(NamedTuple):
    """What is predicted of an image with its captions; scores of their best candidates, where those were judged."""

    embedded: Embedded
    scores_k: np.ndarray | None = None  # of the image's best captions
    scores_Kk: np.ndarray | None = None  # of the best images of each caption


class RetrieveTask(Task[Found]):
    """An example is an image with its captions."""

    kind = "retrieve"
    needs = Needs(targets_given=True)
    verb, doing = "embed", "embeddings"
    primary = "rsum"
    evaluated = frozenset({"rerank", "fold"})
    options: RetrieveTaskConfig

    def __init__(self, options: RetrieveTaskConfig) -> None:
        super().__init__(options)
        self.manner = f"rerank{options.rerank}" if options.rerank else "cosine"

    @property
    def refines(self) -> bool:
        return self.options.rerank > 0

    def problems(self, config: TrainRoot) -> Iterator[str]:
        if not self.is_learned(config):
            yield (
                f"task=retrieve finds by L_joint, and loss.gamma={config.loss.gamma} loss.joint="
                f"{config.loss.joint.value} does not compare images with captions: set loss.gamma=1 and loss.joint to "
                "contrastive, sigmoid or matching"
            )

    def learner(
        self, config: TrainRoot, spaces: Spaces, tokenizer: Tokenizer, weights: Mapping[str, Weight]
    ) -> Learner:
        return writing_learner(config, spaces, tokenizer, weights)

    def shape(self, config: TrainRoot) -> Shape:
        return Shape(writes(config))

    def sharing(
        self,
        config: TrainRoot,
        spaces: Spaces,
        tokenizer: Tokenizer,
        weights: Mapping[str, Weight],
        model: VelmModel,
    ) -> Learner:
        return writing_learner(config, spaces, tokenizer, weights, model=model)

    def is_learned(self, config: TrainRoot) -> bool:
        compares = config.loss.joint is not JointLoss.label
        return compares and not parse_weight("loss.gamma", config.loss.gamma).always_zero

    def why_not_learned(self, config: TrainRoot, run: Path) -> str:
        return (
            f"checkpoint: {run} cannot retrieve: it was trained without an L_joint that compares images with captions "
            "(loss.gamma=1 loss.joint=contrastive, sigmoid or matching)"
        )

    def predicts_with(self, config: TrainRoot) -> frozenset[str]:
        return frozenset({"joint"})

    def cannot_predict(self, learner: Learner, config: TrainRoot, run: Path) -> str | None:
        if self.refines and getattr(learner, "matching_loss", None) is None:
            return (
                f"task.rerank={self.options.rerank} judges by the matching head, which {run} has not: it was trained "
                f"with loss.joint={config.loss.joint.value}, not matching"
            )
        return None

    def predict(
        self,
        learner: Learner,
        batches: Iterable[Batch],
        spaces: Spaces,
        tokenizer: Tokenizer,
        how: DecodeConfig,
        session: Session,
    ) -> Iterator[tuple[ExampleId, Found]]:
        from velm_cli.learners.matching import embedded

        matcher: Any = learner
        return ((number, Found(one)) for number, one in embedded(matcher, batches, session.device))

    def refine(
        self, learner: Learner, batches: Iterable[Batch], predicted: Predicted[Found], session: Session
    ) -> dict[ExampleId, Found]:
        from velm_cli.learners.matching import judge_split, together

        matcher: Any = learner
        embeddings, texts = together({number: found.embedded for number, found in predicted.items()})
        best = self._best(embeddings, self.options.rerank)
        scores_Ck, scores_Ik = judge_split(matcher, batches, session.device, embeddings, texts, best)
        parts = np.split(scores_Ck, np.cumsum([len(found.embedded.text_KE) for found in predicted.values()])[:-1])
        return {
            number: found._replace(scores_k=scores_k, scores_Kk=scores_Kk)
            for (number, found), scores_k, scores_Kk in zip(predicted.items(), scores_Ik, parts, strict=True)
        }

    def joined(self, parts: list[dict[ExampleId, Found]]) -> dict[ExampleId, Found]:
        """What several processes have judged: each pair by the one that had its image."""

        def known(arrays: list[np.ndarray]) -> np.ndarray:
            found = arrays[0]
            for array in arrays[1:]:
                found = np.where(np.isnan(found), array, found)
            return found

        return {
            number: found._replace(
                scores_k=known([part[number].scores_k for part in parts]),  # type: ignore[misc]
                scores_Kk=known([part[number].scores_Kk for part in parts]),  # type: ignore[misc]
            )
            for number, found in parts[0].items()
        }

    def _best(self, embeddings: Embeddings, k: int) -> tuple[Best, Best]:
        from velm_cli.metrics.retrieval import best_both_ways

        return best_both_ways(embeddings.image_IE, embeddings.text_CE, embeddings.image_of_C, k, fold=self.options.fold)

    def quick(self, store: Store, numbers: Iterable[int], predicted: Predicted[Found]) -> dict[str, float]:
        from velm_cli.learners.matching import together
        from velm_cli.metrics.retrieval import figures, rank_both_ways

        found, _ = together({number: each.embedded for number, each in predicted.items()})
        if not len(found.text_CE):
            return {"rsum": 0.0}
        shown = figures(rank_both_ways(found.image_IE, found.text_CE, found.image_of_C))
        return {"rsum": shown["rsum"], "i2t_R@1": shown["i2t_R@1"], "t2i_R@1": shown["t2i_R@1"]}

    def of_one(self, score: float) -> float:
        return score / 600

    def score(
        self, store: Store, numbers: Iterable[int], predicted: Predicted[Found], config: MetricsConfig, *, learned: bool
    ) -> Scores | None:
        from velm_cli.learners.matching import together
        from velm_cli.metrics.retrieval_files import about_best
        from velm_cli.metrics.retrieval_scores import folds_of, score_retrieval

        found, _ = together({number: each.embedded for number, each in predicted.items()})
        if not len(found.text_CE):
            return None
        folds_of(len(found.image_ids), self.options.fold)
        example_of = {store.example_id(int(number)): int(number) for number in numbers}
        captions = [text for image in found.image_ids for text in store.targets(example_of[image])]
        signature: dict[str, Any] = {"from": f"cosine of embeddings of {found.image_IE.shape[1]} dimensions"}
        if self.refines:
            signature["rerank"] = f"the best {self.options.rerank} by cosine / temperature + matching logit"
        return score_retrieval(
            self._ranks(found, predicted),
            found.image_of_C,
            config,
            images=found.image_ids,
            captions=captions,
            fold=self.options.fold,
            signature=signature,
            about=about_best(_with(found, captions), self._order(found, predicted)),
        )

    def unscorable(self, examples: int) -> Iterator[str]:
        from velm_cli.metrics.retrieval_scores import folds_of

        try:
            folds_of(examples, self.options.fold)
        except UserError as error:
            yield f"task.{error}"

    def _judged(self, predicted: Predicted[Found]) -> tuple[np.ndarray, np.ndarray]:
        of_images = [found.scores_k for found in predicted.values() if found.scores_k is not None]
        of_texts = [found.scores_Kk for found in predicted.values() if found.scores_Kk is not None]
        return np.concatenate(of_texts), np.stack(of_images)

    def _ranks(self, found: Embeddings, predicted: Predicted[Found]) -> Ranks:
        from velm_cli.metrics.retrieval import rank_both_ways, rerank_both_ways

        vectors = found.image_IE, found.text_CE, found.image_of_C
        if not self.refines:
            return rank_both_ways(*vectors, fold=self.options.fold)
        best = self._best(found, self.options.rerank)
        return rerank_both_ways(*vectors, best, self._judged(predicted), fold=self.options.fold)

    def _order(self, found: Embeddings, predicted: Predicted[Found]) -> tuple[Best, Best]:
        """Each query's best candidates, in the order of their scores."""
        from velm_cli.metrics.retrieval import Best
        from velm_cli.metrics.retrieval_files import BEST

        if not self.refines:
            return self._best(found, BEST)
        ordered = []
        for best, scores_Qk in zip(self._best(found, self.options.rerank), self._judged(predicted), strict=True):
            there_Qk = best.numbers_Qk >= 0
            order_Qk = np.argsort(-np.where(there_Qk, scores_Qk, -np.inf), axis=1, kind="stable")
            ordered.append(Best(*(np.take_along_axis(part, order_Qk, axis=1) for part in best)))
        return ordered[0], ordered[1]

    def write_results(self, folder: Path, predicted: Predicted[Found]) -> list[str]:
        from velm_cli.learners.matching import together
        from velm_cli.metrics.embeddings import write_embeddings

        found, _ = together({number: each.embedded for number, each in predicted.items()})
        write_embeddings(folder / "embeddings.npz", found)
        return ["embeddings.npz"]


def _with(found: Embeddings, captions: list[str]) -> Embeddings:
    from dataclasses import replace

    return replace(found, captions=captions)
