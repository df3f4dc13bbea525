"""
The figures of the paper on digits
==================================

The figures of the paper show, on ImageNet, that hardly any cluster is empty (Fig. 1), how the
balancing operator achieves this (Fig. 2), and the embeddings (Fig. 3). This example draws the same
figures for 1,797 digits.
"""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits

from evaluation import OccupancyDisplay, ProjectionDisplay, cluster_occupancy, project
from sklearn_excb import CollapseWarning, ExCBEstimator
from sklearn_excb.balancing import balance

digits = load_digits()
images, y = digits.images / 16, digits.target

# %%
# **Fig. 1** shows the cluster sizes when ``predict`` labels the images, after training with ExCB
# and with DINO's centering and otherwise the same settings. The paper reports that 1.6 % of 65,536
# clusters are empty, and 74.7 % for DINO. ``settle_passes=0`` skips the step that this package adds
# after training and the paper does not have. The collapse with centering is expected here, so its
# warning is ignored.

K = 92
warnings.simplefilter("ignore", CollapseWarning)
models = {"ExCB": {"settle_passes": 0}, "DINO's centering": {"balancing": "centering"}}
fitted = {
    name: ExCBEstimator(K=K, epochs=12, image_size=16, random_state=0, **how).fit(images)
    for name, how in models.items()
}
for name, excb in fitted.items():
    filled = cluster_occupancy(excb.labels_, K)
    print(
        f"{name:18} {filled.empty_fraction:.1%} empty, largest {filled.largest_relative_size:.1f}"
    )
figure, ax = plt.subplots(layout="constrained")
labels = {name: excb.labels_ for name, excb in fitted.items()}
OccupancyDisplay.from_predictions(labels, n_clusters=K, ax=ax)

# %%
# **Fig. 2** shows the balanced similarity for several similarities z, as a function of the relative
# size sK of the cluster. At sK = 1 the similarity does not change. For smaller clusters it
# increases, up to 1 for an empty cluster; for larger clusters it decreases.

sizes = np.linspace(0, 4, 400)
figure, ax = plt.subplots(layout="constrained")
for z in (-0.5, 0.0, 0.5, 0.9):
    # eight clusters: the one on the axis, and seven that share the other images equally
    s = np.stack([sizes / 8, *[(1 - sizes / 8) / 7] * 7], axis=1)
    similarities = torch.full((8,), z, dtype=torch.float64)
    balanced = [balance(similarities, shares)[0] for shares in torch.from_numpy(s)]
    ax.plot(sizes, balanced, label=f"z = {z}")
ax.axvline(1, color="0.8", zorder=0)
ax.set(xlabel="relative size of the cluster, sK", ylabel="balanced similarity")
ax.legend()

# %%
# **Fig. 3** is a t-SNE of the teacher's projections, coloured by digit. Training used no labels.

flat = project(fitted["ExCB"].transform(images), method="tsne", random_state=0)
figure, ax = plt.subplots(layout="constrained")
ProjectionDisplay.from_predictions(flat, y, title="Digits", ax=ax)
plt.show()
