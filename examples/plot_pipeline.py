"""
Use the estimator in a Pipeline and search for K
================================================

The estimator is also a transformer. In a pipeline, it learns embeddings without labels, and the
next step learns from these embeddings and a few labels.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, make_scorer
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline

from evaluation import cluster_occupancy
from sklearn_excb import ExCBEstimator

digits = load_digits()
images, y = digits.images[:500] / 16, digits.target[:500]

# %%
# With ``embedding="backbone"``, the estimator passes on the features of the backbone, which are
# better for classifiers than projections. The search is over the number of clusters. Each step of
# the search fits a network, so this example uses few epochs and an image size of 16 pixels, twice
# the size of the digits.

pipeline = make_pipeline(
    ExCBEstimator(embedding="backbone", epochs=3, image_size=16, random_state=0),
    LogisticRegression(max_iter=1000),
)
folds = StratifiedKFold(2, shuffle=True, random_state=0)
search = GridSearchCV(
    pipeline,
    {"excbestimator__K": [10, 30, 90]},
    scoring=make_scorer(accuracy_score),
    cv=folds,
)
search.fit(images, y)
print(f"best: {search.best_params_}, accuracy {search.best_score_:.3f}")

# %%
# A search without labels needs a scorer, because the estimator has no ``score`` method: the
# similarity to the nearest centroid would always favour a larger K. A scorer is a function of the
# fitted estimator and held-out images. This one returns the number of effective clusters on the
# held-out images, divided by K.


def effective_share(excb, held_out, y=None):
    """Return the number of effective clusters divided by K."""
    K = excb.resolved_params_["K"]
    return cluster_occupancy(excb.predict(held_out), K).effective_clusters / K


by_use = GridSearchCV(
    ExCBEstimator(epochs=3, image_size=16, random_state=0),
    {"K": [10, 30, 90]},
    scoring=effective_share,
    cv=2,
    refit=False,
).fit(images)

# %%
# With more clusters, the few held-out images cannot fill all of them, and the share of effective
# clusters falls. The accuracy of the pipeline does not suffer.

figure, ax = plt.subplots(layout="constrained")
x = np.arange(3)
ax.bar(x - 0.2, search.cv_results_["mean_test_score"], 0.4, label="accuracy of the pipeline")
ax.bar(x + 0.2, by_use.cv_results_["mean_test_score"], 0.4, label="effective clusters / K")
ax.set(xticks=x, xticklabels=[10, 30, 90], xlabel="K", ylim=(0, 1))
ax.legend(loc="lower left")
plt.show()
