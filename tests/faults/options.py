"""Hostile values for every numeric option: each is refused in one line, or fine.

    python tests/faults/options.py                 # every option with every value, on dry runs
    python tests/faults/options.py --draws 100 --ends 10     # that many of them, drawn

The options come from the schema, in every choice of their group; so a new one is met without a word here. What a dry run
cannot see is trained in earnest, for two steps: options that were accepted with the largest and smallest values that their
bounds allow.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

HOSTILE = (
    "0", "-1", "nan", "inf", "-inf", "1e308", "1e-308", "0.5", "1.5", "-0.0", str(2**53), str(2**63), str(2**70),
    "9" * 400,
)  # fmt: skip
SIZES = ["dataset.num_train=12", "dataset.num_val=4", "dataset.num_test=4", "tokenizer.min_count=1"]
SMALL = ["vision=vit", "vision.width=16", "vision.layers=1", "vision.heads=2", "text=transformer", "text.width=16",
         "text.layers=1", "text.heads=2", "fusion=concat"]  # fmt: skip
RUN = ["run.max_steps=2", "run.batch_size=2", "data.captions_per_image=1", "metrics.names=[bleu]", "decode.max_length=4",
       "run.precision=fp32"]  # fmt: skip
# Choices that a dry run needs nothing else for: no weights of others, no images elsewhere.
CHOICES = {
    "vision": {"vit": [], "convnet": [], "torchvision": ["vision=squeezenet1_1", "vision.weights=none"],
               "regions": ["vision=rcnn", "vision.weights=none"]},
    "text": {"transformer": [], "lstm": [], "gru": []},
    "fusion": {name: [] for name in ("concat", "add", "multiply", "weighted_sum", "attention", "cross_modal", "prefix",
                                     "gated")}
    | {"co_attention": ["fusion=co_attention", "loss.alpha=0", "loss.gamma=1", "loss.joint=matching"]},
    "dataset": {"folder": ["dataset.root=photos"], "webdataset": ["dataset.urls=photos"]},
}  # fmt: skip
# With these the option has an effect, so that its value is not refused for having none.
WITH = {
    "loss.samples": ["loss.text=self_critical"],
    "loss.masked_words": ["loss.text=masked"],
    "loss.num_concepts": ["loss.beta=1"],
    "loss.masked_patches": ["loss.beta=1", "loss.image=masked_patches"],
    "loss.patch_size": ["loss.beta=1", "loss.image=masked_patches"],
    "loss.joint_width": ["loss.gamma=1"],
    "loss.joint_queries": ["loss.gamma=1"],
    "loss.joint_dropout": ["loss.gamma=1", "loss.joint_queries=2"],
    "loss.temperature": ["loss.gamma=1"],
    "decode.top_p": ["decode=nucleus"],
    "decode.temperature": ["decode=nucleus"],
    "decode.length_penalty": ["decode.beams=2"],
}


@dataclass(frozen=True)
class Attempt:
    option: str
    value: str
    command: tuple[str, ...]


def numbers_of(node: type, prefix: str) -> list[str]:
    return [prefix + field.name for field in dataclasses.fields(node) if field.type in (int, float)]


def options() -> list[tuple[str, list[str]]]:
    """Every numeric option, and the command that takes it, once for each choice of its group."""
    from velm_cli import compose, schema

    train = ["train", *SIZES, *SMALL, *RUN, "dry_run=true"]
    found: list[tuple[str, list[str]]] = []
    for option in numbers_of(schema.TrainRoot, ""):
        found.append((option, train))
    for group, node in compose.PLAIN_GROUPS.items():
        found += [(option, [*train, *WITH.get(option, [])]) for option in numbers_of(node, f"{group}.")]
    for option in numbers_of(schema.ShapesConfig, "dataset."):
        found.append((option, train))
    for group, choices in CHOICES.items():
        for kind, needs in choices.items():
            rest = [word for word in [*SIZES, *SMALL] if not word.startswith((f"{group}.", f"{group}="))]
            chosen = needs if any(word.startswith(f"{group}=") for word in needs) else [f"{group}={kind}", *needs]
            stage = "preprocess" if group == "dataset" else "train"
            words = ["preprocess", "dry_run=true", *chosen] if stage == "preprocess" else [
                "train", *rest, *chosen, *RUN, "dry_run=true",
            ]  # fmt: skip
            found += [(option, words) for option in numbers_of(schema.KINDS[group][kind], f"{group}.")]
    for option in numbers_of(schema.PreprocessConfig, "preprocess."):
        found.append((option, ["preprocess", "dataset=shapes", *SIZES, "dry_run=true"]))
    for option in [*numbers_of(schema.EvaluateRoot, ""), *numbers_of(schema.ReportConfig, "report.")]:
        found.append((option, ["evaluate", "checkpoint=runs/train/small", "dry_run=true"]))
    score = ["score", "predictions=hyps.json", "references=refs.json", "metrics.names=[bleu]"]
    found += [(option, score) for option in numbers_of(schema.MetricsConfig, "metrics.")]
    return found


def attempts() -> list[Attempt]:
    return [Attempt(option, value, (*words, f"{option}={value}")) for option, words in options() for value in HOSTILE]


def at_the_ends() -> list[Attempt]:
    """Two steps with the smallest and the largest number that an option of training, decoding or loss may have."""
    from velm_cli import compose
    from velm_cli.schema.bounds import LARGEST, bounds_of

    # The largest of these means work without end; of the others it is more than there is.
    endless = ("run.max_steps", "run.accumulation", "data.captions_per_image", "decode.beams", "decode.max_length",
               "data.workers", "data.views", "loss.samples", "loss.joint_width", "loss.joint_queries", "metrics.resamples",
               "metrics.java_timeout")  # fmt: skip
    found = []
    for group in ("loss", "optim", "run", "decode", "data", "metrics"):
        for option in numbers_of(compose.PLAIN_GROUPS[group], f"{group}."):
            bounds = bounds_of(compose.PLAIN_GROUPS[group], option.partition(".")[2])
            assert bounds is not None
            tiny, large = 1e-300, 1e300
            low = bounds.least if bounds.least is not None else tiny
            high = bounds.most if bounds.most is not None else 1 - 1e-9 if bounds.below is not None else large
            ends = [low] if option in endless or option == "run.threads" else [low, high]
            for end in ends:
                shown = str(int(end)) if end == int(end) and abs(end) <= LARGEST else repr(float(end))
                words = ["train", *SIZES, *SMALL, *RUN, *WITH.get(option, []), "name=end", "fresh=true"]
                found.append(Attempt(option, shown, (*words, f"{option}={shown}")))
    return found


def prepare() -> None:
    """What the commands work on, in the working folder."""
    from PIL import Image
    from velm import call

    for part in ("train", "val", "test"):
        Path("photos", part).mkdir(parents=True)
        Image.new("RGB", (16, 16), "red").save(f"photos/{part}/1.png")
        Path(f"photos/{part}/captions.txt").write_text("1.png\ta red square\n")
    Path("refs.json").write_text(json.dumps({"annotations": [{"image_id": 1, "caption": "a red circle"}]}))
    Path("hyps.json").write_text(json.dumps([{"image_id": 1, "caption": "a circle"}]))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert call("preprocess", "dataset=shapes", *SIZES) == 0
        assert call("train", *SIZES, *SMALL, *RUN, "name=small") == 0


def outcome(attempt: Attempt) -> str:
    """refused, fine, or what must not be."""
    from velm import call

    said: Any = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            code = call(*attempt.command)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        traceback.print_exc()
        return f"CRASH {type(error).__name__}"
    lines = [line for line in said.getvalue().splitlines() if line.startswith("velm: ")]
    if code == 0:
        return "fine"
    if "Traceback" in said.getvalue() or not lines or "unexpected" in lines[-1]:
        return f"NOT ONE LINE: {said.getvalue()[-300:]}"
    return "refused"


def campaign(chosen: list[Attempt]) -> tuple[Counter[str], list[str]]:
    """How often which outcome, and a line for each that must not be."""
    outcomes: Counter[str] = Counter()
    bad = []
    for attempt in chosen:
        result = outcome(attempt)
        outcomes[result.split(" ")[0]] += 1
        if result not in ("fine", "refused"):
            bad.append(f"{result}: {attempt.option}={attempt.value}: velm {' '.join(attempt.command)}")
    return outcomes, bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, help="dry runs; all without it")
    parser.add_argument("--ends", type=int, help="short trainings; all without it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="options that contain this")
    options = parser.parse_args()
    os.environ["VELM_TRACEBACK"] = "1"
    rng = random.Random(options.seed)
    began = time.monotonic()
    failed = False
    with tempfile.TemporaryDirectory(prefix="velm-options-") as folder:
        os.chdir(folder)
        prepare()
        for title, found, draws in (
            ("dry runs", attempts(), options.draws),
            ("two steps at the ends of bounds", at_the_ends(), options.ends),
        ):
            chosen = [attempt for attempt in found if options.only in attempt.option]
            if draws is not None:
                chosen = rng.sample(chosen, min(draws, len(chosen)))
            outcomes, bad = campaign(chosen)
            print(f"{title}: {len(chosen)} of {len({a.option for a in chosen})} options: {dict(outcomes)}", flush=True)
            print(*bad, sep="\n")
            failed |= bool(bad)
        os.chdir("/")
    print(f"{time.monotonic() - began:.0f} s")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
