# %% [markdown]
# # Find photos by text
#
# `python search_photos.py RUN FOLDER "a red circle"`. The run must have learned to compare images with captions:
# `task=retrieve`, or a captioner trained with `loss.gamma` above 0. For many photos use `velm search index=`,
# which embeds each of them once.

# %%
import sys
from pathlib import Path

import numpy as np

import velm_cli

arguments = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
run, folder, query = (arguments + ["runs/train/first", "photos", "a red circle"][len(arguments) :])[:3]
model = velm_cli.load(run)
assert "embed" in model.can, f"{run} can {model.can}: train it with loss.gamma=0.1"

# %%
photos = sorted(Path(folder).glob("*.jpg"))
vectors = model.embed_images(photos)  # [N, E], unit vectors: their products are cosines
print(f"{len(photos)} photos, {vectors.shape[1]} numbers each")

# %%
cosines = vectors @ model.embed_texts(query)
for place in np.argsort(-cosines)[:5]:
    print(f"{cosines[place]:6.3f}  {photos[place]}")

# %% [markdown]
# Photos that look like another one: the same with an image in place of the text.

# %%
likeness = vectors @ vectors[0]
print("most like", photos[0].name, "is", photos[int(np.argsort(-likeness)[1])].name)
