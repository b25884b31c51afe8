# %% [markdown]
# # A first look at a line
#
# From shot gathers to a starting model, top to bottom: make a gallery, record some ground (here simulated; yours comes
# from your crew), retrieve, read the answer, check it by modelling a shot. Cells are marked `# %%`; run them in an
# editor that knows them (VS Code, Spyder, Jupyter with jupytext), or all at once: `python examples/first_line.py`.

# %% Where things go
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import seisbind

OUT = Path(sys.argv[1] if len(sys.argv) > 1 else "first-line")
MODELS = int(sys.argv[2]) if len(sys.argv) > 2 else 2000
OUT.mkdir(exist_ok=True)

# %% [markdown]
# ## The gallery
# Velocity models that an answer can name: here drawn at random, otherwise your own
# (`seisbind gallery build --data FOLDER`). It is kept in a folder and built once.

# %%
embedder = seisbind.Embedder.load()
if not (OUT / "gallery").exists():
    seisbind.build_gallery(OUT / "gallery", embedder, seisbind.random_models(MODELS, 1, None))
gallery = seisbind.Gallery.open(OUT / "gallery", fingerprint=embedder.fingerprint)
engine = seisbind.Engine(embedder, gallery)
print(f"{len(gallery)} velocity models")

# %% [markdown]
# ## The ground, and its shot gathers
# Five shots into 70 receivers over 690 m, one second at 1 ms: `(shot, time, receiver)`. This ground is not in the
# gallery.

# %%
ground = seisbind.generate("CurveVel-A", 1, np.random.default_rng(2026))
gathers = seisbind.simulate(ground[0])
print("gathers", gathers.shape, "of ground between", *(f"{v:.0f}" for v in (ground.min(), ground.max())), "m/s")

# %% [markdown]
# ## Retrieve

# %%
answer = engine.retrieve(gathers)[0]
for match in answer.matches:
    print(f"{match.rank}  {match.family:13} similarity {match.similarity:.3f}")
held = "unknown" if answer.in_gallery is None else f"{answer.in_gallery:.2f}"  # unknown: see answer.warnings
print(f"in the gallery: {held}; ranked by {answer.ranked_by}")
print(f"like the records of training: {answer.in_distribution.likely}")
for name, q in answer.physics.items():
    print(f"{name:28} {q.value:9.2f} {q.unit:4}  90 % from {q.low:9.2f} to {q.high:9.2f}")

# %% [markdown]
# ## Check it: one shot through the first match
# If first arrivals and main reflections agree within half a period, the match is a starting model for inversion.

# %%
first = gallery.velocity(answer.matches[0].model_id)
again = seisbind.simulate(first)
shot = 2
bound = float(np.quantile(np.abs(gathers[0, shot]), 0.98))
figure, axes = plt.subplots(1, 4, figsize=(14, 4), constrained_layout=True)
for axis, picture, title in ((axes[0], ground[0], "the ground"), (axes[1], first, "first match")):
    drawn = axis.imshow(picture, extent=(0, 700, 700, 0), vmin=1500, vmax=4500, cmap="viridis")
    axis.set(title=title, xlabel="x (m)", ylabel="depth (m)")
figure.colorbar(drawn, ax=axes[:2], label="m/s")
for axis, record, title in ((axes[2], gathers, "recorded"), (axes[3], again, "through the match")):
    axis.imshow(record[0, shot], extent=(0, 690, 1, 0), aspect="auto", cmap="gray", vmin=-bound, vmax=bound)
    axis.set(title=title, xlabel="receiver (m)", ylabel="time (s)")
figure.savefig(OUT / "first-line.png", dpi=90)
print(f"picture: {OUT / 'first-line.png'}")
gallery.close()
