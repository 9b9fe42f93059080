# %% [markdown]
# # Caption a folder of photos
#
# Opens as a notebook in VS Code, PyCharm and Jupyter (with jupytext), and runs as a script: `python
# caption_photos.py RUN FOLDER`. Without arguments it takes `runs/train/first` and `photos/`.

# %%
import sys
from pathlib import Path

import velm_cli

arguments = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
run, folder = (arguments + ["runs/train/first", "photos"][len(arguments) :])[:2]
model = velm_cli.load(run)
print(model)

# %% [markdown]
# One caption per photo, by beam search. All photos go in at once, so that they are read and decoded in batches; a
# photo that cannot be used raises `UserError`, which names it (`velm caption` would list it and go on).

# %%
photos = sorted(Path(folder).glob("*.jpg"))
captions = model.caption(photos, beams=5)
for photo, caption in zip(photos, captions, strict=True):
    print(f"{photo.name}: {caption}")

# %% [markdown]
# Several captions per photo, sampled: how sure is the model? The same seed gives the same captions.

# %%
for caption in model.caption(photos[0], n=3, top_p=0.9, seed=0):
    print("sampled:", caption)

# %% [markdown]
# The beginning can be given.

# %%
print("prompted:", model.caption(photos[0], prompt="there are"))
