# %% [markdown]
# # Compare two systems
#
# Two decodings of one model are scored against the same references: `python compare_systems.py RUN`. What `velm
# score vs=` does in one command, as values. Any two systems will do: a prediction is a text by image id.

# %%
import json
import sys
from pathlib import Path

import numpy as np

import velm_cli

arguments = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
model = velm_cli.load(arguments[0] if arguments else "runs/train/first")

# %% [markdown]
# References of drawn scenes: a file in COCO's format, and the test part of the split.

# %%
root = Path("data/shapes")
test = json.loads((root / "shapes_split.json").read_text())["test"][:100]
references: dict[int, list[str]] = {number: [] for number in test}
for annotation in json.loads((root / "annotations/captions_val2014.json").read_text())["annotations"]:
    if annotation["image_id"] in references:
        references[annotation["image_id"]].append(annotation["caption"])
images = [root / f"val2014/COCO_val2014_{number:012d}.jpg" for number in test]

# %%
greedy = dict(zip(test, model.caption(images, beams=1), strict=True))
beam = dict(zip(test, model.caption(images, beams=5), strict=True))
scores = {"greedy": velm_cli.score(greedy, references), "5 beams": velm_cli.score(beam, references)}
for name, each in scores.items():
    low, high = each.intervals["CIDEr"]
    print(f"{name}: CIDEr {100 * each['CIDEr']:.1f} (95 % interval {100 * low:.1f} to {100 * high:.1f})")

# %% [markdown]
# Both saw the same images, so the difference is tested in pairs: a bootstrap of the differences of CIDEr, image
# by image.

# %%
differences = np.array([scores["5 beams"].per_image[i]["CIDEr"] - scores["greedy"].per_image[i]["CIDEr"] for i in test])
draws = np.random.default_rng(0).choice(differences, (1000, len(differences))).mean(1)
low, high = np.percentile(draws, [2.5, 97.5])
print(f"5 beams - greedy: {100 * differences.mean():+.1f} (95 % interval {100 * low:+.1f} to {100 * high:+.1f})")

# %% [markdown]
# Where they differ most.

# %%
for place in np.argsort(-np.abs(differences))[:3]:
    number = test[place]
    print(f"image {number}: {100 * differences[place]:+.0f}\n  greedy:  {greedy[number]}\n  5 beams: {beam[number]}")
