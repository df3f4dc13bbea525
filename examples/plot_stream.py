"""
Cluster a stream of images
==========================

``partial_fit`` learns from a batch of images and then keeps only a small sample of them. The
contents of a stream may change. In this example, the digits arrive class by class at first, which
is the most difficult order.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from evaluation import cluster_occupancy
from sklearn_excb import ExCBEstimator

digits = load_digits()
train, test, y_train, _ = train_test_split(
    digits.images / 16, digits.target, test_size=0.2, stratify=digits.target, random_state=0
)

# %%
# Each call gets about 100 images. The first three passes are class by class, from zeros to nines;
# the last two are in random order. After every fourth call, the held-out images are clustered.

K, AT_ONCE = 60, 100
random = np.random.default_rng(0)
by_class = [np.argsort(y_train, kind="stable")] * 3
shuffled = [random.permutation(len(train)) for _ in range(2)]
excb = ExCBEstimator(K, image_size=16, random_state=0)
calls, in_use, n_calls = [], [], 0
for order in by_class + shuffled:
    for rows in np.array_split(order, len(order) // AT_ONCE):
        excb.partial_fit(train[rows])
        n_calls += 1
        if n_calls % 4 == 0:
            calls.append(n_calls)
            in_use.append(cluster_occupancy(excb.predict(test), K).effective_clusters / K)
filled = cluster_occupancy(excb.predict(test), K)
print(
    f"at the end, {filled.empty_fraction:.1%} of {K} clusters have none of the {len(test)} "
    "held-out images"
)

# %%
# In the first pass, the estimator has not yet seen all classes. At the end, nearly all clusters are
# in use.

figure, ax = plt.subplots(layout="constrained")
ax.plot(calls, in_use, marker="o")
changes = np.cumsum([len(train) // AT_ONCE] * 3)
for change in changes:
    ax.axvline(change, color="0.8", zorder=0)
ax.text(changes[-1] + 0.5, 0.05, "in random order")
ax.text(0.5, 0.05, "class by class, three times")
ax.set(xlabel="calls of partial_fit", ylabel="effective clusters / K, held out", ylim=(0, 1))
plt.show()
