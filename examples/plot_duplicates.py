"""
Find duplicates and junk
========================

Image collections often contain near-duplicates and pictures that do not belong. Near-duplicates
have similar embeddings; the embeddings of junk are far from all others.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from evaluation import near_duplicates, review_clusters
from sklearn_excb import ExCBEstimator

# %%
# The collection has 500 digits, slightly brighter copies of 20 of them, and 12 pictures of noise.

random = np.random.default_rng(0)
digits = load_digits().images[:500] / 16
again = random.choice(len(digits), 20, replace=False)
copies = np.clip(digits[again] * 1.02, 0, 1)
junk = random.random((12, 8, 8))
images = np.concatenate([digits, copies, junk])
first_copy, first_junk = len(digits), len(digits) + len(copies)

excb = ExCBEstimator(K=26, epochs=12, image_size=16, random_state=0).fit(images)
projections = excb.transform(images)

# %%
# The embeddings propose near-duplicates, and the pixels confirm them.

pairs = near_duplicates(projections, images)
found = {tuple(pair) for pair in pairs}
planted = {(original, first_copy + i) for i, original in enumerate(again)}
print(f"{len(pairs)} groups, with {len(found & planted)} of the {len(planted)} planted copies")

# %%
# Images that are far from their nearest neighbours may be junk.

review = review_clusters(excb.set_params(embedding="backbone").transform(images), excb.labels_, 26)
odd = review.outliers(12)
print(f"{np.sum(odd >= first_junk)} of the 12 farthest images are noise")

# %%
# The figure shows three pairs of near-duplicates and the 12 outliers.

figure, axes = plt.subplots(3, 6, figsize=(7, 4), layout="constrained")
for row, pair in zip(axes[:, :2], pairs, strict=False):
    for ax, index in zip(row, pair[:2], strict=True):
        ax.imshow(images[index], cmap="gray", vmin=0, vmax=1)
for ax, index in zip(axes[:, 2:].flat, odd, strict=True):
    ax.imshow(images[index], cmap="gray", vmin=0, vmax=1)
for ax in axes.flat:
    ax.set_axis_off()
axes[0, 0].set_title("near-duplicates", loc="left")
axes[0, 2].set_title("outliers", loc="left")
plt.show()
