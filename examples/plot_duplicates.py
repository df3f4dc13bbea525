"""
Find duplicates and junk
========================

Collections hold the same picture twice, saved anew, and pictures that do not belong. Embeddings
bring the former together; the latter lie far from everything.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from evaluation import near_duplicates, review_clusters
from sklearn_excb import ExCBEstimator

# %%
# 500 digits, 20 of them a second time, a little brighter, and 12 pictures of nothing but noise.

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
# Duplicates are proposed by the embeddings and confirmed by the pixels.

pairs = near_duplicates(projections, images)
found = {tuple(pair) for pair in pairs}
planted = {(original, first_copy + i) for i, original in enumerate(again)}
print(f"{len(pairs)} groups; {len(found & planted)} of the {len(planted)} copies are among them")

# %%
# What is far from its neighbours may be junk.

review = review_clusters(excb.set_params(embedding="backbone").transform(images), excb.labels_, 26)
odd = review.outliers(12)
print(f"{np.sum(odd >= first_junk)} of the 12 oddest images are noise")

# %%
# Three duplicates, and the oddest images.

figure, axes = plt.subplots(3, 6, figsize=(7, 4), layout="constrained")
for row, pair in zip(axes[:, :2], pairs, strict=False):
    for ax, index in zip(row, pair[:2], strict=True):
        ax.imshow(images[index], cmap="gray", vmin=0, vmax=1)
for ax, index in zip(axes[:, 2:].flat, odd, strict=True):
    ax.imshow(images[index], cmap="gray", vmin=0, vmax=1)
for ax in axes.flat:
    ax.set_axis_off()
axes[0, 0].set_title("duplicates", loc="left")
axes[0, 2].set_title("the oddest twelve", loc="left")
plt.show()
