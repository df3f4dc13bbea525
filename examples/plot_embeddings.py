"""
Cluster embeddings of any model
===============================

The rows of a 2-D array are feature vectors, for example of images, sounds or sentences, computed by
another network. ``ExCBEstimator`` also finds balanced clusters of such rows, in seconds to minutes
on a CPU.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

from evaluation import OccupancyDisplay, clustering_scores
from sklearn_excb import ExCBEstimator

# %%
# Any matrix can be used, such as ``np.load("embeddings.npy")`` or
# ``pandas.read_csv("embeddings.csv").to_numpy()``. This example uses the pixels of digits. Features
# with different units need a ``StandardScaler`` first, as for k-means.

digits = load_digits()
rows = digits.data
print(rows.shape)

# %%
# Compare sixty clusters with those of k-means. The normalised mutual information (NMI) measures how
# well the clusters agree with the digits; the sizes show how even the clusters are. The sizes of
# k-means clusters follow the density of the rows, and ExCB divides the rows as evenly as it can.

K = 60
labels = {
    "ExCB": ExCBEstimator(K=K, epochs=15, random_state=0).fit_predict(rows),
    "k-means": KMeans(K, n_init=3, random_state=0).fit_predict(rows),
}
for name, found in labels.items():
    sizes = np.bincount(found, minlength=K)
    nmi = clustering_scores(digits.target, found).nmi
    print(f"{name:8} NMI {nmi:.2f}, images a cluster from {sizes.min()} to {sizes.max()}")

figure, ax = plt.subplots(layout="constrained")
OccupancyDisplay.from_predictions(labels, n_clusters=K, ax=ax)

# %%
# If even sizes do not matter, use k-means for rows: its clusters are as good, and it is faster.
# Even sizes matter if each cluster is a unit of work, a stratum for sampling, or a code that should
# be used.
plt.show()
