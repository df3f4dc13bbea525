"""
Embeddings of any model into balanced clusters
==============================================

Rows of a 2-D array are feature vectors: what another network gave, of images, sounds or sentences.
Clusters of them are balanced in the same way, in seconds to minutes on a CPU.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

from evaluation import OccupancyDisplay, clustering_scores
from sklearn_excb import ExCBEstimator

# %%
# Any matrix will do, such as ``np.load("embeddings.npy")``, or
# ``pandas.read_csv("embeddings.csv").to_numpy()``. Here it is the pixels of digits. Features in
# several units need a ``StandardScaler`` before, as for k-means.

digits = load_digits()
rows = digits.data
print(rows.shape)

# %%
# Sixty clusters, beside those of k-means. NMI says how much of the digits they tell, the largest
# cluster and the number in effective use how even they are: k-means goes where the rows are dense,
# and ExCB divides them as evenly as it can.

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
# Where even sizes do not matter, k-means is the better choice for rows: it is as good, and faster.
# They matter where each cluster is given out as work, sampled from, or used as a code of which none
# should lie idle.
plt.show()
